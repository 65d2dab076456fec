"""The web page of `flr.app`."""
