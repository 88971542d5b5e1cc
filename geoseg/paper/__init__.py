"""What belongs to the SegNeXt paper and its data sets, off the main path: costs, iSAID, published protocols."""
