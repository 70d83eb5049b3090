"""The version, read by the build and written into every explained model."""

__version__ = "0.1.0"
