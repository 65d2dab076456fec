"""Augmentation of whole batches: one affine for pixels and points alike, then pixel stages."""
