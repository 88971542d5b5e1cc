"""What a training run is made of; `geoseg.programs.train` puts it together."""
