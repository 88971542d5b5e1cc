"""Design studies of the SegNeXt paper (Tables 5 to 8), off the main path."""
