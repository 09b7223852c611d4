"""The end of a program: the right status, and no thread that could end the interpreter with SIGABRT."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import exits

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

ROOT = Path(__file__).parents[2]

# Print the number of Gloo threads after all other handlers. The last two lines make it likely that a thread has not yet freed its
# tensors when the program ends.
PROGRAM = """
import atexit, os, sys, tempfile, torch

def count_threads():
    names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
    return names.count("pt_gloo_runloop")

atexit.register(lambda: print("threads at the end:", count_threads(), flush=True))
import easytorch
x, y = torch.randn(64, 8), torch.randint(3, (64,))
model = easytorch.Model(torch.nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy", strategy="STRATEGY")
model.fit(x, y, verbose=0, resume=tempfile.mkdtemp())
print("threads:", count_threads(), flush=True)
END
sys.setswitchinterval(1000)
torch.distributed.all_reduce(torch.ones(1000))
"""


def start_ranks(strategy, end="", ranks=2):
    """Start the program in ``ranks`` processes without a launcher, on a port that is free."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    addresses = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    addresses |= {"LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    program = PROGRAM.replace("STRATEGY", strategy).replace("END", end)
    return [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=os.environ | addresses | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize(
    ("strategy", "end"), [("ddp", ""), ("ddp", "sys.exit(7)"), ("fsdp", ""), ("fsdp", "raise ValueError")]
)
def test_no_gloo_thread_outlives_the_exit_handlers(strategy, end):
    ranks = start_ranks(strategy, end)
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    for output in outputs:
        assert "threads at the end: 0" in output
        assert "threads: 0" not in output
    expected = {"": 0, "raise ValueError": 1, "sys.exit(7)": 7}[end]
    assert [rank.returncode for rank in ranks] == [expected] * 2, outputs


def test_a_rank_that_died_delays_the_others_by_seconds():
    # Rank 1 dies when rank 0 has started a collective, which no other rank finishes.
    end = "if os.environ['RANK'] == '1': input()\nwork = torch.distributed.all_reduce(torch.ones(3), async_op=True)"
    ranks = start_ranks("ddp", end)
    for rank in ranks:
        for line in rank.stdout:
            if line.startswith("threads:"):
                break
    time.sleep(1)
    os.kill(ranks[1].pid, signal.SIGKILL)
    start = time.monotonic()
    output = ranks[0].communicate(timeout=60)[0]
    ranks[1].communicate()
    assert ranks[0].returncode != 0, output
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("strategy", "end"), [("ddp", "finished"), ("ddp", "sigterm"), ("fsdp", "finished"), ("fsdp", "exception")]
)
def test_a_launch_of_torchrun_ends_with_the_right_status(tmp_path, strategy, end):
    assert exits.run(1, tmp_path, strategy, end, "exec") == {"right": 1}
