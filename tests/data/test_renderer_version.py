"""Rendered faces are those of `RENDERER_VERSION`: its number is their identity, so a change of them must change it.

After a wanted change raise the number and write the stored faces anew: ``python -m tests.data.test_renderer_version``.
"""

from pathlib import Path

import numpy as np

from flr.data.synthetic.renderer import RENDERER_VERSION, render

STORED = Path(__file__).with_name("rendered.npz")
COUNT, SIZE = 6, 48
# CPUs differ by 1.5e-5 px in the points, and by no pixel in all trials; the smallest change worth a name is far above.
PIXELS, LEVELS = 1e-3, 1


def faces() -> dict[str, np.ndarray]:
    found = [render(0, i, SIZE, channels) for channels in (1, 3) for i in range(COUNT)]
    return {
        "version": np.array(RENDERER_VERSION),
        "points": np.stack([face.points for face in found]),
        "visible": np.stack([face.visible for face in found]),
        "grey": np.stack([face.image for face in found[:COUNT]]),
        "colour": np.stack([face.image for face in found[COUNT:]]),
    }


def test_the_faces_are_those_of_the_version() -> None:
    remedy = f"; if that is wanted, raise RENDERER_VERSION and store them anew (see {Path(__file__).name})"
    now = faces()
    with np.load(STORED) as stored:
        assert int(stored["version"]) == RENDERER_VERSION, "the stored faces are of another version" + remedy
        np.testing.assert_allclose(now["points"], stored["points"], atol=PIXELS, err_msg="points moved" + remedy)
        assert (now["visible"] != stored["visible"]).mean() < 0.005, "other points are visible" + remedy
        for kind in ("grey", "colour"):
            apart = np.abs(now[kind].astype(int) - stored[kind].astype(int))
            assert (apart > LEVELS).mean() < 1e-4, f"{kind} pixels changed" + remedy


if __name__ == "__main__":
    np.savez_compressed(STORED, **faces())
