"""The attention explorer: look at any head of any supported model, in a notebook or without."""

from evitlab.explorer.widget import AttentionExplorer

__all__ = ["AttentionExplorer"]
