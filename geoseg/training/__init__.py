"""What a training run is made of; `geoseg.train` puts it together."""
