"""The face detector: scenes of rendered people, its network and its training. No photo takes part."""
