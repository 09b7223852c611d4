"""Promise 3 for sharded weights: a sharded checkpoint is complete or is not a checkpoint."""

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

import easytorch
from easytorch import FileError, FullySharded, Model
from easytorch.callbacks import BackupAndRestore, Callback, EarlyStopping, ModelCheckpoint
from easytorch.checkpoint import files, rotation
from tests.distributed.test_resume import CrashAfter, SimulatedCrash
from tests.many import furthest, run_ranks
from tests.strategies.test_fsdp import Blocks, X, Y, compiled_model, weights_of

PACKAGE = Path(easytorch.__file__).parent


def train(folder, steps, size=6, strategy="fsdp", callbacks=(), **options):
    """Train three epochs or ``steps`` updates, resume from ``folder``, and return weights, losses and the resumed state."""
    model = compiled_model(strategy)
    backup = BackupAndRestore(folder, **({"save_freq": 1, "delete_checkpoint": False} | options))
    best = EarlyStopping("loss", patience=9, restore_best_weights=True)
    plug = [CrashAfter(steps)] if steps else []
    starts = []
    recorder = Watch(starts)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*differ in the last bits.*")
        try:
            model.fit(
                X.double(),
                Y,
                epochs=3,
                batch_size=size,
                callbacks=[backup, best, recorder, *callbacks, *plug],
                verbose=0,
            )
        except SimulatedCrash:
            return None
    return weights_of(model), model.history["loss"], starts[0]


class Watch(Callback):
    """Records the full state of the model when the run resumes."""

    priority = 26

    def __init__(self, starts):
        self.starts = starts

    def on_restore(self):
        self.look(self.model)

    def state_dict(self):
        return {}  # the records of the stopped run do not come back

    def look(self, model):
        state = model.strategy.checkpoints.gather(model.optimizer.state_dict()["state"])
        moments = {f"{i} {name}": value for i, values in state.items() for name, value in values.items()}
        numbers = {name: value.clone() for name, value in (weights_of(model) | moments).items()}
        self.starts.append((model.state.step, numbers))


def paths_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_each_rank_writes_shards_and_an_index_file_lists_them(tmp_path):
    run_ranks(train, tmp_path, 2)
    assert paths_in(tmp_path) == [
        f"step-000000000{step}{name}"
        for step in (1, 2)
        for name in (".pt", ".shards-0", ".shards-0/00000.pt", ".shards-0/00001.pt")
    ]
    index = files.read_model(rotation.step_path(tmp_path, 2))
    assert index["module"] == dict.fromkeys(Blocks().state_dict())
    shards = [files.read(path)["tensors"] for path in sorted((tmp_path / "step-0000000002.shards-0").iterdir())]
    numbers = sum(value.numel() for value in Blocks().state_dict().values())
    # Adam has two moments for each parameter.
    assert sum(tensor.numel() for shard in shards for tensor in shard) == 3 * numbers


@pytest.mark.distributed
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_same_world_size_resumes_mid_epoch_bit_for_bit(steps, tmp_path):
    (expected, losses, _), *_ = run_ranks(train, tmp_path / "complete", None, 6, processes=2)
    run_ranks(train, tmp_path / "stopped", steps)
    for weights, again, (step, _) in run_ranks(train, tmp_path / "stopped", None):
        assert step == steps
        assert furthest(weights, expected) == 0
        assert again == losses


@pytest.mark.distributed
def test_shards_of_three_ranks_are_read_by_any_world_size(tmp_path):
    run_ranks(train, tmp_path / "run", 4, processes=3)
    starts = []
    for count in (3, 2, 1):
        shutil.copytree(tmp_path / "run", tmp_path / str(count))
        starts += [start for _, _, start in run_ranks(train, tmp_path / str(count), None, processes=count)]
    starts.append(train(tmp_path / "run", None, 6, "one")[2])
    for step, numbers in starts:
        assert step == 4
        assert furthest(numbers, starts[0][1]) == 0


def load_model(strategy, folder):
    model = compiled_model(strategy).load(folder)
    weights = compiled_model(strategy).load_weights(rotation.list_checkpoints(folder)[0])
    return model.state.step, weights_of(model), weights_of(weights)


@pytest.mark.distributed
def test_load_reads_a_sharded_checkpoint(tmp_path):
    run_ranks(train, tmp_path, 3, processes=3)
    step, alone, weights = load_model("one", tmp_path)
    assert step == 3
    assert furthest(alone, weights) == 0
    for name in ("fsdp", "ddp"):
        assert all(
            furthest(alone, other) == 0 for result in run_ranks(load_model, name, tmp_path) for other in result[1:]
        )


class DelayedWrite:
    """Replaces ``files.write``, and waits until the write is released."""

    def __init__(self, monkeypatch):
        self.write, self.released = files.write, threading.Event()
        monkeypatch.setattr(files, "write", self)

    def __call__(self, path, content):
        assert self.released.wait(30)
        return self.write(path, content)


def train_during_write(folder):
    model = compiled_model("fsdp")
    backup = BackupAndRestore(folder, save_freq=2, delete_checkpoint=False)
    seen = {}

    class ReleaseWrite(Callback):
        priority = 20

        def on_train_batch_end(self, batch, logs=None):
            step = self.model.state.step
            seen[step] = weights_of(self.model), [path.name for path in rotation.list_checkpoints(folder)]
            if step == 3:
                delayed.released.set()

    with pytest.MonkeyPatch.context() as monkeypatch:
        delayed = DelayedWrite(monkeypatch)
        model.fit(X.double(), Y, epochs=1, batch_size=6, callbacks=[backup, ReleaseWrite()], verbose=0)
    return seen


@pytest.mark.distributed
def test_training_continues_during_a_write_without_changing_it(tmp_path):
    seen, _ = run_ranks(train_during_write, tmp_path)
    assert [names for _, names in seen.values()][:3] == [[], [], []]
    assert rotation.step_path(tmp_path, 2).name in seen[4][1]
    older = compiled_model("one").load(rotation.step_path(tmp_path, 2))
    assert furthest(weights_of(older), seen[2][0]) == 0
    assert furthest(weights_of(older), seen[3][0]) > 0


def train_and_kill(folder, rank, moment):
    """Kill a rank in the middle of its second shard, or between the second shard and the index file."""
    real = files.write

    def write(path, content):
        is_shard = path.parent.name.startswith("step-0000000002.shards")
        if moment == "a shard" and is_shard and int(path.stem) == rank:
            (path.parent / f".{path.name}.incomplete.tmp").write_bytes(b"PK incomplete")
            os.kill(os.getpid(), signal.SIGKILL)
        if moment == "the index file" and path.name == "step-0000000002.pt":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, content)

    files.write = write
    train(folder, None)


@pytest.mark.parametrize(("rank", "moment"), [(0, "a shard"), (1, "a shard"), (0, "the index file")])
@pytest.mark.distributed
def test_kill_during_write_resumes_from_the_previous_checkpoint(rank, moment, tmp_path):
    (expected, losses, _), *_ = run_ranks(train, tmp_path / "complete", None)
    with pytest.raises(RuntimeError, match=r"failed; launch\(\) stopped the other ranks"):
        run_ranks(train_and_kill, tmp_path / "run", rank, moment)
    assert [path.name for path in rotation.list_checkpoints(tmp_path / "run")] == ["step-0000000001.pt"]
    assert (tmp_path / "run" / "step-0000000002.shards-0").exists()
    for weights, again, (step, _) in run_ranks(train, tmp_path / "run", None):
        assert step == 1
        assert furthest(weights, expected) == 0
        assert again == losses
    assert {path.split("/")[0] for path in paths_in(tmp_path / "run")} == {
        f"step-00000000{step}.{kind}" for step in (14, 15) for kind in ("pt", "shards-0")
    }


def train_on_full_disk(folder, failing):
    """Return the warnings, the error and the result of a run in which rank 1 cannot write the shards of some updates."""
    real, rank = files.write, int(os.environ["RANK"])

    def write(path, content):
        if rank == 1 and any(path.parent.name.startswith(f"step-{step:010}") for step in failing):
            raise OSError(errno.ENOSPC, f"Cannot write {path.name!r}: No space left on device.")
        return real(path, content)

    files.write = write
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            error, result = None, train(folder, None, 9)
        except OSError as failure:
            error, result = str(failure), None
    of_program = [warning for warning in caught if not warning.filename.startswith(str(PACKAGE))]
    return [str(warning.message) for warning in of_program], error, result


@pytest.mark.distributed
def test_full_disk_on_one_rank_warns_once_and_training_continues(tmp_path):
    (expected, losses, _), *_ = run_ranks(train, tmp_path / "complete", None, 9)
    (messages, error, result), (other_messages, other_error, _) = run_ranks(
        train_on_full_disk, tmp_path / "run", (2, 5)
    )
    assert ["No space left on device" in message for message in messages] == [True, True]
    assert not other_messages
    assert error is other_error is None
    assert furthest(result[0], expected) == 0
    assert result[1] == losses
    assert paths_in(tmp_path / "run") == paths_in(tmp_path / "complete")


@pytest.mark.distributed
def test_every_rank_raises_if_the_last_checkpoint_fails(tmp_path):
    for _, error, _ in run_ranks(train_on_full_disk, tmp_path, (9,)):
        assert "No space left on device" in error
    assert [path.name for path in rotation.list_checkpoints(tmp_path)] == ["step-0000000008.pt", "step-0000000007.pt"]
    run_ranks(train, tmp_path, None, 9)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shard: shard.unlink(), "is missing"),
        (lambda shard: shard.write_bytes(shard.read_bytes()[:-1]), "has changed"),
        (lambda shard: shard.write_bytes(shard.read_bytes()[:900] + b"!" + shard.read_bytes()[901:]), "has changed"),
        (lambda shard: shutil.copy(shard.parents[1] / "step-0000000002.shards-0" / shard.name, shard), "has changed"),
    ],
    ids=["missing", "truncated", "changed", "of another checkpoint"],
)
def test_checkpoint_with_a_missing_or_changed_shard_is_skipped(damage, message, tmp_path):
    run_ranks(train, tmp_path, 3)
    damage(tmp_path / "step-0000000003.shards-0" / "00001.pt")
    with pytest.warns(UserWarning, match=rf"{message}.*The older checkpoint 'step-0000000002\.pt' is used"):
        path, _ = rotation.read_newest(tmp_path)
    with pytest.raises(FileError, match=message):
        compiled_model("one").load(rotation.step_path(tmp_path, 3))
    assert path == rotation.step_path(tmp_path, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda shards: shards.update(folder="../step-0000000001.shards-0"),
            "received '../step-0000000001.shards-0'",
        ),
        (lambda shards: shards.update(folder="step-0000000009.shards-0"), "the name of its shard folder"),
        (lambda shards: shards["files"][0].__setitem__(0, "../00000.pt"), "is missing"),
        (lambda shards: shards["tensors"][0].update(shape=[1 << 40]), "more memory than its shards"),
        (lambda shards: shards["tensors"][0].update(shape=[-1]), "is not a valid model"),
        (lambda shards: shards["tensors"][0]["chunks"].fill_(77), "is not a valid model"),
        (lambda shards: shards["tensors"][0].pop("dtype"), "is not a valid model"),
        (lambda shards: shards["files"].clear(), "more memory than its shards"),
        (lambda shards: shards["tensors"].extend(shards["tensors"] * 30), "more memory than its shards"),
        (
            lambda shards: shards["tensors"][0].update(chunks=shards["tensors"][0]["chunks"][:1]),
            "chunks of the tensor .* are missing",
        ),
        (lambda shards: shards.clear(), "the name of its shard folder"),
    ],
)
@pytest.mark.distributed
def test_invalid_index_file_is_refused(change, message, tmp_path):
    run_ranks(train, tmp_path, 2)
    path = rotation.step_path(tmp_path, 2)
    content = files.read(path)
    change(content["shards"])
    files.write(path, content)
    model = compiled_model("one")
    before = weights_of(model)
    before = {name: value.clone() for name, value in before.items()}
    with pytest.raises(FileError, match=message):
        model.load(path)
    assert furthest(weights_of(model), before) == 0


def test_unused_shards_are_deleted_and_archived_shards_stay(tmp_path):
    run_ranks(train, tmp_path, 3)
    (tmp_path / "step-0000000003.shards-1").mkdir()
    (tmp_path / "step-0000000007.shards-0").mkdir()
    run_ranks(train, tmp_path / "step-0000000002.pt", 3)
    rotation.remove_stale(tmp_path)
    names = {path.split("/")[0] for path in paths_in(tmp_path)}
    steps = {f"step-000000000{step}.{kind}" for step, kind in ((2, "pt"), (2, "shards-0"), (3, "pt"), (3, "shards-2"))}
    assert names == steps | {"step-0000000003.pt.archived", "step-0000000003.shards-0"}
    again = files.read_model(tmp_path / "step-0000000003.pt.archived")
    assert again["shards"]["folder"] == "step-0000000003.shards-0"


@pytest.mark.distributed
def test_finished_sharded_run_deletes_its_folder_on_request(tmp_path):
    run_ranks(train_and_delete, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def train_and_delete(folder):
    train(folder, None, 9, delete_checkpoint=True)


class StopOnRank1(Callback):
    def on_train_batch_end(self, batch, logs=None):
        if self.model.state.step == 3 and self.model.strategy.group.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)


def train_until_ctrl_c(folder):
    model = compiled_model("fsdp")
    options = {"callbacks": [StopOnRank1()], "resume": folder, "on_interrupt": "return", "verbose": 0}
    model.fit(X.double(), Y, epochs=3, batch_size=6, **options)
    return model.history.interrupted, model.state.step, weights_of(model)


@pytest.mark.distributed
def test_last_checkpoint_is_complete_after_ctrl_c(tmp_path):
    (interrupted, step, weights), _ = run_ranks(train_until_ctrl_c, tmp_path)
    assert interrupted
    path, content = rotation.read_newest(tmp_path)
    assert content["state"]["step"] == step
    assert furthest(weights_of(compiled_model("one").load(path)), weights) == 0


def train_with_plain_files(folder):
    model = compiled_model(FullySharded("cpu", unit=40, sharded_checkpoints=False))
    best = ModelCheckpoint(folder / "best.pt", "loss", save_best_only=True)
    model.fit(X.double(), Y, epochs=1, batch_size=6, resume=folder, callbacks=[best], verbose=0)
    return weights_of(model)


@pytest.mark.distributed
def test_sharded_checkpoints_false_writes_one_plain_file(tmp_path):
    weights, _ = run_ranks(train_with_plain_files, tmp_path)
    assert paths_in(tmp_path) == ["best.pt", "step-0000000005.pt"]
    for name in ("best.pt", "step-0000000005.pt"):
        plain = torch.load(tmp_path / name, weights_only=True)
        assert furthest(plain["module"], weights) == 0


def train_on_full_disk_by_minutes(folder):
    """Let rank 0 fail to write one plain file when ``minutes`` decides: the other ranks must learn of it."""
    real = files.write
    failures = [1]

    def write(path, content):
        if failures.pop() if failures else 0:
            raise OSError(errno.ENOSPC, "No space left on device.")
        return real(path, content)

    files.write = write
    model = compiled_model("ddp")
    backup = BackupAndRestore(folder, save_freq=100, minutes=1e-9)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*No space left on device.*")
        model.fit(X.double(), Y, epochs=2, batch_size=6, callbacks=[backup], verbose=0)
    return model.state.step


@pytest.mark.distributed
def test_no_rank_blocks_if_rank_0_cannot_write(tmp_path):
    assert run_ranks(train_on_full_disk_by_minutes, tmp_path / "run") == [10, 10]


def test_sharded_checkpoint_contains_no_pickled_objects(tmp_path):
    run_ranks(train, tmp_path, 1)
    for path in Path(tmp_path).rglob("*.pt"):
        assert torch.load(path, weights_only=True)
    assert not list(Path(tmp_path).rglob(".metadata"))
    assert isinstance(compiled_model("one").load(tmp_path), Model)
