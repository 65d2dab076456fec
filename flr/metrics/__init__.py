"""Landmark errors in original-image pixels: pure functions, and the torchmetrics class that only holds state."""
