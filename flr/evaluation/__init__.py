"""Scoring a model and reporting the result."""
