"""Promise 3, of processes that keep a part of the weights each: a checkpoint in parts is whole or it is none."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import warnings
from pathlib import Path

import pytest
import torch

from easytorch import FileError, FullySharded, Model
from easytorch.callbacks import BackupAndRestore, Callback, EarlyStopping, ModelCheckpoint
from easytorch.checkpoint import files, rotation
from tests.distributed.test_resume import PulledPlug, PullPlug
from tests.many import furthest, together
from tests.strategies.test_fsdp import Blocks, X, Y, compiled, weights_of


def kept(folder, steps, size=6, strategy="fsdp", callbacks=(), **options):
    """Train three epochs, or so many updates, and return all numbers; the folder is all that is known of earlier runs."""
    model = compiled(strategy)
    backup = BackupAndRestore(folder, **({"save_freq": 1, "delete_checkpoint": False} | options))
    best = EarlyStopping("loss", patience=9, restore_best_weights=True)
    plug = [PullPlug(steps)] if steps else []
    begun = []
    watch = Watch(begun)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not with the same bits.*")
        try:
            model.fit(
                X.double(), Y, epochs=3, batch_size=size, callbacks=[backup, best, watch, *callbacks, *plug], verbose=0
            )
        except PulledPlug:
            return None
    return weights_of(model), model.history["loss"], begun[0]


class Watch(Callback):
    """Notes what the model was when the run went on, whole."""

    priority = 26

    def __init__(self, begun):
        self.begun = begun

    def on_restore(self):
        self.look(self.model)

    def look(self, model):
        state = model.strategy.gather_full(model.optimizer.state_dict()["state"])
        moments = {f"{i} {name}": value for i, values in state.items() for name, value in values.items()}
        numbers = {name: value.clone() for name, value in (weights_of(model) | moments).items()}
        self.begun.append((model.state.step, numbers))


def parts_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_each_process_writes_its_own_and_a_small_file_tells_what_lies_where(tmp_path):
    together(kept, tmp_path, 2)
    assert parts_in(tmp_path) == [
        f"step-000000000{step}{name}"
        for step in (1, 2)
        for name in (".parts-0", ".parts-0/00000.pt", ".parts-0/00001.pt", ".pt")
    ]
    small = files.read_model(rotation.step_path(tmp_path, 2))
    assert small["module"] == dict.fromkeys(Blocks().state_dict())
    parts = [files.read(one)["tensors"] for one in sorted((tmp_path / "step-0000000002.parts-0").iterdir())]
    numbers = sum(value.numel() for value in Blocks().state_dict().values())
    assert sum(one.numel() for part in parts for one in part) == 3 * numbers  # with two moments of each


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_in_the_middle_of_an_epoch_as_many_processes_go_on_bit_for_bit(steps, tmp_path):
    (whole, losses, _), *_ = together(kept, tmp_path / "whole", None, 6, processes=2)
    together(kept, tmp_path / "stopped", steps)
    for weights, again, (step, _) in together(kept, tmp_path / "stopped", None):
        assert step == steps
        assert furthest(weights, whole) == 0
        assert again == losses


def test_what_three_processes_have_written_is_read_by_two_by_one_and_by_a_process_alone(tmp_path):
    together(kept, tmp_path / "run", 4, processes=3)
    found = []
    for count in (3, 2, 1):
        shutil.copytree(tmp_path / "run", tmp_path / str(count))
        found += [one[2] for one in together(kept, tmp_path / str(count), None, processes=count)]
    found.append(kept(tmp_path / "run", None, 6, "one")[2])
    for step, numbers in found:
        assert step == 4
        assert furthest(numbers, found[0][1]) == 0


def loaded(strategy, folder):
    model = compiled(strategy).load(folder)
    weights = compiled(strategy).load_weights(rotation.list_checkpoints(folder)[0])
    return model.state.step, weights_of(model), weights_of(weights)


def test_load_takes_a_checkpoint_in_parts_like_any_other(tmp_path):
    together(kept, tmp_path, 3, processes=3)
    step, alone, weights = loaded("one", tmp_path)
    assert step == 3
    assert furthest(alone, weights) == 0
    for name in ("fsdp", "ddp"):
        assert all(furthest(alone, one) == 0 for pair in together(loaded, name, tmp_path) for one in pair[1:])


class Held:
    """In place of ``files.write``: holds the parts back until they are let go."""

    def __init__(self, monkeypatch):
        self.write, self.free = files.write, threading.Event()
        monkeypatch.setattr(files, "write", self)

    def __call__(self, path, content):
        assert self.free.wait(30)
        return self.write(path, content)


def written_beside(folder):
    model = compiled("fsdp")
    backup = BackupAndRestore(folder, save_freq=2, delete_checkpoint=False)
    seen = {}

    class LetGo(Callback):
        priority = 20

        def on_train_batch_end(self, batch, logs=None):
            step = self.model.state.step
            seen[step] = weights_of(self.model), [path.name for path in rotation.list_checkpoints(folder)]
            if step == 3:
                held.free.set()

    with pytest.MonkeyPatch.context() as monkeypatch:
        held = Held(monkeypatch)
        model.fit(X.double(), Y, epochs=1, batch_size=6, callbacks=[backup, LetGo()], verbose=0)
    return seen


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(tmp_path):
    seen, _ = together(written_beside, tmp_path)
    assert [names for _, names in seen.values()][:3] == [[], [], []]
    assert rotation.step_path(tmp_path, 2).name in seen[4][1]
    older = compiled("one").load(rotation.step_path(tmp_path, 2))
    assert furthest(weights_of(older), seen[2][0]) == 0
    assert furthest(weights_of(older), seen[3][0]) > 0


def killed_while_writing(folder, rank, moment):
    """Kill one process when its part of the second checkpoint is half written, or is but the small file is not."""
    real = files.write

    def half(path, content):
        part = path.parent.name.startswith("step-0000000002.parts")
        if moment == "a part" and part and int(path.stem) == rank:
            (path.parent / f".{path.name}.half.tmp").write_bytes(b"PK half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        if moment == "the small file" and path.name == "step-0000000002.pt":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, content)

    files.write = half
    kept(folder, None)


@pytest.mark.parametrize(("rank", "moment"), [(0, "a part"), (1, "a part"), (0, "the small file")])
def test_killed_while_it_is_written_the_one_before_is_taken_and_what_is_left_is_swept(rank, moment, tmp_path):
    (whole, losses, _), *_ = together(kept, tmp_path / "whole", None)
    with pytest.raises(RuntimeError, match=r"failed; launch\(\) stopped the other ranks"):
        together(killed_while_writing, tmp_path / "run", rank, moment)
    assert [path.name for path in rotation.list_checkpoints(tmp_path / "run")] == ["step-0000000001.pt"]
    assert (tmp_path / "run" / "step-0000000002.parts-0").exists()
    for weights, again, (step, _) in together(kept, tmp_path / "run", None):
        assert step == 1
        assert furthest(weights, whole) == 0
        assert again == losses
    assert {path.split("/")[0] for path in parts_in(tmp_path / "run")} == {
        f"step-00000000{step}.{kind}" for step in (14, 15) for kind in ("pt", "parts-0")
    }


def full_disk(folder, failing):
    """Return the warnings, the error and the files where the parts of some updates find the disk of process 1 full."""
    real, rank = files.write, int(os.environ["RANK"])

    def write(path, content):
        if rank == 1 and any(path.parent.name.startswith(f"step-{step:010}") for step in failing):
            raise OSError(errno.ENOSPC, f"Cannot write {path.name!r}: No space left on device.")
        return real(path, content)

    files.write = write
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            told, result = None, kept(folder, None, 9)
        except OSError as error:
            told, result = str(error), None
    return [str(one.message) for one in caught if "easytorch" not in one.filename], told, result


def test_a_disk_that_is_full_for_one_process_is_one_warning_and_training_goes_on(tmp_path):
    (whole, losses, _), *_ = together(kept, tmp_path / "whole", None, 9)
    (heard, told, result), (silent, also, _) = together(full_disk, tmp_path / "run", (2, 5))
    assert [one.split(". ", 1)[1] for one in heard] == ["Training goes on; the next checkpoint is tried again."] * 2
    assert "No space left on device" in heard[0]
    assert not silent
    assert told is also is None
    assert furthest(result[0], whole) == 0
    assert result[1] == losses
    assert parts_in(tmp_path / "run") == parts_in(tmp_path / "whole")  # nothing is left of those that failed


def test_where_the_last_checkpoint_cannot_be_written_all_processes_say_so_after_training(tmp_path):
    for _, told, _ in together(full_disk, tmp_path, (9,)):
        assert "No space left on device" in told
    assert [path.name for path in rotation.list_checkpoints(tmp_path)] == ["step-0000000008.pt", "step-0000000007.pt"]
    together(kept, tmp_path, None, 9)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda part: part.unlink(), "is missing"),
        (lambda part: part.write_bytes(part.read_bytes()[:-1]), "has changed"),
        (lambda part: part.write_bytes(part.read_bytes()[:900] + b"!" + part.read_bytes()[901:]), "has changed"),
        (lambda part: shutil.copy(part.parents[1] / "step-0000000002.parts-0" / part.name, part), "has changed"),
    ],
    ids=["missing", "cut off", "changed", "of another checkpoint"],
)
def test_a_checkpoint_with_a_part_that_is_not_its_own_is_passed_over(damage, told, tmp_path):
    together(kept, tmp_path, 3)
    damage(tmp_path / "step-0000000003.parts-0" / "00001.pt")
    with pytest.warns(UserWarning, match=rf"{told}.*Passed over, for the older 'step-0000000002\.pt'"):
        path, _ = rotation.read_newest(tmp_path)
    with pytest.raises(FileError, match=told):
        compiled("one").load(rotation.step_path(tmp_path, 3))
    assert path == rotation.step_path(tmp_path, 2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda table: table.update(folder="../step-0000000001.parts-0"),
            "names '../step-0000000001.parts-0' as the folder",
        ),
        (lambda table: table.update(folder="step-0000000009.parts-0"), "as the folder"),
        (lambda table: table["files"][0].__setitem__(0, "../00000.pt"), "is missing"),
        (lambda table: table["tensors"][0].update(shape=[1 << 40]), "more memory than its parts"),
        (lambda table: table["tensors"][0].update(shape=[-1]), "is not a whole model"),
        (lambda table: table["tensors"][0]["chunks"].fill_(77), "is not a whole model"),
        (lambda table: table["tensors"][0].pop("dtype"), "is not a whole model"),
        (lambda table: table["files"].clear(), "more memory than its parts"),
        (lambda table: table["tensors"].extend(table["tensors"] * 30), "more memory than its parts"),
        (lambda table: table["tensors"][0].update(chunks=table["tensors"][0]["chunks"][:1]), "not all of"),
        (lambda table: table.clear(), "as the folder"),
    ],
)
def test_a_table_that_nobody_wrote_is_refused(change, told, tmp_path):
    together(kept, tmp_path, 2)
    path = rotation.step_path(tmp_path, 2)
    content = files.read(path)
    change(content["parts"])
    files.write(path, content)
    model = compiled("one")
    before = weights_of(model)
    before = {name: value.clone() for name, value in before.items()}
    with pytest.raises(FileError, match=told):
        model.load(path)
    assert furthest(weights_of(model), before) == 0


def test_parts_of_no_checkpoint_are_swept_and_those_of_a_way_not_taken_stay(tmp_path):
    together(kept, tmp_path, 3)
    (tmp_path / "step-0000000003.parts-1").mkdir()
    (tmp_path / "step-0000000007.parts-0").mkdir()
    together(kept, tmp_path / "step-0000000002.pt", 3)
    rotation.remove_stale(tmp_path)
    names = {path.split("/")[0] for path in parts_in(tmp_path)}
    steps = {f"step-000000000{step}.{kind}" for step, kind in ((2, "pt"), (2, "parts-0"), (3, "pt"), (3, "parts-2"))}
    assert names == steps | {"step-0000000003.pt.aside", "step-0000000003.parts-0"}
    again = files.read_model(tmp_path / "step-0000000003.pt.aside")
    assert again["parts"]["folder"] == "step-0000000003.parts-0"


def test_a_run_in_parts_that_came_to_its_end_leaves_nothing_if_that_is_wanted(tmp_path):
    together(deleting, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def deleting(folder):
    kept(folder, None, 9, delete_checkpoint=True)


class Stop(Callback):
    def on_train_batch_end(self, batch, logs=None):
        if self.model.state.step == 3 and self.model.strategy.group.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)


def interrupted(folder):
    model = compiled("fsdp")
    model.fit(X.double(), Y, epochs=3, batch_size=6, callbacks=[Stop()], resume=folder, verbose=0)
    return model.history.interrupted, model.state.step, weights_of(model)


def test_after_ctrl_c_the_last_checkpoint_is_whole_when_fit_returns(tmp_path):
    (ended, step, weights), _ = together(interrupted, tmp_path)
    assert ended
    path, content = rotation.read_newest(tmp_path)
    assert content["state"]["step"] == step
    assert furthest(weights_of(compiled("one").load(path)), weights) == 0


def in_one_file(folder):
    model = compiled(FullySharded("cpu", unit=40, sharded_checkpoints=False))
    best = ModelCheckpoint(folder / "best.pt", "loss", save_best_only=True)
    model.fit(X.double(), Y, epochs=1, batch_size=6, resume=folder, callbacks=[best], verbose=0)
    return weights_of(model)


def test_a_run_is_kept_in_one_plain_file_where_that_is_wanted(tmp_path):
    weights, _ = together(in_one_file, tmp_path)
    assert parts_in(tmp_path) == ["best.pt", "step-0000000005.pt"]
    for name in ("best.pt", "step-0000000005.pt"):
        plain = torch.load(tmp_path / name, weights_only=True)
        assert furthest(plain["module"], weights) == 0


def on_full_disk_by_minutes(folder):
    """Have process 0 fail to write one plain file while the clock says when: the others must hear of it."""
    real = files.write
    failures = [1]

    def write(path, content):
        if failures.pop() if failures else 0:
            raise OSError(errno.ENOSPC, "No space left on device.")
        return real(path, content)

    files.write = write
    model = compiled("ddp")
    backup = BackupAndRestore(folder, save_freq=100, minutes=1e-9)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*No space left on device.*")
        model.fit(X.double(), Y, epochs=2, batch_size=6, callbacks=[backup], verbose=0)
    return model.state.step


def test_where_process_0_cannot_write_the_others_know_and_nobody_waits_in_vain(tmp_path):
    assert together(on_full_disk_by_minutes, tmp_path / "run") == [10, 10]


def test_the_folder_of_a_model_with_parts_needs_no_pickle(tmp_path):
    together(kept, tmp_path, 1)
    for path in Path(tmp_path).rglob("*.pt"):
        assert torch.load(path, weights_only=True)
    assert not list(Path(tmp_path).rglob(".metadata"))
    assert isinstance(compiled("one").load(tmp_path), Model)
