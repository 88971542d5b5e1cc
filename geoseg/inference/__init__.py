"""A trained network in the form it predicts in: fewer operations, the same function."""
