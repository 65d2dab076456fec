"""An objective owns the target coding, the loss and the decoding to points, so a net and a loss are chosen apart.

It names what it takes in ``takes`` (the `output` of a net), and has ``loss(raw, batch) -> (sum, count)`` and
``decode(raw, size) -> (B, K, 2)`` crop pixels. Coordinates and losses are float32 whatever the net's precision.
"""
