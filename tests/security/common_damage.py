"""Promise 4: a file is whole or absent, a damaged one is refused, and none can do harm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from easytorch import FileError
from easytorch.checkpoint import files
from tests.loops import blobs

X, Y = blobs(50)


def run_module(*arguments: str, timeout: int = 300) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", "-m", *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"died with {done.returncode} after {last}\n{done.stderr[-3000:]}"
    return done.stdout


def _is_whole(path):
    try:
        files.read(path)
    except FileError:
        return False
    return True


def _refusal(function):
    """Return the error by which ``function`` refuses what it is given, None if it does not."""
    try:
        function()
    except (TypeError, ValueError) as error:
        return error
    return None


# Power cuts

FOLDERS_SYNC = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot sync a folder")


def _content(step):
    return {"format": files.FORMAT, "version": files.VERSION, "step": step, "module": {"w": torch.full((600,), step)}}
