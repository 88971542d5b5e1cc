"""Labelled scenes to windows for training and validation; each module is imported by its own name."""
