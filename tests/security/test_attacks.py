"""Attacks on files in use: readers that race with writers, runs in one folder, and states at the limits."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from easytorch import FileError, Model
from easytorch.callbacks import BackupAndRestore, Callback
from easytorch.checkpoint import files, pickles, rotation
from easytorch.errors import ResumeError
from tests.loops import mlp
from tests.security.common_damage import X, Y
from tests.security.damage import MUTATORS, damaged
from tests.security.malicious_pickles import bombs, laughs

pytestmark = [pytest.mark.security, pytest.mark.skipif(sys.platform == "win32", reason="kills processes")]

MB = 2**20


def model():
    return Model(mlp(), device="cpu").compile("sgd", "cross_entropy")


# Races


def replace_forever(path, good, bad):
    i = 0
    while True:
        i += 1
        temporary = f"{path}.{i % 2}"
        with open(temporary, "wb") as file:
            file.write(bad[i // 2 % len(bad)] if i % 2 else good)
        os.replace(temporary, path)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_no_race_with_a_writer_loads_damaged_weights(name, tmp_path):
    trained, rng = model(), random.Random(1)
    path = trained.save_weights(tmp_path / name)
    data = path.read_bytes()
    bad = [damaged(data, kind, rng) for kind in MUTATORS for _ in range(3)]
    good = {key: value.clone() for key, value in trained.module.state_dict().items()}
    # Damage that no reader can see is no damage.
    bad = [each for each in bad if not is_harmless(tmp_path / f"one.{name}", each, good)]
    writer = multiprocessing.get_context("fork").Process(
        target=replace_forever, args=(str(path), data, bad), daemon=True
    )
    writer.start()
    outcomes = {"whole": 0, "refused": 0}
    try:
        for _ in range(400):
            loaded = model()
            try:
                loaded.load_weights(path)
            except FileError:
                outcomes["refused"] += 1
                continue
            assert all(torch.equal(value, good[key]) for key, value in loaded.module.state_dict().items())
            outcomes["whole"] += 1
    finally:
        writer.kill()
        writer.join()
    assert min(outcomes.values()) > 20, outcomes


def is_harmless(path, data, good):
    path.write_bytes(data)
    try:
        return all(torch.equal(value, good[key]) for key, value in files.read(path).items())
    except FileError:
        return False


def test_swapped_file_needs_no_more_memory_than_it_has(tmp_path, monkeypatch):
    from easytorch.checkpoint import validation

    path = model().save_weights(tmp_path / "w.pt")
    check = validation.check_archive

    def swap(file, *args):
        check(file, *args)
        path.unlink()
        path.write_bytes(b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.")

    monkeypatch.setattr(validation, "check_archive", swap)
    assert model().load_weights(path)


# The memory of pickles


def test_estimated_memory_of_every_bomb_is_refused_quickly():
    refused = {}
    for name, payload in {**bombs(), "laughs": laughs()}.items():
        start = time.process_time()
        try:
            pickles.needed_memory(b"\x80\x02" + payload + b".", None, 64 * MB)
            refused[name] = False
        except Exception:
            refused[name] = True
        assert time.process_time() - start < 2, name
    large = [
        "attributes from one dict", "attributes from one dict that grows", "parameters from one state",
        "parameters from one state by the memo", "many numbers as keys", "empty lists", "empty dicts", "empty sets", "marks",
        "tensors by memo", "OrderedDict repeated", "OrderedDicts from one list", "more lists in lists", "tuples in tuples",
        "endless dict updates",
    ]  # fmt: skip
    assert all(refused[name] for name in large), [name for name in large if not refused[name]]


# Runs in one folder


class Memory(Callback):
    """Keeps many small objects."""

    def __init__(self):
        self.rows = []

    def on_epoch_end(self, epoch, logs=None):
        self.rows += [{"step": i, "reward": 0.5, "done": False} for i in range(40_000)]

    def state_dict(self):
        return {"rows": self.rows}

    def load_state_dict(self, state):
        self.rows = state["rows"]


def test_replay_memory_that_grows_is_resumed(tmp_path):
    def run(epochs):
        torch.manual_seed(1)
        memory, trained = Memory(), model()
        trained.fit(X, Y, epochs=epochs, callbacks=[memory], resume=tmp_path / "run", verbose=0)
        return trained, memory

    for epochs in (1, 2, 3):
        trained, memory = run(epochs)
        assert len(memory.rows) == 40_000 * epochs
    assert trained.history.epoch == [0, 1, 2]


RUN = """
import json, sys, torch
from easytorch import Model
from easytorch.errors import ResumeError
from easytorch.callbacks import BackupAndRestore
from tests.loops import mlp
from tests.security.common_damage import X, Y
torch.manual_seed(0)
model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
backup = BackupAndRestore(sys.argv[1], save_freq=1, delete_checkpoint=False)
print("started", flush=True)
try:
    model.fit(X, Y, epochs=int(sys.argv[2]), batch_size=10, callbacks=[backup], verbose=0)
    print(json.dumps({"step": model.state.step}))
except ResumeError as error:
    print(json.dumps({"refused": str(error)}))
"""


def start(folder, epochs):
    command = [sys.executable, "-W", "error", "-c", RUN, str(folder), str(epochs)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_three_starts_at_once_one_trains(tmp_path):
    processes = [start(tmp_path / "run", 40) for _ in range(3)]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    rows = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    assert [row["step"] for row in rows if "step" in row].count(200) >= 1
    assert all("Another run uses the folder" in row["refused"] for row in rows if "refused" in row)
    assert all(files.read(path) for path in rotation.list_checkpoints(tmp_path / "run"))


def test_killed_runs_leave_no_lock(tmp_path):
    rng = random.Random(3)
    for _ in range(3):
        process = start(tmp_path / "run", 10_000)
        assert process.stdout.readline() == "started\n"
        time.sleep(rng.uniform(0.05, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        torch.manual_seed(0)
        trained = model()
        backup = BackupAndRestore(tmp_path / "run", save_freq=1, delete_checkpoint=False)
        try:
            trained.fit(X, Y, epochs=1, batch_size=10, callbacks=[backup], verbose=0)
        except ResumeError as error:
            pytest.fail(str(error))


def test_damaged_chunks_that_overlap_are_refused():
    from easytorch.checkpoint import dcp

    def covers(*rows, shape=(4, 4)):
        chunks = [dcp.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in rows]
        return dcp._cover(chunks, torch.Size(shape))

    assert covers(((0, 0), (2, 4)), ((2, 0), (2, 4)))
    assert covers(((0, 0), (4, 2)), ((0, 2), (4, 2)))
    assert covers(((0, 0), (2, 2)), ((0, 2), (2, 2)), ((2, 0), (1, 4)), ((3, 0), (1, 4)))
    assert not covers(((0, 0), (2, 4)), ((0, 0), (2, 4)))
    assert not covers(((0, 0), (2, 4)), ((1, 0), (2, 4)))
    assert not covers(((0, 0), (2, 4)), ((3, 0), (2, 4)))
    assert not covers(((0, 0), (2, 4)), ((-2, 0), (2, 4)))
    assert dcp._cover([dcp.ChunkStorageMetadata(torch.Size([]), torch.Size([]))], torch.Size([]))


# Permissions


def test_no_thread_sees_another_umask(tmp_path):
    trained, modes, stop = model(), set(), threading.Event()

    def create():
        i = 0
        while not stop.is_set():
            i += 1
            path = tmp_path / f"user-{i}"
            path.touch()
            modes.add(path.stat().st_mode & 0o777)
            path.unlink()

    thread = threading.Thread(target=create)
    previous = os.umask(0o077)
    try:
        thread.start()
        for i in range(100):
            trained.save(tmp_path / f"model-{i}.pt")
    finally:
        stop.set()
        thread.join()
        os.umask(previous)
    assert modes == {0o600}
