"""Shared helpers of the security tests."""

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
    process = subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", "-m", *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    last_line = process.stdout.splitlines()[-1:]
    assert process.returncode == 0, f"died with {process.returncode} after {last_line}\n{process.stderr[-3000:]}"
    return process.stdout


def is_intact(path):
    try:
        files.read(path)
    except FileError:
        return False
    return True


def refusal_of(function):
    """Return the TypeError or ValueError that ``function`` raises, or None."""
    try:
        function()
    except (TypeError, ValueError) as error:
        return error
    return None


FOLDERS_SYNC = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot sync a folder")


def content_of_step(step):
    return {"format": files.FORMAT, "version": files.VERSION, "step": step, "module": {"w": torch.full((600,), step)}}
