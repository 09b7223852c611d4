"""Promise 3, from outside: Ctrl-C and SIGTERM are a normal ending, and SIGKILL loses nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch

from easytorch import Model
from easytorch.callbacks import SWA, Callback, EarlyStopping, LambdaCallback
from easytorch.checkpoint import rotation
from tests.loops import blob_loader, blobs, mlp, same_weights

X, Y = blobs(50)
ROOT = Path(__file__).parents[1]


class SendSignal(Callback):
    """Gets a signal in the middle of an update, as from a terminal."""

    def __init__(self, step, number=signal.SIGINT, hook="update"):
        self.step, self.number, self.hook = step, number, hook

    def on_before_optimizer_step(self):
        if self.hook == "update" and self.model.state.step == self.step - 1:
            os.kill(os.getpid(), self.number)

    def on_test_batch_begin(self, batch, logs=None):
        if self.hook == "validation":
            os.kill(os.getpid(), self.number)


def model_of(net=None):
    torch.manual_seed(0)
    return Model(net or mlp(), device="cpu").compile(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "cross_entropy"
    )


def fitted(*callbacks, epochs=3, **options):
    model = model_of()
    history = model.fit(blob_loader(shuffle=True), epochs, callbacks=callbacks, verbose=0, **options)
    return model, history


def test_ctrl_c_finishes_the_update_and_returns_the_history(capsys):
    ended = []
    model, history = fitted(SendSignal(10), LambdaCallback(on_train_end=lambda logs: ended.append(dict(logs))))
    assert history.interrupted
    assert model.state.step == 10
    assert len(history.rows) == 1
    assert len(ended) == 1
    assert "Press Ctrl-C again to stop immediately" in capsys.readouterr().err


def test_a_fit_that_was_not_interrupted_says_so():
    model, history = fitted()
    assert not history.interrupted
    assert not model.history.interrupted


def test_the_next_fit_after_an_interruption_trains_on():
    model, _ = fitted(SendSignal(10))
    history = model.fit(blob_loader(), 2, verbose=0)
    assert not history.interrupted
    assert model.state.step == 10 + 14


@pytest.mark.parametrize("wanted", ["raise", "Raise"])
def test_ctrl_c_raises_after_the_ending_if_that_is_wanted(wanted):
    ended = []
    with pytest.raises(KeyboardInterrupt):
        fitted(SendSignal(10), LambdaCallback(on_train_end=lambda logs: ended.append(1)), on_interrupt=wanted)
    assert ended == [1]


def test_an_unknown_way_to_take_an_interruption_is_refused():
    with pytest.raises(ValueError, match=r"on_interrupt 'rais'.*Did you mean 'raise'"):
        fitted(on_interrupt="rais")


def test_a_second_ctrl_c_stops_at_once():
    class Twice(Callback):
        def on_before_optimizer_step(self):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fitted(Twice())


def test_second_ctrl_c_does_not_wait_for_batch_norm_of_swa():
    class Counted(torch.utils.data.Dataset):
        read = 0

        def __len__(self):
            return 50

        def __getitem__(self, index):
            self.read += 1
            return X[index], Y[index]

    class Twice(Callback):
        def on_before_optimizer_step(self):
            if self.model.state.step == 7:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    rows, model = Counted(), model_of(torch.nn.Sequential(torch.nn.BatchNorm1d(8), mlp()))
    with pytest.raises(KeyboardInterrupt):
        model.fit(torch.utils.data.DataLoader(rows, 8), 3, callbacks=[SWA(0), Twice()], verbose=0)
    assert rows.read < 2 * 50


@pytest.mark.parametrize("hook", ["update", "validation"])
def test_an_interrupted_run_continues_as_if_undisturbed(hook, tmp_path):
    data = {"validation_data": blob_loader(30)}  # a loader that draws a number from the global generator, as loaders do
    undisturbed, _ = fitted(**data)
    _, history = fitted(SendSignal(11, hook=hook), resume=tmp_path, **data)
    assert history.interrupted
    continued, history = fitted(resume=tmp_path, **data)
    assert not history.interrupted
    assert same_weights(continued.module, undisturbed.module)
    assert continued.history.history == undisturbed.history.history


def test_best_weights_come_back_after_an_interruption(tmp_path):
    best = {}

    def keep(epoch, logs):
        if epoch == 0:
            best.update({name: value.clone() for name, value in model.module.state_dict().items()})
        logs["val"] = float(epoch)

    model = model_of()
    callbacks = [
        LambdaCallback(on_epoch_end=keep),
        EarlyStopping("val", mode="min", patience=9, restore_best_weights=True),
        SendSignal(18),
    ]
    callbacks[1].on_train_begin = lambda logs=None: callbacks[1].reset()  # "val" is made by a callback
    history = model.fit(blob_loader(), 5, callbacks=callbacks, resume=tmp_path, verbose=0)
    assert history.interrupted
    assert all(torch.equal(best[name], value) for name, value in model.module.state_dict().items())
    kept = rotation.read_newest(tmp_path)[1]["module"]  # the checkpoint has the weights of training, not the best
    assert not all(torch.equal(best[name], value) for name, value in kept.items())


def test_handlers_are_as_they_were_after_fit():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    fitted(SendSignal(5))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_handler_of_the_user_stays():
    seen = []
    previous = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        _, history = fitted(SendSignal(5, signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert seen == [1]
    assert not history.interrupted


def test_fit_works_outside_of_the_main_thread():
    done = []
    thread = threading.Thread(target=lambda: done.append(fitted()[0].state.step))
    thread.start()
    thread.join(60)
    assert done == [21]


def test_sigterm_saves_a_checkpoint_and_exits_with_status_143(tmp_path):
    with pytest.raises(SystemExit) as ended:
        fitted(SendSignal(10, signal.SIGTERM), resume=tmp_path)
    assert ended.value.code == 143
    assert rotation.list_checkpoints(tmp_path)[0].name == "step-0000000010.pt"


PROGRAM = """
    import sys, time
    import torch
    from torch.utils.data import DataLoader, Dataset
    from tests.loops import blobs, mlp
    from easytorch import Model
    torch.set_num_threads(1)
    x, y = blobs(50)

    class Slow(Dataset):
        def __len__(self):
            return 50
        def __getitem__(self, index):
            time.sleep(0.002)
            return x[index], y[index]

    folder, workers = sys.argv[1], int(sys.argv[2])
    torch.manual_seed(0)
    model = Model(mlp(), device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "cross_entropy")
    loader = DataLoader(Slow(), 8, shuffle=True, num_workers=workers)
    print("ready", flush=True)
    model.fit(loader, 40, resume=folder, verbose=0)
    model.save_weights(folder + "/final.pt")
    print("interrupted" if model.history.interrupted else "done", flush=True)
"""


def start(folder, workers):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), str(workers)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def members(group):
    """Return the processes of a group that still live, zombies aside."""
    alive = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            alive.append(entry.parent.name)
    return alive


@pytest.mark.skipif(not Path("/proc").exists(), reason="counts processes in /proc")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=["SIGTERM", "SIGINT"]
)
def test_signal_to_the_process_group_saves_the_run_and_ends_all(number, workers, tmp_path):
    process = start(tmp_path, workers)
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while not rotation.list_checkpoints(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else 0), err
    assert "Traceback" not in err
    assert ("interrupted" in out) == (number == signal.SIGINT)
    _, content = rotation.read_newest(tmp_path)
    assert content["state"]["step"] > 0
    assert members(process.pid) == []


LAUNCH = """
    import time
    from easytorch import launch

    def wait():
        print("ready", flush=True)
        time.sleep(100)

    launch(wait, processes=2, start="fork")
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="counts processes in /proc")
def test_sigterm_to_a_launch_ends_all_processes():
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LAUNCH)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert [process.stdout.readline() for _ in range(2)] == 2 * ["ready\n"]
        time.sleep(0.2)  # until it waits for them
        process.terminate()
        process.wait(timeout=60)
        assert process.returncode != 0
        assert members(process.pid) == []
    finally:
        process.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing(tmp_path):
    from tests.chaos import run

    report = run(kills=20, folder=tmp_path, seed=0)
    assert report.broken == 0
    assert report.equal


def test_a_worker_that_dies_is_an_error_and_the_others_end(tmp_path):
    class Dying(torch.utils.data.Dataset):
        def __len__(self):
            return 50

        def __getitem__(self, index):
            if index == 30:
                # The parent reads the memory of earlier batches from a live worker.
                time.sleep(0.5)
                os.kill(os.getpid(), signal.SIGKILL)
            return X[index], Y[index]

    ended = []
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|is killed by signal"):
        model_of().fit(
            torch.utils.data.DataLoader(Dying(), 8, num_workers=2),
            verbose=0,
            callbacks=[LambdaCallback(on_train_end=lambda logs: ended.append(1))],
        )
    assert ended == [1]
