"""Rows of a class map → regions and arcs of a band, joined over bands."""
