"""Where the time of an epoch goes."""

from __future__ import annotations

from time import perf_counter

PARTS = ("data", "model", "optimizer", "validation", "rest")


class Timer:
    """Measures the seconds of an epoch by part.

    The parts are ``data`` (waiting for batches), ``model`` (forward and backward, with copies to the device), ``optimizer``
    (the update), ``validation``, and ``rest`` (callbacks and logs). A mark takes a fraction of a microsecond.

    On an accelerator, which computes while the host continues, these are seconds of the host. The wait for data is exact; other
    parts show where the host had to wait for the device.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Set all parts to 0."""
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._last = perf_counter()

    def mark(self, part: str) -> None:
        """Add the time since the last mark to ``part``."""
        now = perf_counter()
        self.seconds[part] += now - self._last
        self._last = now

    def read(self) -> dict[str, float]:
        """Return the seconds of each part, which sum to the time since the start."""
        self.mark("rest")
        return dict(self.seconds)


def compute_fractions(seconds: dict[str, float]) -> dict[str, float]:
    """Return each part of ``seconds`` divided by their sum; ``validation`` is left out if it is 0."""
    total = sum(seconds.values()) or 1.0
    return {part: value / total for part, value in seconds.items() if value or part != "validation"}
