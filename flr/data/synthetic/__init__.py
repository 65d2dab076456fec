"""Procedural faces with exact 68 iBUG landmarks: no photo and no learned statistic inside."""

from flr.data.synthetic.renderer import Face, render

__all__ = ["Face", "render"]
