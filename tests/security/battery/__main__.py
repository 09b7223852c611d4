"""The battery as a program: ``python -m tests.security.battery --runs 3 --seed 0``."""

from __future__ import annotations

import argparse
import functools
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator

from tests.security.battery import configurations, hidden_state, kills, lines, signals, writers

# A line of the table: what was done, how often, what held, and what did not.
Row = tuple[str, str, int, list[str]]


def kill_rows(name: str, module: object, runs: int, seed: int) -> Row:
    cases = {case: functools.partial(module.make_program, case) for case in module.CASES}
    results, _ = kills.attack(cases, runs, seed)
    count = sum(len(result.kills) for result in results)
    verdicts = Counter(result.verdict for result in results)
    damaged = sum(result.damaged for result in results)
    wrong = [f"{r.verdict}: {r.name}, {r.kills}: {r.differences} {r.messages}" for r in results if r.verdict != "exact"]
    wrong += [f"{damaged} damaged checkpoints"] * bool(damaged)
    return name, f"{len(cases)} cases, {len(results)} runs, {count} kills", verdicts["exact"], wrong


def line_row(name: str, trials: list[lines.Trial]) -> Row:
    broken = [f"{trial.name}: {trial.error} at {trial.place}: {trial.broken}" for trial in trials if trial.broken]
    return name, f"{len(trials)} exceptions", len(trials) - len(broken), broken


def signal_row(runs: int, seed: int) -> Row:
    count, sent, broken = signals.attack(runs, seed)
    return "two signals", f"{count} runs, {sent} signals", count - len({line.split()[1] for line in broken}), broken


def writer_row(runs: int, seed: int) -> Row:
    killed, reads, broken = writers.attack(26 * runs, 530 * runs, seed)
    return "writers and a reader", f"{killed} kills, {reads} reads", reads - len(broken), broken


# Attack, by name. Runs times a factor is about the size of the table in the report on attacks with ``--runs 3``.
ATTACKS: dict[str, Callable[[int, int], Row]] = {
    "configurations": lambda runs, seed: kill_rows("kills, configurations", configurations, runs, seed),
    "hidden": lambda runs, seed: kill_rows("kills, hidden state", hidden_state, runs, seed),
    "fit": lambda runs, seed: line_row("exceptions in fit", lines.attack_fit(250 * runs, seed)),
    "calls": lambda runs, seed: line_row("exceptions in other calls", lines.attack_calls(138 * runs, seed)),
    "hooks": lambda runs, seed: line_row("exceptions in hooks", lines.attack_hooks(seed)),
    "signals": lambda runs, seed: signal_row(8 * runs, seed),
    "writers": writer_row,
}


def run(names: list[str], runs: int, seed: int) -> Iterator[Row]:
    for name in names:
        yield ATTACKS[name](runs, seed)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=1, help="runs of each case, and a factor for the other attacks")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--attacks", nargs="*", default=list(ATTACKS), choices=list(ATTACKS))
    args = options.parse_args()
    warnings.simplefilter("ignore")
    total = 0
    for name in args.attacks:
        started_at = time.monotonic()
        for title, size, held, broken in run([name], args.runs, args.seed):
            total += len(broken)
            print(
                f"{title:28} {size:36} held {held:5}  did not {len(broken):4}  {time.monotonic() - started_at:6.0f} s"
            )
            print("".join(f"    {line[:400]}\n" for line in broken), end="", flush=True)
    raise SystemExit(1 if total else 0)


if __name__ == "__main__":
    main()
