"""The plain loop a second time. The difference is the noise of the machine."""

from benchmarks.contestants.raw import evaluate, fit, predict

__all__ = ["evaluate", "fit", "predict"]
