"""Real commands on small scenes and, where it is at hand, on real imagery."""
