"""Where the time of an epoch goes."""

from __future__ import annotations

from time import perf_counter

PARTS = ("data", "model", "optimizer", "validation", "rest")


class Timer:
    """Counts the seconds of an epoch by part: each mark gives the time since the last one to a part.

    ``data`` is waiting for batches, ``model`` the forward and the backward with the copies to the device, ``optimizer`` the
    update, ``rest`` callbacks, logs and this library. A mark costs a fraction of a microsecond. On an accelerator, which
    works while the host goes on, these are the host's seconds: waiting for data is told truly, the other parts are where the
    host was when it had to wait.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin to count, from nothing."""
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._last = perf_counter()

    def mark(self, part: str) -> None:
        """Give the time since the last mark to ``part``."""
        now = perf_counter()
        self.seconds[part] += now - self._last
        self._last = now

    def read(self) -> dict[str, float]:
        """Return the seconds of each part so far; they add up to all the time since the start."""
        self.mark("rest")
        return dict(self.seconds)


def shares(seconds: dict[str, float]) -> dict[str, float]:
    """Return each part of ``seconds`` as a share of all, without those that took nothing at all."""
    total = sum(seconds.values()) or 1.0
    return {part: value / total for part, value in seconds.items() if value or part != "validation"}
