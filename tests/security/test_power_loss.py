"""Promise 4: a file is whole or absent, a damaged one is refused, and none can do harm."""

from __future__ import annotations

import pytest
import torch

from easytorch.checkpoint import files, rotation
from tests.security.common_damage import FOLDERS_SYNC, _content
from tests.security.damage import PowerCut


def _cut_while_replacing(folder, write=files.write, writes=4, states=2500, **options):
    """Replace a file again and again, and cut the power: return how often it was destroyed, and how often lost."""
    folder.mkdir()
    cut, images = PowerCut(folder, **options), []
    with cut.watching():
        cut.look()
        for step in range(writes):
            write(folder / "model.pt", _content(step))
            images.append((folder / "model.pt").read_bytes())
            cut.acknowledge()
    destroyed = lost = 0
    for moment, left in cut.states(states):
        data = left.get("model.pt")
        destroyed += data is not None and data not in images
        lost += moment.acknowledged > 0 and data not in images[moment.acknowledged - 1 :]
    assert len(cut.moments) >= 2 * writes
    return destroyed, lost


def _cut_while_keeping(folder, keep=1, writes=5, states=2500, tidy=None, **options):
    """Write checkpoints and delete old ones, and cut the power."""
    folder.mkdir()
    cut, images = PowerCut(folder, **options), {}
    with cut.watching():
        cut.look()
        for step in range(1, writes + 1):
            path = rotation.step_path(folder, step)
            if tidy is not None:
                tidy(folder)
            files.write(path, _content(step))
            images[path.name] = path.read_bytes()
            cut.acknowledge()
            rotation.delete_old(folder, keep)
    destroyed, lost, examples = 0, 0, []
    for number, (moment, left) in enumerate(cut.states(states)):
        names = [name for name in left if not name.startswith(".")]
        whole = [int(name[5:15]) for name in names if left[name] == images[name]]
        destroyed += len(whole) < len(names)
        lost += max(whole, default=0) < moment.acknowledged
        if number % 60 == 0 and moment.acknowledged:
            examples.append((moment, left))
    return destroyed, lost, examples


@FOLDERS_SYNC
def test_power_loss_never_destroys_or_loses_a_written_file(tmp_path):
    assert _cut_while_replacing(tmp_path / "a") == (0, 0)


@FOLDERS_SYNC
@pytest.mark.parametrize("keep", [1, 2])
def test_power_loss_never_loses_a_written_checkpoint(keep, tmp_path):
    destroyed, lost, examples = _cut_while_keeping(tmp_path / "a", keep)
    assert (destroyed, lost) == (0, 0)
    for number, (moment, left) in enumerate(examples):  # as the library itself reads what is left
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in left.items():
            (folder / name).write_bytes(data)
        rotation.remove_stale(folder)
        assert rotation.read_newest(folder)[1]["step"] >= moment.acknowledged
        assert all(path.name.startswith("step-") for path in folder.iterdir())


@FOLDERS_SYNC
def test_simulation_detects_every_missing_sync(tmp_path):
    destroyed, _ = _cut_while_replacing(tmp_path / "a", deaf_to="file")
    assert destroyed > 100
    _, lost = _cut_while_replacing(tmp_path / "b", deaf_to="folder")
    assert lost > 100
    destroyed, _ = _cut_while_replacing(tmp_path / "c", write=lambda path, content: torch.save(content, path))
    assert destroyed > 100
    _, lost, _ = _cut_while_keeping(tmp_path / "d", deaf_to="folder")
    assert lost > 100
    _, lost, _ = _cut_while_keeping(tmp_path / "e", tidy=lambda folder: rotation.delete_old(folder, 0))
    assert lost > 100
