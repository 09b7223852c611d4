"""Promise 4: a file is whole or absent, a damaged one is refused, and none can do harm."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shutil
import stat
import warnings
from pathlib import Path

import pytest

from easytorch import Model
from easytorch.callbacks import BackupAndRestore, LambdaCallback, ModelCheckpoint
from easytorch.checkpoint import files
from tests.loops import mlp
from tests.security.common_damage import FOLDERS_SYNC, X, Y, _content, _is_whole, run_module
from tests.security.damage import SYSTEM_ERRORS, model, numbers_in

# Full disks, read-only disks, folders that vanish


@pytest.fixture(scope="module")
def full_disks(tmp_path_factory):
    pytest.importorskip("resource", reason="the size of files can be limited on Unix only")
    folder = tmp_path_factory.mktemp("full")
    return [json.loads(line) for line in run_module("tests.security.damage", "--full-disk", folder).splitlines()]


def test_full_disk_leaves_only_the_existing_file(full_disks):
    saves = [row for row in full_disks if "way" in row]
    assert len(saves) >= 100
    assert all(row["kind"] == "OSError" and row["code"] in (errno.EFBIG, errno.ENOSPC) for row in saves), saves[0]
    assert all(row["intact"] and not row["left"] for row in saves)


def test_full_disk_error_names_path_and_needed_bytes(full_disks):
    for row in full_disks:
        if "way" in row:
            assert row["path"] in row["message"]
            assert "unchanged" in row["message"]
            bare = row["message"].replace(row["path"], "")
            assert any(0.8 * row["size"] <= n <= 1.3 * row["size"] + 4096 for n in numbers_in(bare)), row["message"]


def test_training_continues_on_a_full_disk_until_the_last_save(full_disks):
    for row in (row for row in full_disks if row.get("training")):
        assert row["step"] == row["wanted"]
        assert len(row["warnings"]) >= 3
        assert all("step-" in warning and "goes on" in warning for warning in row["warnings"])
        assert ("step-" in row["error"]) == row["ends_full"]
        assert row["newest"] == (4 if row["ends_full"] else row["wanted"])
        assert not row["left"]
    assert [row["ends_full"] for row in full_disks if row.get("training")] == [False, True]


def test_known_full_disk_raises_before_the_write(tmp_path, monkeypatch):
    path = model().save(tmp_path / "model.pt")
    size = path.stat().st_size
    full = type("Full", (), {"f_bavail": 1, "f_bfree": 1, "f_blocks": 10**6, "f_frsize": 1000, "f_bsize": 1000})()
    monkeypatch.setattr(os, "statvfs", lambda path: full, raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    replaced = []
    monkeypatch.setattr(os, "replace", lambda *args: replaced.append(args))
    with pytest.raises(OSError, match="1,000 bytes are free") as caught:
        model().save(path)
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)
    assert any(0.5 * size <= n <= 1.3 * size + 4096 for n in numbers_in(str(caught.value).replace(str(path), "")))
    assert not replaced


STEPS = ["make", "sync", "replace", "sync folder"]


def fail(monkeypatch, step, code, folder):
    """Let the system refuse one of the steps in which a file is written to ``folder``."""
    real = {name: getattr(os, name) for name in ("open", "fsync", "replace")}
    real_open = builtins.open

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    def inside(path):
        return not isinstance(path, int) and Path(os.fspath(path)).parent == folder

    def os_open(path, flags, *args, **options):
        if inside(path) and flags & os.O_CREAT:
            refuse()
        return real["open"](path, flags, *args, **options)

    def plain_open(path, mode="r", *args, **options):
        if inside(path) and set(mode) & set("wxa"):
            refuse()
        return real_open(path, mode, *args, **options)

    def fsync(descriptor):
        if _is_folder(descriptor) == (step == "sync folder"):
            refuse()
        real["fsync"](descriptor)

    if step == "make":
        monkeypatch.setattr(os, "open", os_open)
        monkeypatch.setattr(builtins, "open", plain_open)
        monkeypatch.setattr(io, "open", plain_open)
    elif step == "replace":
        monkeypatch.setattr(os, "replace", refuse)
    else:
        monkeypatch.setattr(os, "fsync", fsync)


def _is_folder(descriptor):
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def left_over(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


@FOLDERS_SYNC
@pytest.mark.parametrize("there", [True, False], ids=["there", "new"])
@pytest.mark.parametrize("code", SYSTEM_ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("step", STEPS)
def test_every_system_error_names_the_file_and_its_state(
    step, code, there, tmp_path, monkeypatch
):
    path = tmp_path / "model.pt"
    before = files.write(path, _content(1)).read_bytes() if there else None
    fail(monkeypatch, step, code, tmp_path)
    with pytest.raises(OSError, match=r"model\.pt") as caught:
        files.write(path, _content(2))
    monkeypatch.undo()
    assert caught.value.errno == code
    assert str(path) in str(caught.value)
    assert not left_over(tmp_path)
    if path.exists():
        assert files.read(path)["step"] in (1, 2)
    if step != "sync folder":
        assert (path.read_bytes() if path.exists() else None) == before
    if "unchanged" in str(caught.value):
        assert there
        assert path.read_bytes() == before


def test_disk_that_turns_read_only_names_the_file(tmp_path, monkeypatch):
    path = files.write(tmp_path / "model.pt", _content(1))
    before = path.read_bytes()
    fail(monkeypatch, "sync", errno.EIO, tmp_path)

    def unlink(path, *args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "unlink", unlink)
    monkeypatch.setattr(os, "remove", unlink)
    with pytest.raises(OSError, match=r"Cannot write") as caught:
        files.write(path, _content(2))
    monkeypatch.undo()
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["save", "save_weights", "safetensors"])
def test_missing_or_invalid_folder_is_named(kind, tmp_path):
    if kind == "safetensors":
        pytest.importorskip("safetensors", reason="safetensors is optional")
    one, name = model(), "w.safetensors" if kind == "safetensors" else "m.pt"
    write = one.save if kind == "save" else one.save_weights
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "gone" / name, tmp_path / "file" / name):
        with pytest.raises(OSError, match="Cannot write") as caught:
            write(path)
        assert str(path) in str(caught.value)
    assert (tmp_path / "file").read_text() == "x"
    with pytest.raises(OSError, match="folder"):
        one.save(tmp_path / "folder")


def _fit_with_trouble(callback, trouble, ends_in_trouble, epochs=5):
    """Train with trouble from epoch 2 on, to the end or until epoch 4; return model, warnings and error."""
    one = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    undo = []

    def begin(epoch, logs):
        if epoch == 2:
            undo.append(trouble())
        if epoch == 4 and not ends_in_trouble:
            undo.pop()()

    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            one.fit(
                X,
                Y,
                epochs=epochs,
                batch_size=25,
                callbacks=[LambdaCallback(on_epoch_begin=begin), callback],
                verbose=0,
            )
        except OSError as failure:
            error = failure
    for function in undo:
        function()
    return one, [str(warning.message) for warning in caught], error


KEEPERS = {
    "BackupAndRestore": lambda folder: BackupAndRestore(folder, delete_checkpoint=False),
    "ModelCheckpoint": lambda folder: ModelCheckpoint(folder / "{epoch}.pt"),
    "ModelCheckpoint of the best": lambda folder: ModelCheckpoint(folder / "best.pt", "loss", save_best_only=True),
}


@pytest.mark.parametrize("ends_in_trouble", [False, True], ids=["passes", "stays"])
@pytest.mark.parametrize("code", SYSTEM_ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", KEEPERS)
def test_failed_checkpoints_warn_and_only_the_last_one_raises(
    kind, code, ends_in_trouble, tmp_path, monkeypatch
):
    folder = tmp_path / "run"

    def trouble():
        fail(monkeypatch, "make", code, folder)
        return monkeypatch.undo

    one, told, error = _fit_with_trouble(KEEPERS[kind](folder), trouble, ends_in_trouble)
    assert one.state.step == 10
    assert told
    assert all(str(folder) in line and "goes on" in line for line in told)
    assert (error is not None) == ends_in_trouble
    assert all(_is_whole(path) for path in folder.glob("*.pt"))
    assert list(folder.glob("*.pt"))
    assert not left_over(folder)
    if error is not None:
        assert error.errno == code
        assert str(folder) in str(error)


@pytest.mark.parametrize("kind", KEEPERS)
def test_deleted_folder_is_created_again(kind, tmp_path):
    folder = tmp_path / "run"

    def trouble():
        shutil.rmtree(folder)
        return lambda: None

    one, _, error = _fit_with_trouble(KEEPERS[kind](folder), trouble, False)
    assert (one.state.step, error) == (10, None)
    assert list(folder.glob("*.pt"))


@pytest.mark.parametrize("kind", KEEPERS)
def test_folder_replaced_by_a_file_warns_until_the_end(kind, tmp_path):
    folder = tmp_path / "run"

    def trouble():
        shutil.rmtree(folder)
        folder.write_text("mine")
        return lambda: None

    one, told, error = _fit_with_trouble(KEEPERS[kind](folder), trouble, True)
    assert one.state.step == 10
    assert told
    assert all(str(folder) in line and "goes on" in line for line in told)
    assert isinstance(error, OSError)
    assert str(folder) in str(error)
    assert folder.read_text() == "mine"


@pytest.mark.parametrize("how", ["resume", "callback"])
def test_folder_that_cannot_be_created_raises_before_training(how, tmp_path):
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" / "run"
    one = model()
    options = {"resume": folder} if how == "resume" else {"callbacks": [BackupAndRestore(folder)]}
    with pytest.raises(OSError, match=r"Cannot keep|Cannot write") as caught:
        one.fit(X, Y, verbose=0, **options)
    assert str(folder) in str(caught.value)
    assert one.state.step == 0
