"""Facial-landmark research: train, track and evaluate landmark nets."""

__version__ = "0.1.0"
