"""From a trained net to the points of any picture."""
