"""The Lightning module of a model, and its way into and out of checkpoints."""
