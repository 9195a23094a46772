"""Fuzz targets for the parsers of untrusted bytes, also run by the tests. See README.md."""
