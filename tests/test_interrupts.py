"""Ctrl-C, SIGTERM and SIGKILL during training."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from pathlib import Path

import pytest
import torch

from easytorch import Model
from easytorch.callbacks import SWA, Callback, EarlyStopping, LambdaCallback, ModelCheckpoint
from easytorch.checkpoint import rotation
from tests.loops import blob_loader, blobs, mlp, same_weights

X, Y = blobs(50)
ROOT = Path(__file__).parents[1]


class SendSignal(Callback):
    """Sends a signal to this process in the middle of an update, like a terminal."""

    def __init__(self, step, number=signal.SIGINT, hook="update"):
        self.step, self.number, self.hook = step, number, hook

    def on_before_optimizer_step(self):
        if self.hook == "update" and self.model.state.step == self.step - 1:
            os.kill(os.getpid(), self.number)

    def on_test_batch_begin(self, batch, logs=None):
        if self.hook == "validation":
            os.kill(os.getpid(), self.number)


def new_model(net=None):
    torch.manual_seed(0)
    return Model(net or mlp(), device="cpu").compile(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "cross_entropy"
    )


def fit_model(*callbacks, epochs=3, **options):
    model = new_model()
    options = {"on_interrupt": "return", "verbose": 0, **options}
    history = model.fit(blob_loader(shuffle=True), epochs, callbacks=callbacks, **options)
    return model, history


def test_ctrl_c_finishes_the_update_and_ends_in_order(capsys):
    end_logs = []
    model, history = fit_model(SendSignal(10), LambdaCallback(on_train_end=lambda logs: end_logs.append(dict(logs))))
    assert history.interrupted
    assert model.state.step == 10
    assert len(history.rows) == 1
    assert len(end_logs) == 1
    assert "Press Ctrl-C again to stop immediately" in capsys.readouterr().err


def test_history_records_that_fit_was_not_interrupted():
    model, history = fit_model()
    assert not history.interrupted
    assert not model.history.interrupted


def test_the_next_fit_after_an_interruption_continues():
    model, _ = fit_model(SendSignal(10))
    history = model.fit(blob_loader(), 2, verbose=0)
    assert not history.interrupted
    assert model.state.step == 10 + 14


@pytest.mark.parametrize("on_interrupt", ["auto", "raise", "Raise"])
def test_in_a_script_ctrl_c_raises_after_the_end_of_training(on_interrupt, tmp_path):
    end_logs, model = [], new_model()
    end = LambdaCallback(on_train_end=lambda logs: end_logs.append(1))
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, callbacks=[SendSignal(2), end], resume=tmp_path, on_interrupt=on_interrupt, verbose=0)
    assert end_logs == [1]
    assert model.history.interrupted
    assert rotation.list_checkpoints(tmp_path)[0].name == "step-0000000002.pt"


def test_ctrl_c_raises_by_default():
    with pytest.raises(KeyboardInterrupt, match=r"after update 2\..*pass on_interrupt='return'") as caught:
        new_model().fit(X, Y, callbacks=[SendSignal(2)], verbose=0)
    assert caught.value.__suppress_context__  # a traceback shows one exception


class Shell:
    """The shell of IPython."""


SESSIONS = {
    "a Python prompt": lambda patch: patch.setattr(sys, "ps1", ">>> ", raising=False),
    "python -i": lambda patch: patch.setattr(sys, "flags", types.SimpleNamespace(inspect=1)),
    "IPython": lambda patch: patch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=Shell)),
    "IPython, imported by a script": lambda patch: patch.setitem(
        sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None)
    ),
    "a script": lambda patch: None,
}


@pytest.mark.parametrize("session", SESSIONS)
def test_fit_returns_in_an_interactive_session_only(session, monkeypatch):
    SESSIONS[session](monkeypatch)
    # pytest may run in a session itself.
    expects_error = contextlib.nullcontext() if "script" not in session else pytest.raises(KeyboardInterrupt)
    with expects_error:
        assert fit_model(SendSignal(10), on_interrupt="auto")[1].interrupted


def stop_and_read(capsys, number=signal.SIGINT, step=10, **options):
    """Return what a stopped fit prints in the end."""
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        fit_model(SendSignal(step, number), **options)
    return capsys.readouterr().err.splitlines()[-1]


def test_the_message_names_update_epoch_folder_and_how_to_continue(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert stop_and_read(capsys, on_interrupt="raise", resume="run/") == (
        "Stopped by Ctrl-C after update 10, in epoch 2 of 3. The run is saved in 'run'; the same command resumes it."
    )
    file = "run/step-0000000010.pt"
    assert "The run is saved in 'run'; " in stop_and_read(capsys, step=12, on_interrupt="raise", resume=file)


def test_the_message_without_a_checkpoint_says_how_to_save_runs(capsys):
    assert stop_and_read(capsys, on_interrupt="auto").endswith(
        "in epoch 2 of 3. Nothing was saved; fit(..., resume='run/') saves a run and resumes it."
    )
    assert stop_and_read(capsys).endswith("fit() returns the history.")


def test_the_message_names_the_file_of_a_model_checkpoint(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = new_model()
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, epochs=3, callbacks=[ModelCheckpoint("model.pt"), SendSignal(3)], verbose=0)
    assert "The model was last saved in 'model.pt'." in capsys.readouterr().err


def test_sigterm_prints_one_line(capsys, tmp_path):
    with pytest.raises(SystemExit):
        fit_model(SendSignal(7, signal.SIGTERM), resume=tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"Stopped by SIGTERM after update 7, in epoch 1 of 3. The run is saved in {str(tmp_path)!r}; the same command "
        "resumes it. The exit status is 143."
    )


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_ctrl_c_in_an_evaluation_raises_at_once(verb):
    batches = []

    def press(batch, logs):
        batches.append(batch)
        signal.raise_signal(signal.SIGINT)

    model, before = new_model(), signal.getsignal(signal.SIGINT)
    callback = LambdaCallback(on_test_batch_end=press, on_predict_batch_end=press)
    with pytest.raises(KeyboardInterrupt):
        getattr(model, verb)(
            X, batch_size=8, verbose=0, callbacks=[callback], **({"y": Y} if verb == "evaluate" else {})
        )
    assert batches == [0]
    assert model.module.training
    assert signal.getsignal(signal.SIGINT) == before
    assert len(model.predict(X, verbose=0)) == 50


def test_an_unknown_on_interrupt_is_refused():
    with pytest.raises(ValueError, match=r"on_interrupt 'rais'.*Did you mean 'raise'"):
        fit_model(on_interrupt="rais")


def test_a_second_ctrl_c_stops_immediately():
    class TwoSignals(Callback):
        def on_before_optimizer_step(self):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit_model(TwoSignals())


def test_second_ctrl_c_does_not_wait_for_batch_norm_of_swa():
    class CountingDataset(torch.utils.data.Dataset):
        read = 0

        def __len__(self):
            return 50

        def __getitem__(self, index):
            self.read += 1
            return X[index], Y[index]

    class TwoSignals(Callback):
        def on_before_optimizer_step(self):
            if self.model.state.step == 7:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    rows, model = CountingDataset(), new_model(torch.nn.Sequential(torch.nn.BatchNorm1d(8), mlp()))
    with pytest.raises(KeyboardInterrupt):
        model.fit(torch.utils.data.DataLoader(rows, 8), 3, callbacks=[SWA(0), TwoSignals()], verbose=0)
    assert rows.read < 2 * 50


@pytest.mark.parametrize("hook", ["update", "validation"])
def test_an_interrupted_run_resumes_exactly(hook, tmp_path):
    # The loader draws a number from the global generator.
    data = {"validation_data": blob_loader(30)}
    uninterrupted, _ = fit_model(**data)
    _, history = fit_model(SendSignal(11, hook=hook), resume=tmp_path, **data)
    assert history.interrupted
    resumed, history = fit_model(resume=tmp_path, **data)
    assert not history.interrupted
    assert same_weights(resumed.module, uninterrupted.module)
    assert resumed.history.history == uninterrupted.history.history


def test_best_weights_are_restored_after_an_interruption(tmp_path):
    best = {}

    def save_best(epoch, logs):
        if epoch == 0:
            best.update({name: value.clone() for name, value in model.module.state_dict().items()})
        logs["val"] = float(epoch)

    model = new_model()
    callbacks = [
        LambdaCallback(on_epoch_end=save_best),
        EarlyStopping("val", mode="min", patience=9, restore_best_weights=True),
        SendSignal(18),
    ]
    # A callback logs "val", so the check of the monitor must not run.
    callbacks[1].on_train_begin = lambda logs=None: callbacks[1].reset()
    history = model.fit(blob_loader(), 5, callbacks=callbacks, resume=tmp_path, on_interrupt="return", verbose=0)
    assert history.interrupted
    assert all(torch.equal(best[name], value) for name, value in model.module.state_dict().items())
    # The checkpoint has the weights of training, not the best weights.
    checkpoint_weights = rotation.read_newest(tmp_path)[1]["module"]
    assert not all(torch.equal(best[name], value) for name, value in checkpoint_weights.items())


def test_fit_restores_the_signal_handlers():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    fit_model(SendSignal(5))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_fit_does_not_replace_a_custom_signal_handler():
    signals = []
    previous = signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
    try:
        _, history = fit_model(SendSignal(5, signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert signals == [1]
    assert not history.interrupted


def test_fit_works_outside_the_main_thread():
    steps = []
    thread = threading.Thread(target=lambda: steps.append(fit_model()[0].state.step))
    thread.start()
    thread.join(60)
    assert steps == [21]


def test_sigterm_saves_a_checkpoint_and_exits_with_status_143(tmp_path):
    with pytest.raises(SystemExit) as end_logs:
        fit_model(SendSignal(10, signal.SIGTERM), resume=tmp_path)
    assert end_logs.value.code == 143
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
    for fold in range(3):
        model.fit(loader, 40, resume=folder, verbose=0)
    model.save_weights(folder + "/final.pt")
    print("done", flush=True)
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


def running_processes(group):
    """Return the processes of a group that are running. Zombies are excluded."""
    alive = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        # The process has exited since the listing.
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            alive.append(entry.parent.name)
    return alive


@pytest.mark.skipif(not Path("/proc").exists(), reason="counts processes in /proc")
@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGINT, 0),
        (signal.SIGTERM, 2),
        pytest.param(signal.SIGINT, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_group_saves_the_run_and_ends_all(number, workers, tmp_path):
    process = start(tmp_path, workers)
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while not rotation.list_checkpoints(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    # A shell reports the death by SIGINT as status 130.
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGINT), err
    assert ("KeyboardInterrupt" in err) == (number == signal.SIGINT)
    assert "done" not in out
    assert not (tmp_path / "final.pt").exists()
    _, content = rotation.read_newest(tmp_path)
    assert content["state"]["step"] > 0
    assert running_processes(process.pid) == []


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
        # The launcher must wait for its ranks before the signal.
        time.sleep(0.2)
        process.terminate()
        process.wait(timeout=60)
        assert process.returncode != 0
        assert running_processes(process.pid) == []
    finally:
        process.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("program", "kills"), [("classifier", 10), ("background", 10), ("frequent", 10), ("gan", 5)])
def test_kills_at_random_moments_lose_nothing(program, kills, tmp_path):
    from tests.chaos import PROGRAMS, run

    report = run(kills=kills, folder=tmp_path, seed=0, program=PROGRAMS[program])
    assert report.damaged == report.stray == 0
    assert report.equal


def test_the_death_of_a_worker_is_an_error_and_ends_the_rest(tmp_path):
    class KillWorkerDataset(torch.utils.data.Dataset):
        def __len__(self):
            return 50

        def __getitem__(self, index):
            if index == 30:
                # The parent reads the memory of earlier batches from a live worker.
                time.sleep(0.5)
                os.kill(os.getpid(), signal.SIGKILL)
            return X[index], Y[index]

    end_logs = []
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|is killed by signal"):
        new_model().fit(
            torch.utils.data.DataLoader(KillWorkerDataset(), 8, num_workers=2),
            verbose=0,
            callbacks=[LambdaCallback(on_train_end=lambda logs: end_logs.append(1))],
        )
    assert end_logs == [1]


def test_ctrl_c_stops_training_under_asyncio(capsys):
    async def train():
        return fit_model(SendSignal(5))

    handler = signal.getsignal(signal.SIGINT)
    model, history = asyncio.run(train())
    assert history.interrupted
    assert model.state.step == 5
    assert signal.getsignal(signal.SIGINT) == handler


def test_ctrl_c_in_on_train_end_does_not_skip_the_other_hooks():
    def interrupt(logs):
        raise KeyboardInterrupt

    stopping = EarlyStopping("loss", restore_best_weights=True)
    ended = []
    callbacks = [LambdaCallback(on_train_end=interrupt), stopping, LambdaCallback(on_train_end=ended.append)]
    with pytest.raises(KeyboardInterrupt):
        new_model().fit(X, Y, callbacks=callbacks, verbose=0)
    assert len(ended) == 1
    assert stopping.best_epoch == 0
    assert stopping.best_weights is None  # they were restored


def test_ctrl_c_in_on_train_end_wins_over_an_earlier_error():
    def fail(*_):
        raise ValueError("the error")

    def interrupt(logs):
        raise KeyboardInterrupt

    callbacks = [LambdaCallback(on_train_batch_end=fail), LambdaCallback(on_train_end=interrupt)]
    with pytest.raises(KeyboardInterrupt):
        new_model().fit(X, Y, callbacks=callbacks, verbose=0)


def test_an_interrupt_in_any_line_leaves_the_metrics_of_the_epoch():
    from easytorch.training.evaluation import separate_metrics

    code, model = separate_metrics.__wrapped__.__code__, new_model()
    metrics = model.metrics

    def interrupt_in(line):
        """Raise ``KeyboardInterrupt`` before ``line`` is run the first time, and return whether it was reached."""
        reached = []

        def trace(frame, event, _):
            if frame.f_code is code and event == "line" and frame.f_lineno == line and not reached:
                reached.append(line)
                raise KeyboardInterrupt
            return trace if frame.f_code is code else None

        previous = sys.gettrace()
        sys.settrace(lambda frame, event, _: trace(frame, event, None) if frame.f_code is code else None)
        try:
            model.train_on_batch(X[:8], Y[:8])
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(previous)
        return bool(reached)

    lines = {line for _, _, line in code.co_lines() if line is not None}
    for line in sorted(lines):
        interrupt_in(line)
        assert model.metrics is metrics, line
    assert sum(map(interrupt_in, lines)) >= 5
