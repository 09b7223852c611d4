"""A program with other settings, for a measurement."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from easytorch._utils.rng import private_generator
from easytorch.strategies.base import Strategy
from easytorch.training.trial import trial
from easytorch.tuning.candidates import COMPILE, Candidates, Setting
from easytorch.tuning.loaders import copy, with_batch_size, with_workers
from easytorch.tuning.timing import MAX_UPDATES, Timing, UpdateTimer, suspend_schedules, time_limit

if TYPE_CHECKING:
    from easytorch.model import Model


class Program:
    """The program whose speed is measured, with any setting.

    Args:
        model: The model.
        candidates: Its data and the settings to try.
        options: Further arguments of ``fit``.
    """

    def __init__(self, model: Model, candidates: Candidates, options: dict[str, Any]) -> None:
        self.model, self.candidates, self.options = model, candidates, options
        self._strategies: dict[tuple[Any, ...], Strategy] = {}  # a compiled module is used again

    def measure(self, setting: Setting, timer: UpdateTimer, limit: float | None = None) -> Timing:
        """Train with ``setting`` until ``timer`` stops; the program stays as it is.

        Args:
            setting: The setting.
            timer: Measures the updates.
            limit: Seconds after which the training ends with a ``TimeoutError``; None for no limit.
        """
        x, y, options = self._select_data(setting)
        data = [value for value in (x, y) if value is not None]
        with _threads(setting.get("threads")), trial(self.model, *data, purpose="tune_speed()"):
            self._apply(setting)
            suspend_schedules(self.model)
            # The limit ends before the model is restored.
            with contextlib.nullcontext() if limit is None else _interruptible(limit):
                self.model.fit(
                    x, y, epochs=1, steps_per_epoch=MAX_UPDATES, callbacks=[timer], verbose=0, **self.options, **options
                )
        return timer.read()

    def has_same_batches(self, setting: Setting) -> bool:
        """Return whether a measurement with ``setting`` reads the same samples in the same order."""
        if "batch_size" in setting:
            return False
        loader = self.candidates.loader
        return (
            "in_memory" not in setting or loader is None or _length(self.candidates.subset) == _length(loader.dataset)
        )

    def _apply(self, setting: Setting) -> None:
        """Let the model use the arguments of ``compile`` in ``setting``."""
        if not any(name in setting for name in COMPILE):
            return
        model, present = self.model, self.model.strategy
        precision, is_compiled, is_last = (
            setting.get(name, getattr(present, name)) for name in ("precision", "jit_compile", "channels_last")
        )
        strategy = self._strategies.get((precision, is_compiled, is_last))
        if "channels_last" in setting:
            model.module.to(memory_format=torch.channels_last if is_last else torch.contiguous_format)
        if strategy is None:
            strategy = Strategy(model.device, precision, is_compiled)
            strategy.channels_last, strategy.loss_modules = is_last, model.loss.modules
            strategy.prepare(model.module, model.optimizer)
            self._strategies[precision, is_compiled, is_last] = strategy
        model.strategy = strategy

    def _select_data(self, setting: Setting) -> tuple[Any, Any, dict[str, Any]]:
        """Return the data with ``setting``, and the arguments of ``fit`` that belong to it."""
        candidates = self.candidates
        arguments = {"batch_size": candidates.batch_size, "shuffle": candidates.shuffle}
        loader = candidates.loader
        if loader is None or (not isinstance(candidates.x, DataLoader) and not _changes_loader(setting)):
            if "batch_size" in setting:
                arguments["batch_size"] = setting["batch_size"]
            return candidates.x, candidates.y, arguments
        if "in_memory" in setting:
            loader = self._read_memory(loader)
        if "batch_size" in setting:
            loader = with_batch_size(loader, setting["batch_size"])
        if "num_workers" in setting:
            loader = with_workers(loader, setting["num_workers"])
        if "pin_memory" in setting:
            loader = copy(loader, pin_memory=setting["pin_memory"])
        return loader, None, {}

    def _read_memory(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """Return a loader of the samples in memory: the same order, or fewer samples."""
        subset = self.candidates.subset
        if _length(subset) == _length(loader.dataset):
            return copy(with_workers(loader, 0), dataset=subset)
        return DataLoader(
            subset, loader.batch_size, shuffle=True, collate_fn=loader.collate_fn, generator=private_generator(True)
        )


@contextlib.contextmanager
def _interruptible(seconds: float) -> Iterator[None]:
    """Raise a ``TimeoutError`` inside after ``seconds``, and delete what an interrupted compilation leaves."""
    try:
        with time_limit(seconds):
            yield
    except BaseException:
        torch.compiler.reset()
        raise


def _changes_loader(setting: Setting) -> bool:
    return any(name in setting for name in ("in_memory", "num_workers", "pin_memory", "batch_size"))


def _length(dataset: Any) -> int:
    return len(dataset)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Use ``count`` threads inside."""
    previous = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        if count is not None:
            torch.set_num_threads(previous)
