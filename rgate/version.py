"""The version, importable without importing the gateway."""

VERSION = "0.1.0"
