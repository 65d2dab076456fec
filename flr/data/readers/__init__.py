"""One module a dataset. Each knows that set's on-disk forms and nothing else, and returns a FaceTable."""
