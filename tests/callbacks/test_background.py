"""save_in_background: files that are written while training continues."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from easytorch import FullySharded, Model
from easytorch.callbacks import BackupAndRestore, LambdaCallback, ModelCheckpoint
from easytorch.checkpoint import files, rotation
from easytorch.checkpoint.background import BackgroundWriter, copy_to_host
from tests.loops import blobs, same_weights
from tests.many import run_ranks

X, Y = blobs(48)
BACKGROUND = {"save_in_background": True}


def new_model(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 3))
    return Model(net, device="cpu").compile("adam", "cross_entropy", **options)


def fit(*callbacks, epochs=3, model=None, **options):
    model = model or new_model()
    model.fit(X, Y, epochs=epochs, batch_size=8, callbacks=callbacks, verbose=0, **options)
    return model


class SlowDisk:
    """Writes files only while it is open, and records what was written."""

    def __init__(self, monkeypatch):
        self.gate, self.started, self.written = threading.Event(), threading.Event(), []
        write = files.write

        def write_slowly(path, content):
            self.started.set()
            assert self.gate.wait(30)
            result = write(path, content)
            self.written.append(Path(path).name)
            return result

        monkeypatch.setattr(files, "write", write_slowly)


@pytest.fixture
def disk(monkeypatch):
    disk = SlowDisk(monkeypatch)
    yield disk
    disk.gate.set()


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "easytorch-checkpoint"]


def assert_same_content(first, second):
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key, value in first.items():
            assert_same_content(value, second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for pair in zip(first, second, strict=True):
            assert_same_content(*pair)
    else:
        assert first == second


@pytest.mark.parametrize("weights_only", [False, True])
def test_files_are_equal_to_those_of_a_write_that_waits(tmp_path, weights_only):
    for folder, options in (("waits", {}), ("background", BACKGROUND)):
        checkpoint = ModelCheckpoint(
            tmp_path / folder / "{epoch}-{batch}.pt", save_freq=2, save_weights_only=weights_only, **options
        )
        fit(checkpoint)
    names = sorted(os.listdir(tmp_path / "waits"))
    assert names == sorted(os.listdir(tmp_path / "background"))
    assert len(names) == 9
    for name in names:
        first, second = (files.read(tmp_path / folder / name) for folder in ("waits", "background"))
        assert list(first) == list(second)
        for key in first if weights_only else ("module", "optimizer", "state", "compiled", "metrics"):
            assert_same_content(first.get(key), second.get(key))


def test_safetensors_files_are_written_in_the_background(tmp_path):
    model = fit(ModelCheckpoint(tmp_path / "a.safetensors", save_weights_only=True, **BACKGROUND))
    assert same_weights(new_model().load_weights(tmp_path / "a.safetensors").module, model.module)


def test_training_continues_while_a_file_is_written(tmp_path, disk):
    steps, weights = [], {}

    def update(batch, logs):
        if model.state.step == 2:
            weights.update(copy.deepcopy(model.module.state_dict()))
        if disk.started.is_set():
            steps.append(model.state.step)
        if model.state.step == 8:
            assert not disk.written
            disk.gate.set()

    model = new_model()
    observer = LambdaCallback(on_train_batch_end=update)

    class Rare(ModelCheckpoint):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.state.step == 2:
                super().on_train_batch_end(batch, logs)

    checkpoint = Rare(tmp_path / "{epoch}-{batch}.pt", save_freq=2, **BACKGROUND)
    fit(observer, checkpoint, model=model)
    assert steps[-1] == 18
    assert set(range(4, 9)) <= set(steps)
    # The file has the weights of the update after which it was started.
    content = files.read(tmp_path / "1-2.pt")["module"]
    assert all(torch.equal(content[name], value) for name, value in weights.items())
    assert threads() == []


def test_a_second_save_waits_for_the_first(tmp_path, disk):
    checkpoint = ModelCheckpoint(tmp_path / "{epoch}.pt", **BACKGROUND)
    opener = threading.Timer(0.5, disk.gate.set)
    opener.start()
    finished = []
    fit(checkpoint, LambdaCallback(on_epoch_begin=lambda epoch, logs: finished.append((epoch, len(disk.written)))))
    assert finished[:2] == [(0, 0), (1, 0)]
    assert finished[2][1] >= 1
    assert disk.written == ["1.pt", "2.pt", "3.pt"]


def test_an_old_file_is_deleted_after_the_next_is_complete(tmp_path, monkeypatch):
    existing, write = [], files.write

    def observe(path, content):
        existing.append(sorted(os.listdir(tmp_path)))
        return write(path, content)

    monkeypatch.setattr(files, "write", observe)
    fit(ModelCheckpoint(tmp_path / "{epoch}.pt", keep=1, **BACKGROUND), epochs=4)
    assert existing == [[], ["1.pt"], ["2.pt"], ["3.pt"]]
    assert os.listdir(tmp_path) == ["4.pt"]


def test_a_line_is_printed_when_the_file_is_complete(tmp_path, disk, capsys):
    printed = []

    def start(epoch, logs):
        printed.append(capsys.readouterr().out)
        if epoch == 1:
            disk.gate.set()

    fit(LambdaCallback(on_epoch_begin=start), ModelCheckpoint(tmp_path / "a.pt", "loss", 1, **BACKGROUND))
    printed.append(capsys.readouterr().out)
    assert printed[:2] == ["", ""]
    assert "".join(printed).splitlines() == [f"Epoch {epoch}: saved {tmp_path / 'a.pt'}" for epoch in (1, 2, 3)]


def test_an_error_is_a_warning_and_then_an_error_at_the_end(tmp_path, monkeypatch):
    write = files.write

    def fail(path, content):
        if Path(path).name != "1.pt":
            raise OSError(28, f"Cannot write {path}: the disk is full.")
        return write(path, content)

    monkeypatch.setattr(files, "write", fail)
    checkpoint = ModelCheckpoint(tmp_path / "{epoch}.pt", **BACKGROUND)
    with (
        pytest.warns(UserWarning, match="disk is full.*will write the next") as caught,
        pytest.raises(OSError, match=r"3\.pt"),
    ):
        fit(checkpoint)
    assert len(caught) == 2
    assert [entry[0] for entry in checkpoint.written] == [str(tmp_path / "1.pt")]
    assert threads() == []


def test_an_unexpected_error_of_the_thread_ends_training(tmp_path, monkeypatch):
    def fail(path, content):
        raise RuntimeError("a bug")

    monkeypatch.setattr(files, "write", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        fit(ModelCheckpoint(tmp_path / "{epoch}.pt", **BACKGROUND))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_files_are_complete_after_an_error(tmp_path, disk, error):
    def fail(epoch, logs):
        if epoch == 1:
            threading.Timer(0.3, disk.gate.set).start()
            raise error("stop")

    with pytest.raises(error, match="stop"):
        fit(
            ModelCheckpoint(tmp_path / "{epoch}.pt", **BACKGROUND), BackupAndRestore(tmp_path / "run", **BACKGROUND),
            LambdaCallback(on_epoch_begin=fail),
        )  # fmt: skip
    assert disk.written[:2] == ["1.pt", "step-0000000006.pt"]
    files.read_model(tmp_path / "1.pt")
    assert threads() == []


def test_the_best_file_is_the_same_after_a_resume(tmp_path):
    def run(folder, crash=False):
        def stop(batch, logs):
            if crash and model.state.step == 9:
                os._exit(9)

        model = new_model()
        best = ModelCheckpoint(folder / "best-{epoch}.pt", "loss", save_best_only=True, keep=1, **BACKGROUND)
        backup = BackupAndRestore(folder / "run", save_freq=1, delete_checkpoint=False, **BACKGROUND)
        fit(best, backup, LambdaCallback(on_train_batch_end=stop), model=model)
        return model, best

    expected, best = run(tmp_path / "a")
    process = os.fork()
    if not process:
        run(tmp_path / "b", crash=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    model, resumed = run(tmp_path / "b")
    assert same_weights(model.module, expected.module)
    assert Path(resumed.best_path).name == Path(best.best_path).name
    assert resumed.best == best.best
    assert [path.name for path in (tmp_path / "b").glob("best*")] == [Path(best.best_path).name]


def test_the_backup_is_written_after_the_files_that_it_names(tmp_path, disk):
    threading.Timer(0.3, disk.gate.set).start()
    fit(ModelCheckpoint(tmp_path / "{epoch}.pt", **BACKGROUND), BackupAndRestore(tmp_path / "run"), epochs=1)
    assert disk.written == ["1.pt", "step-0000000006.pt"]


def test_sigterm_saves_the_run_in_the_background(tmp_path):
    def stop(batch, logs):
        if model.state.step == 4:
            signal.raise_signal(signal.SIGTERM)

    model = new_model()
    with pytest.raises(SystemExit):
        fit(LambdaCallback(on_train_batch_end=stop), BackupAndRestore(tmp_path, **BACKGROUND), model=model)
    assert rotation.list_checkpoints(tmp_path)[0].name == "step-0000000004.pt"
    assert threads() == []


@pytest.mark.slow
def test_the_interpreter_waits_for_the_last_file(tmp_path):
    program = f"""
import time
from easytorch.checkpoint.background import BackgroundWriter
def write(path, content):
    time.sleep(0.5)
    open(path, "w").write("complete")
BackgroundWriter().start(write, {str(tmp_path / "a")!r}, {{}})
raise SystemExit(3)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 3
    assert (tmp_path / "a").read_text() == "complete"


def test_at_most_one_write_waits_for_the_one_in_progress(tmp_path):
    writer, gate, order = BackgroundWriter(), threading.Event(), []

    def write(path, content):
        assert gate.wait(30)
        order.append(content["number"])

    for number in range(2):
        writer.start(write, tmp_path, {"number": number})
    threading.Timer(0.2, gate.set).start()
    start = time.monotonic()
    writer.start(write, tmp_path, {"number": 2})
    assert time.monotonic() - start > 0.15
    writer.finish()
    assert order == [0, 1, 2]


def test_a_copy_keeps_shared_memory_types_and_versions():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    net.add_module("tied", net[0])
    state = {"module": net.state_dict(), "list": [1, (torch.ones(2), "text")], "view": torch.arange(6)[2:4]}
    state["parameter"] = nn.Parameter(torch.ones(3), requires_grad=False)
    copied = copy_to_host(state)
    assert copied["module"]["tied.weight"].data_ptr() == copied["module"]["0.weight"].data_ptr()
    assert copied["module"]["0.weight"].data_ptr() != net[0].weight.data_ptr()
    assert copied["module"]._metadata == net.state_dict()._metadata
    assert isinstance(copied["parameter"], nn.Parameter)
    assert not copied["parameter"].requires_grad
    with torch.no_grad():
        net[0].weight.zero_()
        state["view"].zero_()
        state["list"][1][0].zero_()
    assert copied["module"]["0.weight"].abs().sum() > 0
    assert copied["view"].tolist() == [2, 3]
    assert copied["list"][1][0].tolist() == [1, 1]


def test_a_model_and_its_callbacks_can_be_copied(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "{epoch}.pt", **BACKGROUND)
    model = fit(checkpoint)
    assert same_weights(pickle.loads(pickle.dumps(model)).module, model.module)
    copied = copy.deepcopy(model)
    copied.fit(X, Y, callbacks=[ModelCheckpoint(tmp_path / "b.pt", **BACKGROUND)], verbose=0)
    assert (tmp_path / "b.pt").exists()


def test_a_custom_save_is_refused(tmp_path):
    class Custom(Model):
        def save(self, path="model.pt"):
            return super().save(path)

    model = Custom(nn.Linear(8, 3), device="cpu").compile("adam", "cross_entropy")
    with pytest.raises(ValueError, match=r"does not call a custom save\(\)"):
        model.fit(X, Y, callbacks=[ModelCheckpoint(tmp_path / "a.pt", **BACKGROUND)], verbose=0)


def fit_in_two_processes(folder, strategy):
    results = []
    strategy = FullySharded("cpu", sharded_checkpoints=False) if strategy == "one file" else strategy
    for callback in (BackupAndRestore(folder, **BACKGROUND), ModelCheckpoint(folder / "{epoch}.pt", **BACKGROUND)):
        net = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 3))
        model = Model(net, device="cpu").compile("adam", "cross_entropy", strategy=strategy)
        try:
            model.fit(X, Y, callbacks=[callback], verbose=0)
        except ValueError as error:
            results.append(str(error))
        else:
            results.append("trained")
    return results


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "one file"])
def test_several_processes_are_refused_or_write_shards(tmp_path, strategy):
    for backup, checkpoint in run_ranks(fit_in_two_processes, tmp_path / strategy, strategy):
        assert "ModelCheckpoint(save_in_background=True) works in one process. Remove it" in checkpoint
        expected = "trained" if strategy == "fsdp" else "BackupAndRestore(save_in_background=True) works in one process"
        assert expected in backup
