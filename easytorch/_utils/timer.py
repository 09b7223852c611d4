"""Time measurement of the phases of an epoch."""

from __future__ import annotations

from time import perf_counter

PARTS = ("data", "model", "optimizer", "validation", "rest")


class Timer:
    """Measures the seconds of each phase of an epoch; a mark ends a phase.

    The phases are:

    - ``data``: waiting for batches.
    - ``model``: copies to the device, forward and backward pass.
    - ``optimizer``: the optimizer step.
    - ``validation``: the evaluation of the validation data.
    - ``rest``: callbacks, logs and this library.

    A mark takes a fraction of a microsecond. An accelerator runs asynchronously, and the times are those of the host: ``data`` is
    exact, and the other phases show where the host had to wait.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Set all times to zero, and start the first phase."""
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._last = perf_counter()

    def mark(self, phase: str) -> None:
        """Add the time since the last mark to ``phase``."""
        now = perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now

    def mark_data(self, requested_at: float) -> None:
        """Add the time until the next batch was requested to ``rest``, and the time since then to ``data``."""
        now, seconds = perf_counter(), self.seconds
        seconds["rest"] += requested_at - self._last
        seconds["data"] += now - requested_at
        self._last = now

    def read(self) -> dict[str, float]:
        """Return the seconds of each phase; their sum is the time since the start."""
        self.mark("rest")
        return dict(self.seconds)


def compute_fractions(seconds: dict[str, float]) -> dict[str, float]:
    """Return the fraction of time of each phase, in [0, 1]; without ``validation`` if there was none."""
    total = sum(seconds.values()) or 1.0
    return {phase: value / total for phase, value in seconds.items() if value or phase != "validation"}
