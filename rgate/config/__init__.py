"""config.yml, read into frozen models. All problems are reported at once, each with its place and a way to solve it."""

from .loading import PluginHost, load, load_text
from .models import Backend, Config, Route, Timeouts, UpstreamTLS

__all__ = ["Backend", "Config", "PluginHost", "Route", "Timeouts", "UpstreamTLS", "load", "load_text"]
