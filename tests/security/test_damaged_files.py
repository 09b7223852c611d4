"""Promise 4 for damaged files: none is read silently, and a run uses the previous checkpoint."""

from __future__ import annotations

import collections
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from easytorch import FileError, Model
from easytorch.callbacks import EMA, BackupAndRestore, LambdaCallback
from easytorch.checkpoint import files, rotation
from tests.loops import mlp, same_weights
from tests.security.common_damage import X, Y, is_intact, refusal_of
from tests.security.damage import MUTATORS, damaged, good_files, identical, model, run_variants

pytestmark = pytest.mark.security


def test_no_damaged_file_is_read_silently(tmp_path):
    tally = run_variants(600, tmp_path, seed=1)
    assert not tally.silent
    assert not tally.other
    assert tally.refused > 500
    assert min(tally.kinds.values()) >= 90


def test_battery_detects_a_reader_without_checks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "read", lambda path, device="cpu": read_without_checks(path))
    tally = run_variants(240, tmp_path, seed=1)
    assert tally.silent
    assert tally.other


def read_without_checks(path):
    if Path(path).suffix == ".safetensors":
        return pytest.importorskip("safetensors.torch").load_file(path)
    return torch.load(path, weights_only=True)


def test_safetensors_checksum_detects_every_changed_byte(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is optional")
    path = model().save_weights(tmp_path / "weights.safetensors")
    data, undetected = path.read_bytes(), []
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        try:
            files.read(path)
        except FileError:
            continue
        if position > 8 + int.from_bytes(data[:8], "little"):
            undetected.append(position)
    assert not undetected


def test_damage_of_checksum_key_and_value_is_refused(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is optional")
    path = model().save_weights(tmp_path / "weights.safetensors")
    data = path.read_bytes()
    key = data.index(b"sha256")
    path.write_bytes(data[:key] + b"x" + data[key + 1 : -2] + b"\1" + data[-1:])
    with pytest.raises(FileError, match=r"damaged|checksum"):
        files.read(path)


@pytest.mark.parametrize("kind", MUTATORS)
def test_load_warns_and_uses_the_previous_if_newest_is_damaged(kind, tmp_path):
    good_files(tmp_path)
    newest, older = rotation.list_checkpoints(tmp_path / "run")
    expected = files.read(older)
    data, rng = newest.read_bytes(), random.Random(kind)
    newest.write_bytes(damaged(data, kind, rng))
    while is_intact(newest):
        newest.write_bytes(damaged(data, kind, rng))
    loaded = model()
    with pytest.warns(UserWarning, match=newest.name) as caught:
        loaded.load(tmp_path / "run")
    assert [older.name in str(warning.message) for warning in caught] == [True]
    assert identical(dict(loaded.module.state_dict()), dict(expected["module"]))
    assert loaded.state.step == expected["state"]["step"]


def train(folder, epochs=4, **options):
    torch.manual_seed(0)
    trained = Model(mlp(), device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "cross_entropy")
    backup = BackupAndRestore(folder, delete_checkpoint=False, **options)
    trained.fit(X, Y, epochs=epochs, batch_size=25, callbacks=[backup], verbose=0)
    return trained


def train_until_epoch(folder, epoch, **options):
    def stop(now, logs):
        if now == epoch:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    trained = Model(mlp(), device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "cross_entropy")
    backup = BackupAndRestore(folder, delete_checkpoint=False, **options)
    with pytest.raises(KeyboardInterrupt):
        trained.fit(X, Y, epochs=4, batch_size=25, callbacks=[backup, LambdaCallback(on_epoch_begin=stop)], verbose=0)


def test_run_resumes_exactly_from_the_previous_checkpoint(tmp_path):
    undisturbed = train(tmp_path / "undisturbed")
    train_until_epoch(tmp_path / "run", 3)
    newest = rotation.list_checkpoints(tmp_path / "run")[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=newest.name):
        resumed = train(tmp_path / "run")
    assert same_weights(undisturbed.module, resumed.module)


def test_folder_with_only_damaged_files_names_the_newest(tmp_path):
    good_files(tmp_path)
    for path in rotation.list_checkpoints(tmp_path / "run"):
        path.write_bytes(path.read_bytes()[:1000])
    for load in (lambda: model().load(tmp_path / "run"), lambda: model().fit(X, Y, resume=tmp_path / "run", verbose=0)):
        with pytest.raises(FileError, match=r"step-0000000004\.pt"):
            load()


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_newest_file_never_deletes_intact_ones(keep, tmp_path):
    train_until_epoch(tmp_path / "run", 3, keep=2)
    newest = rotation.list_checkpoints(tmp_path / "run")[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    intact_counts = []

    def count(step, logs):
        intact_counts.append(sum(map(is_intact, rotation.list_checkpoints(tmp_path / "run"))))

    torch.manual_seed(0)
    trained = Model(mlp(), device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "cross_entropy")
    counter = LambdaCallback(on_train_batch_end=count)
    counter.priority = 20
    backup = BackupAndRestore(tmp_path / "run", save_freq=1, keep=keep, delete_checkpoint=False)
    with pytest.warns(UserWarning, match=newest.name):
        trained.fit(X, Y, epochs=4, batch_size=25, callbacks=[backup, counter], verbose=0)
    assert min(intact_counts) >= 1, intact_counts


def test_resume_from_an_older_file_keeps_its_new_checkpoints(tmp_path):
    train(tmp_path / "run", save_freq=1, keep=8)
    older = rotation.step_path(tmp_path / "run", 2)
    # An old time shows which files are new.
    for path in rotation.list_checkpoints(tmp_path / "run"):
        os.utime(path, (0, 0))
    torch.manual_seed(0)
    trained = Model(mlp(), device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "cross_entropy")
    trained.fit(X, Y, epochs=2, batch_size=25, resume=older, verbose=0)
    last = rotation.step_path(tmp_path / "run", 4)
    assert trained.state.step == 4
    assert last.exists()
    assert last.stat().st_mtime > 0


def test_end_of_run_deletes_only_checkpoints(tmp_path):
    (tmp_path / "run" / "thesis").mkdir(parents=True)
    user_files = [
        tmp_path / "run" / "thesis" / "chapter.tex",
        tmp_path / "run" / "best.pt",
        tmp_path / "run" / "log.csv",
    ]
    for path in user_files:
        path.write_text("months of work")
    trained = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    trained.fit(X, Y, epochs=2, callbacks=[BackupAndRestore(tmp_path / "run")], verbose=0)
    assert all(path.exists() for path in user_files)
    assert not rotation.list_checkpoints(tmp_path / "run")


def test_backup_and_restore_of_a_file_keeps_its_folder(tmp_path):
    (tmp_path / "thesis.tex").write_text("months of work")
    shutil.copytree(good_files(tmp_path / "good")["checkpoint"].parent, tmp_path / "run")
    start = rotation.list_checkpoints(tmp_path / "run")[0]
    shutil.move(start, tmp_path / "start.pt")
    trained = model()
    backup = BackupAndRestore(tmp_path / "start.pt")
    trained.fit(X, Y, epochs=3, batch_size=25, callbacks=[EMA(0.9), backup], verbose=0)
    assert (tmp_path / "thesis.tex").exists()


def test_incomplete_file_of_a_killed_process_is_deleted(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    incomplete = run / f".{rotation.step_path(run, 7).name}.abc.tmp"
    incomplete.write_bytes(b"incomplete")
    model().fit(X, Y, resume=run, verbose=0)
    assert not incomplete.exists()


Named = collections.namedtuple("Named", "a b")
VALUES = {
    "NumPy number": lambda: np.float64(0.5),
    "NumPy array": lambda: np.arange(3),
    "set": lambda: {1, 2},
    "path": lambda: Path("a"),
    "defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "named tuple": lambda: Named(1, 2),
    "deque": lambda: collections.deque([1.0]),
    "huge number": lambda: 2**4000,
    "bytes": lambda: b"abc",
    "sparse tensor": lambda: torch.eye(3).to_sparse(),
    "parameter": lambda: nn.Parameter(torch.ones(2)),
    "complex number": lambda: 1 + 2j,
    "data type": lambda: torch.float16,
    "bool tensor": lambda: torch.tensor([True]),
    "quarter precision": lambda: torch.ones(3).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", VALUES)
def test_every_value_is_read_again_or_refused_by_write(kind, tmp_path):
    path = tmp_path / "run.pt"
    value = VALUES[kind]()
    refusal = refusal_of(lambda: files.write(path, {"callbacks": [["Mine", {"best": value}]]}))
    if refusal is not None:
        assert "best" in str(refusal)
        assert not path.exists()
        return
    found = files.read(path)["callbacks"][0][1]["best"]
    if isinstance(value, torch.Tensor):
        assert torch.equal(found.to_dense().float(), value.to_dense().float())
    elif isinstance(value, np.ndarray):
        assert found.tolist() == value.tolist()
    else:
        assert found == value or list(found) == list(value)
