"""Settings that make training faster, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from easytorch._utils.integers import optional_boolean, optional_positive_number
from easytorch.tuning.base import Measurement, Row
from easytorch.tuning.candidates import (
    OTHER_TRAINING,
    Candidates,
    Setting,
    combine,
    describe,
    describe_usage,
)
from easytorch.tuning.loaders import check_data
from easytorch.tuning.progress import StepDisplay
from easytorch.tuning.settings import Program
from easytorch.tuning.timing import Timing, UpdateTimer

if TYPE_CHECKING:
    from easytorch.model import Model

# Rounds without which nothing is suggested, and rounds at most. In each round every setting is measured once.
MIN_ROUNDS, MAX_ROUNDS = 5, 15
# Seconds that a measurement should take, and its number of updates.
SECONDS, MIN_UPDATES, MAX_UPDATES, WARMUP = 0.25, 4, 60, 2
# A gain below this share is noise on any machine.
MIN_GAIN = 0.03
# The noise is so many times the median difference between two measurements of the present settings: two standard deviations.
NOISE_FACTOR = 3.0
# A setting that is slower by this factor in the first two rounds is not measured again.
HOPELESS = 1.2
# A setting whose first try takes so many times as long is not measured in rounds.
VERY_SLOW = 3.0
# The share of the time limit for the compilation, and after which those settings are combined that help.
COMPILE_SHARE, SINGLE_SHARE = 0.35, 0.75
CONTROL = "present settings again"

# Returns the time of a number of updates with a setting, if they end within a number of seconds.
Measure = Callable[[Setting, int, "float | None"], Timing]


class Speeds(Measurement):
    """The time of training with several settings, divided by that of the present ones; ``tune_speed`` returns it.

    Attributes:
        suggestion: The settings that are faster, by their name; empty if none is.
        ratio: Their time divided by the present one.
        lines: The lines to paste into the program.
        noise: The difference between measurements of equal settings, as a share.
        seconds_per_update: The time of an update with the present settings.
        rows: For each setting the ratio, its range over the rounds, the difference of the loss after the same number of updates,
            and what follows.

    Examples:
        >>> found = model.tune_speed(train_loader, seconds=3)
        >>> print(found)
    """

    title = "Time of training, divided by that of the present settings"

    def __init__(self, search: SpeedSearch) -> None:
        self.seconds_per_update, self.noise = search.seconds_per_update, search.noise
        best = search.best()
        self.ratio = 1.0 if best is None else search.ratio(best)
        suggestion = {} if best is None else dict(search.settings[best])
        self.lines = describe_usage(suggestion)
        reason = (
            f"No setting is faster than the present ones beyond the noise of {self.noise:.0%}."
            if best is None
            else f"Suggestion: {best}. It takes {self.ratio:.2f} of the present time; the noise is {self.noise:.0%}."
        )
        notes = [
            f"An update takes {_format_seconds(self.seconds_per_update)} with the present settings.",
            *search.notes(),
        ]
        notes += [f"Use it: {line}" for line in self.lines]
        super().__init__(search.rows(), suggestion, reason, notes)

    def shown_rows(self) -> list[Row]:
        """Return the rows with short cells."""
        return [
            {
                "setting": row["setting"],
                "ratio": None if row["ratio"] is None else f"{row['ratio']:.2f}",
                "range": None if row["low"] is None else f"{row['low']:.2f} - {row['high']:.2f}",
                "loss": None if row["loss_difference"] is None else f"{row['loss_difference']:+.2%}",
                "result": row["result"],
            }
            for row in self.rows
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the table, the suggestion, its ratio and the reason as plain values.

        Examples:
            >>> found = model.tune_speed(x, y, seconds=3, verbose=0)
            >>> ratio = found.to_dict()["ratio"]
        """
        return super().to_dict() | {"ratio": self.ratio, "noise": self.noise, "lines": list(self.lines)}

    def panels(self) -> Sequence[tuple[str, Callable[[Any], None]]]:
        """Return the panel of the ratios."""
        return [(self.title, self._draw)]

    def _draw(self, axes: Any) -> None:
        rows = [row for row in self.rows if row["ratio"] is not None][::-1]
        ratios = [row["ratio"] for row in rows]
        errors = [[row["ratio"] - row["low"] for row in rows], [row["high"] - row["ratio"] for row in rows]]
        axes.barh([row["setting"] for row in rows], ratios, xerr=errors, alpha=0.7)
        axes.axvline(1.0, color="C3", linestyle="--")
        axes.set_xlabel("time / present time")


class SpeedSearch:
    """Interleaved measurements of settings, and what follows from them.

    In each round every setting is measured once, between two measurements of the present settings, by whose mean it is divided.
    The ratio of a setting is the median over the rounds. The noise is three times the median difference between successive
    measurements of the present settings.

    Args:
        measure: Measures a setting, or raises an error.
        settings: The settings.
        skipped: Why others cannot be tried, by their text.
        has_same_batches: Whether a setting trains on the same batches, so that the losses can be compared.
        seconds: The time limit.
        show: Displays the step that is running.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        measure: Measure,
        settings: Sequence[Setting],
        skipped: Mapping[str, str],
        *,
        has_same_batches: Callable[[Setting], bool] = lambda setting: True,
        seconds: float = 60.0,
        show: Callable[[str], None] = lambda step: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._measure, self._has_same_batches, self._show = measure, has_same_batches, show
        self._seconds, self._clock, self._start = seconds, clock, clock()
        # Compilation takes long, so it is tried last.
        ordered = sorted(settings, key=lambda setting: "jit_compile" in setting)
        self.settings: dict[str, Setting] = {describe(setting): setting for setting in ordered}
        self.skipped = dict(skipped)
        self._ratios: dict[str, list[float]] = {CONTROL: [], **{name: [] for name in self.settings}}
        self._first: dict[str, float] = {}  # the ratio of the first try
        self._losses: dict[str, float] = {}
        self._updates = MIN_UPDATES
        self._compile_seconds = 0.0
        self.seconds_per_update = 0.0

    def run(self) -> None:
        """Measure every setting, and then those that help together."""
        self._prepare()
        names = list(self.settings)
        self._run_rounds(names, SINGLE_SHARE * self._seconds)
        helpful = sorted((name for name in names if self._is_useful(name)), key=self.ratio)
        combined = combine([self.settings[name] for name in helpful])
        if len(combined) > 1:
            combination = describe(combined)
            self.settings[combination], self._ratios[combination] = combined, []
            self._run_rounds([helpful[0], combination], self._seconds)

    # Measurement

    def _prepare(self) -> None:
        """Choose the number of updates, and try each setting once."""
        self._show("present settings")
        first = self._measure({}, MIN_UPDATES, None)
        self.seconds_per_update = first.seconds
        self._updates = max(MIN_UPDATES, min(MAX_UPDATES, round(SECONDS / max(self.seconds_per_update, 1e-9))))
        for name, setting in self.settings.items():
            start = self._clock()
            self._show(f"first try of {name}")
            if setting.get("jit_compile"):
                self._try(name, MIN_UPDATES, COMPILE_SHARE * self._seconds)
                self._compile_seconds = self._clock() - start
            elif not self._is_over(SINGLE_SHARE * self._seconds) and (timing := self._try(name, MIN_UPDATES)):
                self._first[name] = timing.seconds_per_sample / first.seconds_per_sample
                self._compare_losses(name, timing, first)

    def _run_rounds(self, names: Sequence[str], end: float) -> None:
        """Measure ``names`` in rounds until ``end``, in another order in each round."""
        for i in range(MAX_ROUNDS):
            active = [name for name in names if self._is_open(name)]
            start = self._clock()
            if not active:
                return
            elapsed = start - self._start
            self._show(f"round {i + 1} of {len(active)} settings, after {elapsed:.0f} of at most {self._seconds:.0f} s")
            self._run_round(active[i % len(active) :] + active[: i % len(active)])
            if self._is_over(end - (self._clock() - start)):
                return

    def _run_round(self, names: Sequence[str]) -> None:
        start = self._clock()
        before = self._measure({}, self._updates, None)
        for i, name in enumerate(names):
            # A setting, and the present ones after it, take about two of the 1 + 2 * i measurements so far.
            if i and self._is_over(self._seconds - 2 * (self._clock() - start) / (1 + 2 * i)):
                return
            timing = self._try(name, self._updates)
            after = self._measure({}, self._updates, None)
            if timing is not None:
                present = (before.seconds_per_sample + after.seconds_per_sample) / 2
                self._ratios[name].append(timing.seconds_per_sample / present)
                self._compare_losses(name, timing, after)
            self._ratios[CONTROL].append(after.seconds_per_sample / before.seconds_per_sample)
            before, self.seconds_per_update = after, after.seconds

    def _try(self, name: str, updates: int, limit: float | None = None) -> Timing | None:
        """Return the time of ``updates`` with a setting; after an error, None, and the setting is skipped."""
        if name in self.skipped:
            return None
        try:
            return self._measure(self.settings[name], updates, limit)
        except Exception as error:  # torch, the compiler and workers raise anything
            reason = _find_timeout(error) or error
            lines = str(reason).strip().splitlines() or [type(reason).__name__]
            self.skipped[name] = lines[0]
            return None

    def _compare_losses(self, name: str, timing: Timing, present: Timing) -> None:
        if timing.loss is not None and present.loss and self._has_same_batches(self.settings[name]):
            self._losses[name] = (timing.loss - present.loss) / abs(present.loss)

    def _is_open(self, name: str) -> bool:
        """Return whether a setting may still turn out to be faster."""
        ratios = self._ratios[name]
        is_hopeless = self._first.get(name, 1.0) > VERY_SLOW or (len(ratios) > 1 and min(ratios) > HOPELESS)
        return name not in self.skipped and not is_hopeless

    def _is_over(self, end: float) -> bool:
        return self._clock() - self._start > end

    # Results

    @property
    def noise(self) -> float:
        """The difference between measurements of equal settings, as a share."""
        differences = [abs(ratio - 1.0) for ratio in self._ratios[CONTROL]]
        return max(MIN_GAIN, NOISE_FACTOR * statistics.median(differences)) if differences else MIN_GAIN

    def ratio(self, name: str) -> float:
        """Return the median ratio of a setting."""
        return statistics.median(self._ratios[name])

    def is_faster(self, name: str) -> bool:
        """Return whether a setting is faster than the present ones beyond the noise, and in almost all rounds."""
        ratios = self._ratios[name]
        if len(ratios) < MIN_ROUNDS or name in self.skipped:
            return False
        slower = sum(ratio >= 1.0 for ratio in ratios)
        return self.ratio(name) < 1.0 - self.noise and slower <= len(ratios) // 8

    def best(self) -> str | None:
        """Return the fastest setting that trains on the same batches; None if none is faster than the present ones."""
        return min(filter(self._is_useful, self.settings), key=self.ratio, default=None)

    def rows(self) -> list[Row]:
        """Return a row for each setting."""
        return [self._row(name) for name in dict.fromkeys([CONTROL, *self.settings, *self.skipped])]

    def notes(self) -> list[str]:
        """Return what must be known to use the results."""
        notes = []
        others = [n for n in self.settings if self.is_faster(n) and self._trains_otherwise(n)]
        for name in others:
            notes.append(
                f"{name} takes {self.ratio(name):.2f} of the time per sample, but trains otherwise: find its learning rate "
                "again."
            )
        best = self.best()
        if best is not None and self.settings[best].get("jit_compile") and self._compile_seconds is not None:
            gain = self.seconds_per_update * (1.0 - self.ratio(best))
            notes.append(
                f"Compilation took {self._compile_seconds:.0f} s, which pays off after {self._compile_seconds / gain:,.0f} "
                "updates."
            )
        return notes

    def _is_useful(self, name: str) -> bool:
        return self.is_faster(name) and not self._trains_otherwise(name)

    def _trains_otherwise(self, name: str) -> bool:
        return any(key in OTHER_TRAINING for key in self.settings[name])

    def _row(self, name: str) -> Row:
        ratios = [] if name in self.skipped else self._ratios[name]
        if not ratios and name in self._first:
            ratios = [self._first[name]]
        return {
            "setting": name,
            "ratio": statistics.median(ratios) if ratios else None,
            "low": min(ratios, default=None),
            "high": max(ratios, default=None),
            "rounds": len(ratios),
            "loss_difference": self._losses.get(name) if ratios else None,
            "result": self._describe_result(name, ratios),
        }

    def _describe_result(self, name: str, ratios: Sequence[float]) -> str:
        if name in self.skipped:
            return f"not measured: {self.skipped[name]}"
        if name == CONTROL:
            return "control"
        if self.is_faster(name):
            return "faster"
        if ratios and statistics.median(ratios) > 1.0 + self.noise:
            return "slower"
        if len(ratios) < MIN_ROUNDS:
            return f"only {len(ratios)} of {MIN_ROUNDS} rounds: pass a larger number of seconds"
        return "within the noise"


def tune_speed(
    model: Model,
    x: Any,
    y: Any = None,
    *,
    seconds: float = 60.0,
    batch_size: int | None = None,
    shuffle: bool | None = None,
    verbose: int | str = "auto",
    **options: Any,
) -> Speeds:
    """Measure what makes training faster on this machine; see ``Model.tune_speed``."""
    start = time.perf_counter()
    model.require_optimizer("tune_speed")
    optional_positive_number("seconds", seconds)
    shuffle = optional_boolean("shuffle", shuffle)
    if model.strategy.group.world_size > 1:
        raise ValueError("tune_speed() measures one process. Call it in a program with one process.")
    check_data("tune_speed", x, y)
    with StepDisplay("tune_speed", verbose) as display:
        display.show("which settings can be tried")
        candidates = Candidates(model, x, y, batch_size=batch_size, shuffle=shuffle)
        program = Program(model, candidates, options)

        def measure(setting: Setting, updates: int, limit: float | None) -> Timing:
            timer = UpdateTimer(WARMUP + 2 * setting.get("num_workers", 0), updates)
            return program.measure(setting, timer, limit)

        left = max(1.0, seconds - (time.perf_counter() - start))
        search = SpeedSearch(
            measure, candidates.settings, candidates.skipped, has_same_batches=program.has_same_batches, seconds=left,
            show=display.show,
        )  # fmt: skip
        search.run()
    return Speeds(search)


def _find_timeout(error: BaseException | None) -> TimeoutError | None:
    """Return the ``TimeoutError`` that caused ``error``, if any."""
    while error is not None:
        if isinstance(error, TimeoutError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _format_seconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
