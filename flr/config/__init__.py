"""Compose, validate and instantiate configs."""
