"""The detector's loss and its measures by hand, and a training from the command to a file that detects."""

import numpy as np
import pytest
import torch

from flr.data.finders.network import FaceNetwork
from flr.detection.module import judge, losses
from tests.conftest import Workspace

TINY = (
    "data.scenes=4", "data.validation_scenes=3", "data.batches=2", "data.batch_size=2", "model.stem=[4,4]", "model.width=8",
    "model.depth=1", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1",
)  # fmt: skip


def test_the_loss_of_a_face_and_of_the_background_by_hand() -> None:
    maps, targets = torch.zeros(1, 4, 1, 3), torch.zeros(1, 6, 1, 3)
    targets[0, 0, 0] = torch.tensor([1.0, 0.5, 0.0])  # the face, next to it, and a cell that does not count
    targets[0, 1, 0] = torch.tensor([1.0, 1.0, 0.0])
    targets[0, 2, 0, 0], targets[0, 3:, 0, 0] = 1, torch.tensor([0.05, 0.0, -1.0])
    heat, box = losses(maps, targets)
    # At a probability of a half, the face costs ln 2 / 4 and the cell next to it as much times (1 - .5)^4.
    assert float(heat) == pytest.approx(np.log(2) / 4 * (1 + 0.5**4))
    assert float(box) == pytest.approx(0.05**2 / 0.2 + (1 - 0.05))
    heat, box = losses(maps, torch.zeros(1, 6, 1, 3))
    assert float(heat) == float(box) == 0


def test_faces_are_found_near_their_centre_in_about_their_size() -> None:
    truth, ignored = np.array([[50.0, 50, 20], [100, 50, 20]]), np.array([[150.0, 50, 20]])
    faces = np.array([
        [52.0, 48, 24, 0.9], [55, 50, 20, 0.7],  # the first face, twice
        [100, 50, 40, 0.8],  # of the second one's place, but twice its size: neither found nor a false alarm
        [152, 50, 20, 0.6], [200, 50, 20, 0.5],  # one of which is a false alarm
    ])  # fmt: skip
    hits, false = judge(faces, truth, ignored)
    assert hits.tolist() == [0.9, 0] and false.tolist() == [0.5]
    hits, false = judge(np.zeros((0, 4)), truth, ignored)
    assert hits.tolist() == [0, 0] and not len(false)


@pytest.mark.long
def test_the_command_writes_a_file_that_detects(workspace: Workspace) -> None:
    shown = workspace.run("flr.train_detector", *TINY, "seed=3").stdout
    network = FaceNetwork(workspace.path / shown.splitlines()[-1].split()[1])
    run = workspace.only_run()
    assert network.metadata.trained["run"] == run.info.run_id and network.metadata.threshold == 0.88
    assert network(np.zeros((40, 64), np.uint8)).shape == (4, 5, 8)
    assert run.info.status == "FINISHED" and "val/recall" in run.data.metrics
    assert run.data.params["model.width"] == "8" and "hardware.cpu" in run.data.params


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optim.lr=-1", "optim: Invalid learning rate: -1"),
        ("trainer.devices=2", "trainer.devices: the detector trains on one device"),
        ("weights=nothing.ckpt", "weights=nothing.ckpt: cannot be read"),
    ],
)
def test_bad_input_starts_no_run(workspace: Workspace, word: str, said: str) -> None:
    assert said in workspace.refuse("flr.train_detector", *TINY, word)
    assert not (workspace.outputs / "runs").exists()
