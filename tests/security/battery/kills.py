"""Runs that are killed again and again, compared with undisturbed ones."""

from __future__ import annotations

import dataclasses
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from easytorch import FileError
from easytorch.checkpoint import files, rotation
from tests.security.battery.starts import Kill, Program, differing, random_kill, start

SAVE_FREQUENCIES = (1, 2, 3, 5, "epoch")
MAX_KILLS = 6


@dataclasses.dataclass
class Run:
    """One run of a program: the kills that it met, and what of its end differs from an undisturbed run."""

    name: str
    kills: list[str]
    differences: list[str]
    messages: list[str]
    damaged: int = 0

    @property
    def verdict(self) -> str:
        """``"exact"``, ``"reported"`` if a warning or an error announces the difference, or ``"silent"``."""
        if not self.differences:
            return "exact"
        return "reported" if self.messages else "silent"


def kill_and_resume(name: str, program: Program, folder: Path, expected: dict[str, Any], kills: list[Kill]) -> Run:
    """Start a program in an empty folder, once for each kill and once more to its end."""
    run = Run(name, [], [], [])
    for kill in [*kills, None]:
        outcome = start(program, folder, [kill.make_callback()] if kill else [])
        run.messages += [message for message in outcome.messages if message not in run.messages]
        run.damaged += sum(map(is_damaged, rotation.list_checkpoints(folder / "run")))
        if outcome.status != "stopped":
            break
        run.kills.append(str(kill))
    if outcome.status == "failed":
        run.messages.append(outcome.result["error"])
    run.differences = differing(expected, outcome.result)
    return run


def is_damaged(path: Path) -> bool:
    try:
        files.read_model(path)
    except FileError:
        return True
    return False


def attack(
    cases: dict[str, Callable[[Any], Program]], runs: int, seed: int, is_verbose: bool = False
) -> tuple[list[Run], dict[str, list[str]]]:
    """Kill ``runs`` runs of each case; return the runs, and the messages of undisturbed ones by case."""
    results, undisturbed = [], {}
    for name, make_program in cases.items():
        rng = random.Random(f"{seed} {name}")
        # All runs of a case use one folder, since its name is in their files.
        with tempfile.TemporaryDirectory() as path:
            folder = Path(path) / "files"
            folder.mkdir()
            expected = start(make_program("epoch"), folder)
            undisturbed[name] = expected.messages
            if expected.status != "ended":
                undisturbed[name] = [*expected.messages, str(expected.result.get("error", expected.status))]
                results.append(Run(name, [], ["the undisturbed run"], undisturbed[name]))
                continue
            for _ in range(runs):
                shutil.rmtree(folder)
                folder.mkdir()
                program = make_program(rng.choice(SAVE_FREQUENCIES))
                kills = [random_kill(rng) for _ in range(rng.randint(1, MAX_KILLS))]
                results.append(kill_and_resume(name, program, folder, expected.result, kills))
                if is_verbose and results[-1].verdict != "exact":
                    print(f"  {results[-1].verdict}: {results[-1]}", flush=True)
    return results, undisturbed
