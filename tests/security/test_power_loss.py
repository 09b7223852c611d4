"""Promise 4 for power loss: it never destroys a file and never loses a file that was written."""

from __future__ import annotations

import pytest
import torch

from easytorch.checkpoint import files, rotation
from tests.security.common_damage import FOLDERS_SYNC, content_of_step
from tests.security.damage import PowerCut

pytestmark = pytest.mark.security


def cut_while_replacing(folder, write=files.write, writes=4, states=2500, **options):
    """Replace a file repeatedly with power cuts. Return how often it was destroyed and how often it was lost."""
    folder.mkdir()
    cut, images = PowerCut(folder, **options), []
    with cut.watching():
        cut.look()
        for step in range(writes):
            write(folder / "model.pt", content_of_step(step))
            images.append((folder / "model.pt").read_bytes())
            cut.acknowledge()
    destroyed = lost = 0
    for moment, left in cut.states(states):
        data = left.get("model.pt")
        destroyed += data is not None and data not in images
        lost += moment.acknowledged > 0 and data not in images[moment.acknowledged - 1 :]
    assert len(cut.moments) >= 2 * writes
    return destroyed, lost


def cut_while_rotating(folder, keep=1, writes=5, states=2500, clean_up=None, **options):
    """Write checkpoints and delete old ones, with power cuts. Return how many were destroyed or lost, and examples."""
    folder.mkdir()
    cut, images = PowerCut(folder, **options), {}
    with cut.watching():
        cut.look()
        for step in range(1, writes + 1):
            path = rotation.step_path(folder, step)
            if clean_up is not None:
                clean_up(folder)
            files.write(path, content_of_step(step))
            images[path.name] = path.read_bytes()
            cut.acknowledge()
            rotation.delete_old(folder, keep)
    destroyed, lost, examples = 0, 0, []
    for number, (moment, left) in enumerate(cut.states(states)):
        names = [name for name in left if not name.startswith(".")]
        intact = [int(name[5:15]) for name in names if left[name] == images[name]]
        destroyed += len(intact) < len(names)
        lost += max(intact, default=0) < moment.acknowledged
        if number % 60 == 0 and moment.acknowledged:
            examples.append((moment, left))
    return destroyed, lost, examples


@FOLDERS_SYNC
def test_power_loss_never_destroys_or_loses_a_written_file(tmp_path):
    assert cut_while_replacing(tmp_path / "a") == (0, 0)


@FOLDERS_SYNC
@pytest.mark.parametrize("keep", [1, 2])
def test_power_loss_never_loses_a_written_checkpoint(keep, tmp_path):
    destroyed, lost, examples = cut_while_rotating(tmp_path / "a", keep)
    assert (destroyed, lost) == (0, 0)
    # Read the remaining files with the library itself.
    for number, (moment, left) in enumerate(examples):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in left.items():
            (folder / name).write_bytes(data)
        rotation.remove_stale(folder)
        assert rotation.read_newest(folder)[1]["step"] >= moment.acknowledged
        assert all(path.name.startswith("step-") for path in folder.iterdir())


@FOLDERS_SYNC
def test_simulation_detects_every_missing_sync(tmp_path):
    destroyed, _ = cut_while_replacing(tmp_path / "a", ignored_sync="file")
    assert destroyed > 100
    _, lost = cut_while_replacing(tmp_path / "b", ignored_sync="folder")
    assert lost > 100
    destroyed, _ = cut_while_replacing(tmp_path / "c", write=lambda path, content: torch.save(content, path))
    assert destroyed > 100
    _, lost, _ = cut_while_rotating(tmp_path / "d", ignored_sync="folder")
    assert lost > 100
    _, lost, _ = cut_while_rotating(tmp_path / "e", clean_up=lambda folder: rotation.delete_old(folder, 0))
    assert lost > 100
