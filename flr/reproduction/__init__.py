"""Reproducing an experiment and comparing it with its record."""
