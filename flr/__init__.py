"""Facial-landmark research: train, track, evaluate and use landmark nets."""

__version__ = "0.1.0"
