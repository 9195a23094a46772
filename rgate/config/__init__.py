"""config.yml, read into frozen models; every problem at once, each with its place and the way out."""

from .loading import Plugins, load, load_text
from .models import Config

__all__ = ["Config", "Plugins", "load", "load_text"]
