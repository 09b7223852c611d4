from __future__ import annotations

import os
import signal
import sys

# Tiny modules gain nothing from threads, and tests on a busy machine lose much. The variable is for the processes that
# tests start: two workers whose children each use all cores take ten times as long.
os.environ["OMP_NUM_THREADS"] = "1"
# The compiler of torch starts a pool of processes otherwise, which takes longer than compiling a tiny module.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)

# Most tests of these files start processes. The first case of each test is in the fast set.
# All other cases are "distributed".
FILES_WITH_PROCESSES = (
    "tests/distributed/",
    "tests/strategies/test_fsdp.py",
    "tests/checkpoint/test_dcp.py",
)

# Ray replaces signal handlers of the process outside of Python, and forked ranks inherit them: SIGINT then crashes a rank.
# `.ci/check slow` runs these files in a separate process, and a run of all tests runs them last.
# W&B and MLflow remember settings and paths, also those of the programs in the docs.
FILES_THAT_CHANGE_THE_PROCESS = ("tests/callbacks/test_ray.py", "tests/callbacks/test_tracker_libraries.py")

# A shell starts background jobs with SIGINT ignored. The tests of Ctrl-C need the handler of Python.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    tests_with_case = set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if item.nodeid.startswith(FILES_WITH_PROCESSES) and test in tests_with_case:
            item.add_marker(pytest.mark.distributed)
        tests_with_case.add(test)
        if item.nodeid.startswith(FILES_THAT_CHANGE_THE_PROCESS):
            item.add_marker(pytest.mark.isolated)
    items.sort(key=lambda item: item.get_closest_marker("isolated") is not None)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _bf16_on_each_processor(monkeypatch):
    """Let tests use bfloat16 on processors without its instructions, where it is right but slow."""
    from easytorch._utils import torch_private

    monkeypatch.setattr(torch_private, "cpu_has_bf16", lambda: True)


@pytest.fixture(autouse=True)
def _without_figures():
    yield
    pyplot = sys.modules.get("matplotlib.pyplot")  # None also if a test forbids the import
    if pyplot is not None:
        pyplot.close("all")
