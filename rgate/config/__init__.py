"""config.yml, read into frozen models; every problem at once, each with its place and the way out."""

from .loading import Plugins, load, load_text
from .models import Config, HealthConfig

__all__ = ["Config", "HealthConfig", "Plugins", "load", "load_text"]
