"""The configuration of one experiment: what it may say (`settings`), and how it comes from a file (`loading`)."""

from geoseg.config.loading import load_config, parse_config, save_config
from geoseg.config.settings import TrainConfig

__all__ = ["TrainConfig", "load_config", "parse_config", "save_config"]
