"""Landmark nets, one file an architecture. They import torch alone.

A net is built with ``points`` (K), ``channels`` and ``size`` of its input beside its own arguments, names what it puts
out in ``output`` (``points``: (B, 2K) coordinates; ``heatmaps``: (B, K, h, w) logits) and maps (B, C, H, W) to that.
"""
