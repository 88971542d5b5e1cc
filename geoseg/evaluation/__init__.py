"""How good a model is: maps of labelled scenes against their labels, and what follows from the counts."""
