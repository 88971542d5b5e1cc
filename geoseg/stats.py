"""What the labelled scenes of a configuration hold: ``geoseg stats``."""
