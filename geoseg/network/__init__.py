"""A network as it is stored, trained and run: model folders, losses, metrics, the inference form and its backends."""
