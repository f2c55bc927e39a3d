"""Parallel Track Transformers and their reduced-synchronisation relatives: built, served and measured."""

__version__ = "0.1.0"
