"""Autoscaling: what the recording rules say of a load that rises and falls, and what an autoscaler would ask for."""

from .measure import part

__all__ = ["part"]
