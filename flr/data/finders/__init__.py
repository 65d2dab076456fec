"""Detectors of faces as the data and the inference use them: image in, boxes out."""
