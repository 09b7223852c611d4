"""Settings that may make training faster, and why some cannot be tried."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from easytorch._utils.rng import preserve_rng_state
from easytorch.data.fast_loaders import TensorBatches, as_tensor_batches
from easytorch.data.in_memory import InMemory, in_memory
from easytorch.strategies.base import Strategy
from easytorch.strategies.device import PRECISIONS, check_precision, compiler_works
from easytorch.tuning.loaders import as_data_loader, check_batch_size, get_batch_size, takes_batch_size
from easytorch.tuning.timing import time_limit

if TYPE_CHECKING:
    from easytorch.model import Model

Setting = Mapping[str, Any]

# Arguments of compile, of DataLoader and of fit that are tried.
COMPILE = ("precision", "channels_last", "jit_compile")
LOADER = ("num_workers", "pin_memory", "batch_size")
# How to write a setting that is no argument.
TEXTS = {"in_memory": "easytorch.data.in_memory(dataset)", "threads": "torch.set_num_threads({})"}
# Settings that change what is trained, so that they are measured and never recommended.
OTHER_TRAINING = ("batch_size",)
# Time to load the samples for in_memory, and to try the compiler.
LOADING_SECONDS = 10.0
MODULES_2D = (nn.Conv2d, nn.ConvTranspose2d)


class Candidates:
    """The settings to try for a program.

    Args:
        model: The model.
        x: The data of ``fit``.
        y: The targets of ``fit``.
        batch_size: The argument of ``fit``.
        shuffle: The argument of ``fit``.
        samples: Number of samples that a measurement reads.

    Attributes:
        settings: The settings to try.
        skipped: Why others cannot be tried, by their text.
    """

    def __init__(
        self, model: Model, x: Any, y: Any, *, batch_size: int | None, shuffle: bool | None, samples: int = 1024
    ) -> None:
        self.model, self.x, self.y = model, x, y
        self.batch_size, self.shuffle, self.samples = batch_size, shuffle, samples
        self.settings: list[Setting] = []
        self.skipped: dict[str, str] = {}
        self.loader = as_data_loader(x, y, batch_size, shuffle)
        self._reads_memory = self.loader is not None and isinstance(as_tensor_batches(self.loader), TensorBatches)
        self.subset: Any = None  # the samples in memory that a measurement reads
        self._add_compile_settings()
        self._add_data_settings()
        self._add_threads()

    def _add(self, name: str, value: Any, reason: str = "") -> None:
        setting = {name: value}
        if reason:
            self.skipped[describe(setting)] = reason
        else:
            self.settings.append(setting)

    # Arguments of compile

    def _add_compile_settings(self) -> None:
        strategy = self.model.strategy
        is_custom = "" if type(strategy) is Strategy else f"strategy={type(strategy).__name__} determines it"
        precision = "bf16" if strategy.precision == "fp32" else "fp32"
        self._add("precision", precision, is_custom or self._find_precision_problem(precision))
        self._add("channels_last", not strategy.channels_last, is_custom or self._find_format_problem())
        self._add("jit_compile", not strategy.jit_compile, is_custom or self._find_compiler_problem())

    def _find_precision_problem(self, precision: str) -> str:
        try:
            check_precision(self.model.device, PRECISIONS[precision])
        except ValueError as error:
            return str(error).partition(":")[0].removesuffix(".")
        return ""

    def _find_format_problem(self) -> str:
        modules = [module for module in self.model.module.modules() if isinstance(module, MODULES_2D)]
        if not modules:
            return "the module has no 2-D convolutions"
        weights = [module.weight for module in modules]
        if not self.model.strategy.channels_last and any(map(_has_channels_last, weights)):
            return "the weights are stored with the channels last already"
        return ""

    def _find_compiler_problem(self) -> str:
        if self.model.strategy.jit_compile:
            return ""
        try:
            with warnings.catch_warnings(record=True) as caught, preserve_rng_state(), time_limit(LOADING_SECONDS):
                warnings.simplefilter("always")
                works = compiler_works(self.model.device)
        except TimeoutError as error:
            return str(error)
        return "" if works else _first_line(str(caught[-1].message)) if caught else "torch.compile does not work"

    # Data

    def _add_data_settings(self) -> None:
        self._add("in_memory", True, self._find_memory_problem())
        has_problem = self._find_loader_problem()
        present = self.loader.num_workers if self.loader is not None else 0
        for count in sorted({0, min(2, count_cores()), min(4, count_cores())} - {present}) if present else (2,):
            self._add("num_workers", count, has_problem)
        is_pinned = self.loader is not None and self.loader.pin_memory
        no_accelerator = "" if self.model.device.type != "cpu" else "the model is on the CPU"
        self._add("pin_memory", not is_pinned, no_accelerator or has_problem)
        size = get_batch_size(self.x, self.y, self.batch_size)
        self._add("batch_size", 2 * (size or 32), self._find_batch_problem())

    def _find_loader_problem(self) -> str:
        if self.loader is None:
            return "the data is not loaded by a DataLoader"
        return "the data is in memory already" if self._reads_memory else ""

    def _find_memory_problem(self) -> str:
        if self.loader is None and takes_batch_size(self.x, self.y):
            return "the data is in memory already"
        problem = self._find_loader_problem()
        dataset: Any = None if self.loader is None else self.loader.dataset
        if not problem and (
            isinstance(dataset, IterableDataset) or self.loader is None or self.loader.batch_size is None
        ):
            problem = "the data has no index"
        if problem:
            return problem
        if isinstance(dataset, InMemory):
            return "the data is in memory already"
        try:
            with preserve_rng_state(), time_limit(LOADING_SECONDS):
                count = min(len(dataset), self.samples)
                subset = dataset if count == len(dataset) else torch.utils.data.Subset(dataset, range(count))
                self.subset = in_memory(subset, verbose=0)
        except Exception as error:  # the code of the dataset raises anything
            return _first_line(str(error))
        return ""

    def _find_batch_problem(self) -> str:
        if isinstance(self.x, DataLoader):
            try:
                check_batch_size(self.x)
            except ValueError:
                return "a batch_sampler forms the batches"
            return ""
        return "" if takes_batch_size(self.x, self.y) else "the data consists of batches"

    # Threads

    def _add_threads(self) -> None:
        if self.model.device.type != "cpu":
            self._add("threads", count_cores(), "the model is not on the CPU")
            return
        counts = {1, count_cores()} - {torch.get_num_threads()}
        for count in sorted(counts):
            self._add("threads", count)
        if not counts:
            self._add("threads", 1, "there is one core")


def describe(setting: Setting) -> str:
    """Return a setting as code, such as ``precision='bf16'``."""
    return ", ".join(TEXTS.get(name, f"{name}={value!r}").format(value) for name, value in setting.items())


def describe_usage(setting: Setting) -> list[str]:
    """Return the lines to paste into a program."""
    lines = []
    arguments = {name: setting[name] for name in COMPILE if name in setting}
    if arguments:
        lines.append(f"model.compile(..., {describe(arguments)})")
    lines += [describe({name: setting[name]}) for name in TEXTS if name in setting]
    arguments = {name: setting[name] for name in LOADER if name in setting}
    if arguments:
        lines.append(f"DataLoader(..., {describe(arguments)})")
    return lines


@functools.cache
def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def combine(settings: Iterator[Setting] | list[Setting]) -> dict[str, Any]:
    """Return all settings as one; data in memory needs no workers."""
    combined: dict[str, Any] = {}
    for setting in settings:
        combined = {**setting, **combined}
    if "in_memory" in combined:
        combined.pop("num_workers", None)
    return combined


def _has_channels_last(weight: torch.Tensor) -> bool:
    return not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)


def _first_line(text: str) -> str:
    """Return the first sentence of a message."""
    return text.strip().splitlines()[0].partition(". ")[0].removesuffix(".") if text.strip() else "it fails"
