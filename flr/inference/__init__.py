"""From a trained model to the points of any image."""
