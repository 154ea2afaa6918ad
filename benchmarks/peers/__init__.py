"""m2f beside its peers: the same pictures through each, answers checked equal before anything is timed."""

from .measure import part

__all__ = ["part"]
