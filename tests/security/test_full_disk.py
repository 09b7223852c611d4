"""Promise 4 for disks that are full, read-only or gone: the existing file stays, and training continues."""

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
from tests.security.common_damage import FOLDERS_SYNC, X, Y, content_of_step, is_intact, run_module
from tests.security.damage import SYSTEM_ERRORS, model, numbers_in

pytestmark = pytest.mark.security


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
            text = row["message"].replace(row["path"], "")
            assert any(0.8 * row["size"] <= n <= 1.3 * row["size"] + 4096 for n in numbers_in(text)), row["message"]


def test_training_continues_on_a_full_disk_until_the_last_save(full_disks):
    for row in (row for row in full_disks if row.get("training")):
        assert row["step"] == row["expected"]
        assert len(row["warnings"]) >= 3
        assert all("step-" in warning and "Cannot" in warning for warning in row["warnings"])
        assert ("step-" in row["error"]) == row["ends_full"]
        assert row["newest"] == (4 if row["ends_full"] else row["expected"])
        assert not row["left"]
    assert [row["ends_full"] for row in full_disks if row.get("training")] == [False, True]


STEPS = ["make", "sync", "replace", "sync folder"]


def fail(monkeypatch, step, code, folder):
    """Let the system fail in trained of the steps of a write to ``folder``."""
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


def temporary_files(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


@FOLDERS_SYNC
@pytest.mark.parametrize("exists", [True, False], ids=["existing", "new"])
@pytest.mark.parametrize("code", SYSTEM_ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("step", STEPS)
def test_every_system_error_names_the_file_and_its_state(step, code, exists, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    before = files.write(path, content_of_step(1)).read_bytes() if exists else None
    fail(monkeypatch, step, code, tmp_path)
    if (step, code) == ("sync folder", errno.EACCES):
        # A folder that this user may not open cannot be synced, but its files are complete.
        with pytest.warns(UserWarning, match="cannot be synced"):
            files.write(path, content_of_step(2))
        assert files.read(path)["step"] == 2
        return
    with pytest.raises(OSError, match=r"model\.pt") as caught:
        files.write(path, content_of_step(2))
    monkeypatch.undo()
    assert caught.value.errno == code
    assert str(path) in str(caught.value)
    assert not temporary_files(tmp_path)
    if path.exists():
        assert files.read(path)["step"] in (1, 2)
    if step != "sync folder":
        assert (path.read_bytes() if path.exists() else None) == before
    if "unchanged" in str(caught.value):
        assert exists
        assert path.read_bytes() == before


def test_disk_that_turns_read_only_names_the_file(tmp_path, monkeypatch):
    path = files.write(tmp_path / "model.pt", content_of_step(1))
    before = path.read_bytes()
    fail(monkeypatch, "sync", errno.EIO, tmp_path)

    def unlink(path, *args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "unlink", unlink)
    monkeypatch.setattr(os, "remove", unlink)
    with pytest.raises(OSError, match=r"Cannot write") as caught:
        files.write(path, content_of_step(2))
    monkeypatch.undo()
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["save", "save_weights", "safetensors"])
def test_missing_or_invalid_folder_is_named(kind, tmp_path):
    if kind == "safetensors":
        pytest.importorskip("safetensors", reason="safetensors is optional")
    trained, name = model(), "w.safetensors" if kind == "safetensors" else "m.pt"
    write = trained.save if kind == "save" else trained.save_weights
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "gone" / name, tmp_path / "file" / name):
        with pytest.raises(OSError, match="Cannot write") as caught:
            write(path)
        assert str(path) in str(caught.value)
    assert (tmp_path / "file").read_text() == "x"
    with pytest.raises(OSError, match="folder"):
        trained.save(tmp_path / "folder")


def fit_with_problem(callback, problem, ends_in_problem, epochs=5):
    """Train with a problem from epoch 2 on, to the end or until epoch 4; return model, warnings and error."""
    trained = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    undo = []

    def on_epoch_begin(epoch, logs):
        if epoch == 2:
            undo.append(problem())
        if epoch == 4 and not ends_in_problem:
            undo.pop()()

    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trained.fit(
                X,
                Y,
                epochs=epochs,
                batch_size=25,
                callbacks=[LambdaCallback(on_epoch_begin=on_epoch_begin), callback],
                verbose=0,
            )
        except OSError as failure:
            error = failure
    for function in undo:
        function()
    return trained, [str(warning.message) for warning in caught], error


CALLBACKS = {
    "BackupAndRestore": lambda folder: BackupAndRestore(folder, delete_checkpoint=False),
    "ModelCheckpoint": lambda folder: ModelCheckpoint(folder / "{epoch}.pt"),
    "ModelCheckpoint of the best": lambda folder: ModelCheckpoint(folder / "best.pt", "loss", save_best_only=True),
}


@pytest.mark.parametrize("ends_in_problem", [False, True], ids=["passes", "stays"])
@pytest.mark.parametrize("code", SYSTEM_ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", CALLBACKS)
def test_failed_checkpoints_warn_and_only_the_last_one_raises(kind, code, ends_in_problem, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def problem():
        fail(monkeypatch, "make", code, folder)
        return monkeypatch.undo

    trained, messages, error = fit_with_problem(CALLBACKS[kind](folder), problem, ends_in_problem)
    assert trained.state.step == 10
    assert messages
    assert all(str(folder) in message for message in messages)
    assert (error is not None) == ends_in_problem
    assert all(is_intact(path) for path in folder.glob("*.pt"))
    assert list(folder.glob("*.pt"))
    assert not temporary_files(folder)
    if error is not None:
        assert error.errno == code
        assert str(folder) in str(error)


@pytest.mark.parametrize("kind", CALLBACKS)
def test_deleted_folder_is_created_again(kind, tmp_path):
    folder = tmp_path / "run"

    def problem():
        shutil.rmtree(folder)
        return lambda: None

    trained, _, error = fit_with_problem(CALLBACKS[kind](folder), problem, False)
    assert (trained.state.step, error) == (10, None)
    assert list(folder.glob("*.pt"))


@pytest.mark.parametrize("kind", CALLBACKS)
def test_folder_replaced_by_a_file_warns_until_the_end(kind, tmp_path):
    folder = tmp_path / "run"

    def problem():
        shutil.rmtree(folder)
        folder.write_text("user")
        return lambda: None

    trained, messages, error = fit_with_problem(CALLBACKS[kind](folder), problem, True)
    assert trained.state.step == 10
    assert messages
    assert all(str(folder) in message for message in messages)
    assert isinstance(error, OSError)
    assert str(folder) in str(error)
    assert folder.read_text() == "user"


@pytest.mark.parametrize("how", ["resume", "callback"])
def test_folder_that_cannot_be_created_raises_before_training(how, tmp_path):
    (tmp_path / "file").write_text("user")
    folder = tmp_path / "file" / "run"
    trained = model()
    options = {"resume": folder} if how == "resume" else {"callbacks": [BackupAndRestore(folder)]}
    with pytest.raises(OSError, match=r"Cannot ") as caught:
        trained.fit(X, Y, verbose=0, **options)
    assert str(folder) in str(caught.value)
    assert trained.state.step == 0
