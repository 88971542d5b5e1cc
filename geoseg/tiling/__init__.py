"""Windows of a scene: the plan before a pixel is read, and overlapping logits → finished rows of one map."""
