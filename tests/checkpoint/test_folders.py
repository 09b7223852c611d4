"""Folders of all kinds: file systems without sync or permissions, odd names, other runs, and changes of the current folder."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from easytorch import FileError, Model
from easytorch._utils import atomic_file
from easytorch.callbacks import BackupAndRestore, CSVLogger, LambdaCallback, ModelCheckpoint, TerminateOnNaN
from easytorch.checkpoint import files, folder_lock, rotation
from easytorch.data import in_memory
from easytorch.errors import ResumeError

X, Y = torch.randn(32, 8), torch.arange(32) % 3
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="of POSIX systems")


def model():
    return Model(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy")


def refuse(code, condition=lambda *_: True, otherwise=None):
    def function(*args, **options):
        if condition(*args):
            raise OSError(code, os.strerror(code))
        return otherwise(*args, **options)

    return function


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


# File systems that refuse an operation


def is_folder(descriptor):
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


REFUSED = {
    "fsync of a folder": ("fsync", is_folder),
    "opening a folder": ("open", lambda path, *_: os.path.isdir(path)),
    "fsync": ("fsync", lambda *_: True),
    "chmod": ("chmod", lambda *_: True),
}


@POSIX
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS], ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", REFUSED)
def test_refused_operation_warns_once_and_training_goes_on(kind, code, tmp_path, monkeypatch):
    name, condition = REFUSED[kind]
    monkeypatch.setattr(os, name, refuse(code, condition, getattr(os, name)))
    best = ModelCheckpoint(tmp_path / "run" / "best.pt", keep=1)
    backup = BackupAndRestore(tmp_path / "run", save_freq=1, delete_checkpoint=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained = model()
        trained.fit(X, Y, epochs=4, batch_size=8, callbacks=[best, backup], verbose=0)
    assert trained.state.step == 16
    assert names(tmp_path / "run") == ["best.pt", "step-0000000015.pt", "step-0000000016.pt"]
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == (kind != "chmod"), messages
    assert all("cannot be synced" in message for message in messages)


@POSIX
@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM], ids=errno.errorcode.get)
def test_folder_that_may_not_be_opened_counts_as_written(code, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", refuse(code, lambda path, *_: os.path.isdir(path), os.open))
    with pytest.warns(UserWarning, match="cannot be synced"):
        path = model().save(tmp_path / "model.pt")
    assert model().load(path)


@POSIX
def test_refused_chmod_warns_if_permissions_change(tmp_path, monkeypatch):
    path = model().save(tmp_path / "model.pt")
    path.chmod(0o666)
    monkeypatch.setattr(os, "chmod", refuse(errno.EPERM))
    with pytest.warns(UserWarning, match="do not keep the permissions"):
        model().save(path)
    model().save(path)  # a second warning would be an error


@pytest.mark.parametrize("keep", [1, 2])
def test_checkpoints_that_cannot_be_deleted_warn_once(keep, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    model().fit(X, Y, epochs=2, resume=folder, verbose=0)
    old = set(names(folder))
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", refuse(errno.EPERM, lambda path, *_: path.name in old, unlink))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained = model()
        backup = BackupAndRestore(folder, save_freq=1, keep=keep, delete_checkpoint=False)
        trained.fit(X, Y, epochs=8, batch_size=32, callbacks=[backup], verbose=0)
    assert trained.state.step == 8
    assert ["stay on the disk" in str(warning.message) for warning in caught] == [True]
    assert len(set(names(folder)) - old) == keep


def test_model_checkpoints_that_cannot_be_deleted_warn_once(tmp_path, monkeypatch):
    locked, unlink = [True], Path.unlink
    monkeypatch.setattr(Path, "unlink", refuse(errno.EACCES, lambda *_: locked[0], unlink))
    unlock = LambdaCallback(on_epoch_begin=lambda epoch, logs: locked.__setitem__(0, epoch < 4))
    saver = ModelCheckpoint(tmp_path / "{epoch}.pt", keep=1)
    with pytest.warns(UserWarning, match="stay on the disk") as caught:
        model().fit(X, Y, epochs=6, callbacks=[unlock, saver], verbose=0)
    assert len(caught) == 1
    assert names(tmp_path) == ["6.pt"]  # deleted as soon as it is possible


def test_newer_checkpoint_that_cannot_be_renamed_warns(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    model().fit(
        X, Y, epochs=2, batch_size=8, callbacks=[BackupAndRestore(folder, 1, delete_checkpoint=False)], verbose=0
    )
    newest, older = rotation.list_checkpoints(folder)
    newest.write_bytes(b"damaged")
    monkeypatch.setattr(Path, "rename", refuse(errno.EPERM))
    trained, backup = model(), BackupAndRestore(folder, 1, delete_checkpoint=False)
    with pytest.warns(UserWarning, match=r"cannot be renamed|is used instead") as caught:
        trained.fit(X, Y, epochs=2, batch_size=8, callbacks=[backup], verbose=0)
    assert len(caught) == 2
    assert "cannot be renamed" in str(caught[1].message)
    assert trained.state.step == 8
    assert files.read(rotation.step_path(folder, 8))["state"]["step"] == 8
    assert older.exists()


# Names


ARGUMENTS = {
    "resume": lambda path: model().fit(X, Y, resume=path, verbose=0),
    "backup_dir": lambda path: BackupAndRestore(path),
    "filepath": lambda path: ModelCheckpoint(path),
    "path": lambda path: model().save(path),
    "to": lambda path: model().predict(X, to=path, verbose=0),
    "filename": lambda path: CSVLogger(path),
}


@pytest.mark.parametrize("path", ["", " ", b"", "a\0b"], ids=["empty", "blank", "empty bytes", "null character"])
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_empty_name_is_an_error_that_names_the_argument(argument, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"^{argument} (is empty|contains a null character)"):
        ARGUMENTS[argument](path)
    assert not names(tmp_path)


@pytest.mark.parametrize("argument", ["backup_dir", "filepath", "path", "filename"])
def test_none_is_an_error_that_names_the_argument(argument):
    with pytest.raises(ValueError, match=rf"^{argument} must be a path, received None"):
        ARGUMENTS[argument](None)


@pytest.mark.parametrize("method", ["load", "save_weights", "load_weights"])
def test_empty_names_of_files_are_errors(method):
    for path in ("", None):
        with pytest.raises(ValueError, match=r"^path "):
            getattr(model(), method)(path)


def test_number_as_a_path_is_a_type_error():
    with pytest.raises(TypeError, match="backup_dir must be a path, received 5"):
        BackupAndRestore(5)


@POSIX
def test_home_folder_and_bytes_work_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for save, load in (("save", "load"), ("save_weights", "load_weights")):
        for name in ("~/model.pt", b"bytes.pt", b"~/more.pt"):
            trained = model()
            assert getattr(trained, save)(name).exists()
            assert torch.equal(getattr(model(), load)(name).module.weight, trained.module.weight)
    logs = [CSVLogger(b"~/log.csv"), ModelCheckpoint(b"~/{epoch}.pt"), TerminateOnNaN(path="~/nan.pt")]
    model().fit(X, Y, callbacks=logs, resume=b"~/run", verbose=0)
    model().predict(X, to="~/out.npy", verbose=0)
    in_memory([(X[0], 1)], cache="~/cache.pt")
    expected = ["1.pt", "bytes.pt", "cache.pt", "log.csv", "model.pt", "more.pt", "out.npy", "run"]
    assert names(tmp_path) == expected


@pytest.mark.parametrize("length", [230, 250, 255])
def test_long_names_are_written(length, tmp_path):
    path = tmp_path / ("x" * (length - 3) + ".pt")
    assert model().save(path) == path
    assert names(tmp_path) == [path.name]


@POSIX
@pytest.mark.parametrize("name", ["x" * 300 + ".pt", "ü" * 200 + ".pt"])
def test_names_that_are_too_long_are_clear_errors(name, tmp_path):
    length = len(os.fsencode(name))
    with pytest.raises(OSError, match=f"Cannot write .*a name of {length} bytes is too long"):
        model().save(tmp_path / name)
    with pytest.raises(OSError, match=f"Cannot read .*a name of {length} bytes is too long"):
        model().load(tmp_path / name)
    with pytest.raises(OSError, match="Cannot save the run to"):
        model().fit(X, Y, resume=tmp_path / name[:-3], verbose=0)


@POSIX
def test_loops_of_links_are_clear_errors(tmp_path):
    (tmp_path / "a.pt").symlink_to(tmp_path / "b.pt")
    (tmp_path / "b.pt").symlink_to(tmp_path / "a.pt")
    with pytest.raises(OSError, match=r"Cannot write .*its links form a loop"):
        model().save(tmp_path / "a.pt")
    with pytest.raises(OSError, match=r"Cannot read .*its links form a loop"):
        model().load(tmp_path / "a.pt")


@POSIX
def test_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(FileError, match="not a regular file"):
        model().load(tmp_path / "pipe.pt")


def test_folder_called_like_a_file_is_resumed(tmp_path):
    folder = tmp_path / "run.pt"
    folder.mkdir()
    model().fit(X, Y, resume=folder, verbose=0)
    again = model()
    again.fit(X, Y, epochs=2, resume=folder, verbose=0)
    assert again.history.epoch == [0, 1]
    with pytest.raises(FileNotFoundError, match="There is no file"):
        model().fit(X, Y, resume=tmp_path / "missing.pt", verbose=0)


@pytest.mark.parametrize("kind", ["resume", "ModelCheckpoint", "CSVLogger"])
def test_a_change_of_the_current_folder_does_not_split_a_run(kind, tmp_path, monkeypatch):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "first")
    move = LambdaCallback(on_epoch_begin=lambda epoch, logs: os.chdir(tmp_path / "second") if epoch == 1 else None)
    saver = ModelCheckpoint("models/{epoch}.pt", "loss", save_best_only=True)
    options = {
        "resume": lambda: {"callbacks": [move], "resume": "run"},
        "ModelCheckpoint": lambda: {"callbacks": [move, saver]},
        "CSVLogger": lambda: {"callbacks": [move, CSVLogger("logs/log.csv")]},
    }[kind]()
    model().fit(X, Y, epochs=3, verbose=0, **options)
    assert not names(tmp_path / "second")
    assert len(names(tmp_path / "first")) == 1
    if kind == "ModelCheckpoint":
        assert model().load(saver.best_path)


@pytest.mark.parametrize("keys", [("a/b", "c"), ("../../x", "y"), ("tab\t", "%2F")])
def test_outputs_with_odd_names_are_files_in_the_folder(keys, tmp_path):
    class Two(nn.Module):
        def forward(self, x):
            return {key: x * i for i, key in enumerate(keys)}

    folder = tmp_path / "out"
    folder.mkdir()
    found = Model(Two(), device="cpu").predict(X, to=folder / "y.npy", verbose=0)
    assert len(names(folder)) == 2
    assert names(tmp_path) == ["out"]
    assert np.array_equal(found[keys[1]], X.numpy())


# Two callbacks, one file


PAIRS = {
    "one name": ("best.pt", "best.pt"),
    "one name in two spellings": ("best.pt", "./models/../best.pt"),
    "one pattern": ("{epoch}.pt", "{epoch}.pt"),
    "two formats": ("{epoch}.pt", "{epoch:02d}.pt"),
    "two values": ("{loss:.1f}.pt", "{val_loss:.1f}.pt"),
    "a name of a pattern": ("{epoch}.pt", "3.pt"),
    "a prefix": ("model-{epoch}.pt", "model-0{epoch}.pt"),
}
DISTINCT = {
    "two names": ("best.pt", "last.pt"),
    "two patterns": ("best-{epoch}.pt", "last-{epoch}.pt"),
    "two suffixes": ("{epoch}.pt", "{epoch}.pth"),
    "two folders": ("a/{epoch}.pt", "b/{epoch}.pt"),
    "a name and a pattern": ("{epoch}.pt", "best.pt"),
}


def fit_with(first, second):
    pair = [ModelCheckpoint(first), ModelCheckpoint(second, "val_loss", keep_best=1)]
    trained = model()
    trained.fit(X, Y, epochs=12, validation_data=(X, Y), callbacks=pair, verbose=0)
    return trained


@pytest.mark.parametrize("kind", [kind for kind in PAIRS if kind != "a prefix"])
def test_two_checkpoints_that_may_write_one_file_are_refused(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="Two ModelCheckpoint callbacks"):
        fit_with(*PAIRS[kind])
    assert not names(tmp_path)


@pytest.mark.parametrize("kind", DISTINCT)
def test_checkpoints_of_different_names_are_allowed(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit_with(*DISTINCT[kind]).state.step


def test_names_that_become_equal_get_a_number(tmp_path):
    constant = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(score=1.0 + epoch))
    constant.priority = -1
    pair = [ModelCheckpoint(tmp_path / "{epoch}.0.pt"), ModelCheckpoint(tmp_path / "{score:.1f}.pt")]
    model().fit(X, Y, epochs=2, callbacks=[constant, *pair], verbose=0)
    assert names(tmp_path) == ["1.0-2.pt", "1.0.pt", "2.0-2.pt", "2.0.pt"]


@pytest.mark.parametrize("pattern", ["step-{batch:010d}.pt", "step-0000000004.pt"])
def test_model_checkpoint_with_the_names_of_the_run_is_refused(pattern, tmp_path):
    freq = 1 if "batch" in pattern else "epoch"
    saver = ModelCheckpoint(tmp_path / "run" / pattern, save_freq=freq)
    with pytest.raises(ValueError, match="would replace checkpoints of the run"):
        model().fit(X, Y, callbacks=[saver], resume=tmp_path / "run", verbose=0)
    model().fit(X, Y, callbacks=[ModelCheckpoint(tmp_path / "run" / "best.pt")], resume=tmp_path / "run", verbose=0)


def test_two_backups_of_one_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Two BackupAndRestore callbacks"):
        model().fit(X, Y, callbacks=[BackupAndRestore(tmp_path / "run")], resume=tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


class Worse(LambdaCallback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch >= 2:
            with torch.no_grad():
                for parameter in self.model.module.parameters():
                    parameter.add_(5 * torch.randn_like(parameter))


@pytest.mark.parametrize("name", ["model.pt", "{val_accuracy:.0f}.pt", "{loss:.0f}.pt", "fixed-{epoch}.pt"])
@pytest.mark.parametrize("options", [{"keep_best": 1}, {"save_best_only": True}, {"keep_best": 2, "keep": 2}], ids=str)
def test_best_file_is_the_best_model_for_every_name(name, options, tmp_path):
    torch.manual_seed(1)
    best = ModelCheckpoint(tmp_path / name, **options)
    trained = Model(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy", ["accuracy"], lr=0.1)
    trained.fit(X, Y, epochs=5, validation_data=(X, Y), callbacks=[Worse(), best], verbose=0)
    loaded = Model(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy").load(best.best_path)
    assert loaded.evaluate(X, Y, verbose=0)["loss"] == pytest.approx(min(trained.history["val_loss"]), rel=1e-5)


# Permissions


@POSIX
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_new_files_get_the_umask_without_changing_it(mask, tmp_path, monkeypatch):
    previous = os.umask(mask)
    try:
        monkeypatch.setattr(os, "umask", lambda _: pytest.fail("other threads would create files without a mask"))
        path = model().save(tmp_path / "model.pt")
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
        path.chmod(0o640)
        assert stat.S_IMODE(model().save(path).stat().st_mode) == 0o640
        path.chmod(0o606)
        assert stat.S_IMODE(model().save(path).stat().st_mode) == 0o606
    finally:
        monkeypatch.undo()
        os.umask(previous)


# Full disks


@pytest.mark.skipif(not hasattr(os, "statvfs"), reason="inodes are counted on POSIX systems")
def test_file_system_without_inodes_says_so(tmp_path, monkeypatch):
    real = os.statvfs(tmp_path)
    status = type("Status", (), {name: getattr(real, name) for name in dir(real) if name.startswith("f_")})()
    status.f_files, status.f_favail, status.f_ffree = 1000, 0, 0
    monkeypatch.setattr(os, "statvfs", lambda _: status)
    monkeypatch.setattr(os, "open", refuse(errno.ENOSPC, lambda path, flags, *_: flags & os.O_CREAT, os.open))
    for write in (
        lambda: model().save(tmp_path / "m.pt"),
        lambda: model().predict(X, to=tmp_path / "y.npy", verbose=0),
    ):
        with pytest.raises(OSError, match="no inode for another file"):
            write()


@POSIX
def test_outputs_on_a_full_disk_name_what_was_written(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        with pytest.raises(OSError, match=r"[1-9][\d,]+ bytes of it were written"):
            Model(nn.Linear(8, 3000), device="cpu").predict(X, to=tmp_path / "y.npy", verbose=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not names(tmp_path)


# Two runs in one folder


PROGRAM = """
import sys, time, torch
from torch import nn
from easytorch import Model
from easytorch.callbacks import LambdaCallback
folder, epochs = sys.argv[1], int(sys.argv[2])
def wait(epoch, logs):
    print("epoch", epoch, flush=True)
    time.sleep(0.2 if epochs > 1 else 0)
model = Model(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy")
model.fit(torch.ones(8, 8), torch.arange(8) % 3, epochs=epochs, callbacks=[LambdaCallback(on_epoch_begin=wait)], resume=folder, verbose=0)
print("ended", flush=True)
"""  # noqa: E501


def start(folder, epochs=1000):
    command = [sys.executable, "-c", PROGRAM, str(folder), str(epochs)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@POSIX
@pytest.mark.slow
def test_second_run_is_refused_until_the_first_is_killed(tmp_path):
    first = start(tmp_path / "run")
    try:
        for _ in range(3):
            first.stdout.readline()
        with pytest.raises(ResumeError, match=rf"Another run uses the folder .*process {first.pid} on "):
            model().fit(X, Y, resume=tmp_path / "run", verbose=0)
        first.send_signal(signal.SIGKILL)
        first.wait(timeout=20)
        again = Model(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy")
        x, y = torch.ones(8, 8), torch.arange(8) % 3
        again.fit(x, y, epochs=3, resume=tmp_path / "run", verbose=0)
        assert again.history.epoch[0] == 0
    finally:
        first.kill()
        first.communicate()
    assert folder_lock.NAME not in names(tmp_path / "run")


@POSIX
@pytest.mark.slow
def test_second_run_waits_for_one_that_is_ending(tmp_path):
    lock = folder_lock.FolderLock(tmp_path, lambda: True)
    program = f"import sys\nsys.argv = ['', {str(tmp_path)!r}]\n" + (
        "from pathlib import Path\nfrom easytorch.checkpoint.folder_lock import FolderLock\nimport time\n"
        "lock = FolderLock(Path(sys.argv[1]), lambda: True)\nlock.acquire()\nprint('held', flush=True)\n"
        "time.sleep(0.5)\nlock.release()"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    lock.acquire()
    assert lock.is_held
    lock.release()
    holder.communicate(timeout=20)
    assert not names(tmp_path)


def test_two_models_of_one_process_do_not_share_a_folder(tmp_path):
    failures = []

    def second(epoch, logs):
        with pytest.raises(ResumeError, match="this one"):
            model().fit(X, Y, resume=tmp_path / "run", verbose=0)
        failures.append("refused")

    model().fit(X, Y, callbacks=[LambdaCallback(on_epoch_begin=second)], resume=tmp_path / "run", verbose=0)
    assert failures == ["refused"]
    assert folder_lock.NAME not in names(tmp_path / "run")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_train_end", "on_train_begin"])
def test_folder_is_free_after_an_error(hook, error, tmp_path):
    def fail(*_):
        raise error("stop")

    with pytest.raises(error):
        model().fit(X, Y, callbacks=[LambdaCallback(**{hook: fail})], resume=tmp_path / "run", verbose=0)
    model().fit(X, Y, resume=tmp_path / "run", verbose=0)


@POSIX
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS], ids=errno.errorcode.get)
def test_file_systems_without_locks_are_used_without(code, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock.fcntl, "lockf", refuse(code))
    old, new = tmp_path / "run" / ".step-0000000001.pt.a.tmp", tmp_path / "run" / ".step-0000000001.pt.b.tmp"
    shards = tmp_path / "run" / "step-0000000009.shards-0"
    shards.mkdir(parents=True)
    for path in (old, new):
        path.write_text("x")
    os.utime(old, (1, 1))
    model().fit(X, Y, resume=tmp_path / "run", verbose=0)
    # Another run may be writing them.
    assert (old.exists(), new.exists(), shards.exists()) == (False, True, True)


def test_workers_do_not_hold_the_lock(tmp_path):
    lock = folder_lock.FolderLock(tmp_path, lambda: True)
    lock.acquire()
    if hasattr(os, "fork"):
        child = os.fork()
        if child == 0:
            lock.release()
            os._exit(0 if not lock.is_held else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert names(tmp_path) == [folder_lock.NAME]
    lock.release()
    assert not names(tmp_path)


def test_threads_may_save_to_one_path(tmp_path):
    trained, errors = model(), []

    def save():
        try:
            for _ in range(10):
                trained.save(tmp_path / "model.pt")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert names(tmp_path) == ["model.pt"]


def test_stale_temporary_file_of_a_long_name_is_deleted(tmp_path):
    path = tmp_path / ("x" * 250)
    stale = tmp_path / f"{atomic_file._temporary_prefix(path)}abc.tmp"
    stale.write_text("x")
    os.utime(stale, (time.time() - 2 * atomic_file.STALE_SECONDS,) * 2)
    files.write(path, {"a": 1})
    assert names(tmp_path) == [path.name]
