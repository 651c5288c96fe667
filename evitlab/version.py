"""The version, in a module that loads nothing: `evitlab --version` answers before torch loads."""

__version__ = "0.1.0"
