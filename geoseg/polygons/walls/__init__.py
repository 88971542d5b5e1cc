"""Outlines with straight walls and right angles: each building is decided once, as a whole, before it is traced."""
