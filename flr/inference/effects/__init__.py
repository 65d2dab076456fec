"""Effects: images changed by the landmarks of their faces.

An effect takes an image and one face's points and returns a new image. It works in the face's own window, so that a large
image costs no more than its copy. A face whose points span no area, or are not finite, is left as it is.
"""

from flr.inference.effects.base import Effect, apply
from flr.inference.effects.blur import Blur
from flr.inference.effects.mask import LABELS, Mask
from flr.inference.effects.overlay import Overlay
from flr.inference.effects.paint import Paint

__all__ = ["LABELS", "Blur", "Effect", "Mask", "Overlay", "Paint", "apply"]
