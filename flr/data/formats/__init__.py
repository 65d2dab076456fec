"""File formats of labels, each read and written in one module."""
