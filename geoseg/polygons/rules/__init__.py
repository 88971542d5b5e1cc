"""The rules for polygons as values, and those on regions, which act on rows before tracing."""
