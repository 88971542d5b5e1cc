"""What was asked of polygons, and the rules on regions that act on rows before tracing."""
