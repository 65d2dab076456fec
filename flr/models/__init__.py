"""Landmark models, one file an architecture. They import torch alone.

A model is built with ``points`` (K), ``channels`` and ``size`` of its input in addition to its own arguments, names what it puts
out in ``output`` and maps (B, C, H, W) to that:

    points              (B, 2K) coordinates
    points_and_scales   (B, 4K) of each point both coordinates, then the logits of their scales
    heatmaps            (B, K, h, w) logits or heights; in training of S stages (B, S, K, h, w)
    axes                (B, K, 2, bins) logits of each coordinate
    pixel_in_pixel      (B, K (3 + 2N), h, w) scores, offsets and those of N neighbours

A model whose constructor has an argument ``output`` is built for what the objective takes.
"""

from torch import nn


def kaiming(net: nn.Module) -> None:
    """Start all convolutions of `net` from Kaiming-normal weights and no bias (He et al. 2015, arXiv:1502.01852).

    So a signal keeps its size through convolutions and ReLUs. Fan in: what also holds for depthwise ones.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def last_layer(inputs: int, points: int) -> nn.Linear:
    """Dense to 2K numbers that start near 0, the coded zero: training begins at the crop's centre, not anywhere."""
    layer = nn.Linear(inputs, 2 * points)
    nn.init.normal_(layer.weight, std=0.1 / inputs**0.5)
    nn.init.zeros_(layer.bias)
    return layer
