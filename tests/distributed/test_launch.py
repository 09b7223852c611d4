"""Functions that launch runs in several processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed

from easytorch import launch
from easytorch.distributed.launch import Rank, _collect_results
from tests.many import run_ranks

ROOT = Path(__file__).parents[2]


def rank():
    return int(os.environ["RANK"])


def fork(function, *args, **options):
    return launch(function, *args, start="fork", **{"timeout": 60, **options})


def test_results_come_in_rank_order():
    def return_rank_late():
        time.sleep(0.2 * (2 - rank()))
        return rank()

    assert fork(return_rank_late, processes=3) == [0, 1, 2]


def test_arguments_are_passed_to_every_rank():
    assert fork(lambda x, y: (rank(), x + y), 1, 2) == [(0, 3), (1, 3)]


def test_a_large_result_arrives():
    assert [len(result) for result in fork(lambda: bytes(10_000_000))] == [10_000_000] * 2


def test_ranks_see_the_variables_of_torchrun():
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK")
    assert fork(lambda: [os.environ[name] for name in names]) == [["2", "2", "0"], ["2", "2", "1"]]


def fail_on_rank_1():
    if rank() == 1:
        raise ArithmeticError("wanted")
    time.sleep(100)


def test_a_failure_carries_the_traceback_of_its_rank():
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?s)^Rank 1 of 2 failed.*in fail_on_rank_1.*ArithmeticError: wanted"):
        fork(fail_on_rank_1)
    assert time.monotonic() - start < 30


def test_an_exit_without_traceback_is_reported():
    with pytest.raises(RuntimeError, match=r"exited with code 3 and no traceback"):
        fork(lambda: os._exit(3) if rank() == 0 else time.sleep(100))


def test_a_result_that_cannot_be_pickled_is_reported():
    with pytest.raises(RuntimeError, match=r"(?s)Rank . of 2 failed.*pickle"):
        fork(lambda: lambda: None)


def test_a_timeout_names_the_running_ranks():
    with pytest.raises(TimeoutError, match=r"timeout=1 seconds; rank 1 had not finished\. Pass a larger timeout"):
        fork(lambda: time.sleep(100 * rank()), timeout=1)


def write_pid_and_wait(folder):
    (folder / f"{os.getpid()}").touch()
    if rank() == 0:
        while len(list(folder.iterdir())) < 2:
            time.sleep(0.01)
        raise ValueError("wanted")
    time.sleep(100)


def test_no_process_survives_a_failure(tmp_path):
    with pytest.raises(RuntimeError, match="wanted"):
        fork(write_pid_and_wait, tmp_path)
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)


@pytest.mark.distributed
def test_spawned_processes_import_the_function():
    assert launch(rank, processes=2, start="spawn", timeout=120) == [0, 1]


def test_launch_works_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.extend(fork(rank)))
    thread.start()
    thread.join(60)
    assert results == [0, 1]


def test_signal_handlers_are_restored():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    fork(rank)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


CTRL_C = """
    import time
    from easytorch import launch

    def stop_in_order():
        print("ready", flush=True)
        try:
            time.sleep(100)
        except KeyboardInterrupt:
            return "stopped in order"

    print(launch(stop_in_order, processes=2, start="fork"))
"""


@pytest.mark.distributed
def test_after_ctrl_c_ranks_stop_and_return_results():
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CTRL_C)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert [process.stdout.readline() for _ in range(2)] == 2 * ["ready\n"]
        # The ranks have printed, but launch() may not wait for them yet.
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        assert out == "['stopped in order', 'stopped in order']\n"
        assert process.returncode == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("processes", [0, 1.5, "2", True], ids=repr)
def test_a_wrong_number_of_processes_is_refused(processes):
    with pytest.raises(ValueError, match="processes must be a positive integer, received"):
        launch(rank, processes=processes)


def test_an_unknown_start_method_is_refused():
    with pytest.raises(ValueError, match="start must be 'auto', 'fork' or 'spawn', received 'thread'"):
        launch(rank, start="thread")


def test_what_is_no_importable_function_is_refused_first():
    with pytest.raises(TypeError, match=r"expects a function, received int\. Pass the function .* without calling it"):
        launch(7)
    with pytest.raises(TypeError, match=r"cannot import <function .*lambda.*Define it with def .* start='fork'"):
        launch(lambda: 7, start="spawn")
    assert launch(lambda: 7, start="fork") == [7, 7]


@pytest.mark.parametrize(("notebook", "method"), [(True, "fork"), (False, "spawn")])
def test_auto_forks_in_a_notebook_only(monkeypatch, notebook, method):
    module = sys.modules[launch.__module__]
    monkeypatch.setattr(module, "in_notebook", lambda: notebook)
    assert module._choose_start_method("auto") == method


def fail():
    raise ArithmeticError("wanted")


def test_a_failed_launch_keeps_no_store_alive():
    """Forked copies lack the thread of a store; they would abort or hang when they free it."""
    with pytest.raises(RuntimeError, match="ArithmeticError: wanted") as failure:
        run_ranks(fail)
    objects = [value for frame, _ in traceback.walk_tb(failure.tb) for value in frame.f_locals.values()]
    assert not [value for value in objects if isinstance(value, torch.distributed.Store)]


def test_ctrl_c_in_a_rank_is_raised_after_the_others_have_ended():
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(2)]
    ranks = [Rank(None, receiver) for receiver, _ in pipes]
    pipes[0][1].send((False, KeyboardInterrupt("stopped after update 7")))
    pipes[1][1].send((False, KeyboardInterrupt("stopped after update 7")))
    with pytest.raises(KeyboardInterrupt, match="update 7"):
        _collect_results(ranks, timeout=10)
    assert not pipes[1][0].poll()  # it was read
