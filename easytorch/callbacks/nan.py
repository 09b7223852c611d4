"""Losses that are no numbers: a callback that ends training at the first and finds out where it came from, and a notice."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from easytorch._utils.pytree import leaves
from easytorch._utils.rng import get_rng_state, set_rng_state
from easytorch._utils.warnings import warn
from easytorch.callbacks.base import Callback
from easytorch.checkpoint import files, state_dicts


class NaNNotice(Callback):
    """Tells, once in a fit, that the loss of an epoch is no number; every fit has one."""

    all_ranks = False

    def __init__(self) -> None:
        self.told = False

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Look at the loss."""
        logs = logs or {}
        loss = logs.get("loss", 0.0)
        if not self.told and isfinite(loss) and not isfinite(logs.get("val_loss", 0.0)):
            self.told = True
            warn(
                f"The validation loss of epoch {epoch + 1} is {logs['val_loss']}, that of training is not. Look for values "
                "that are not finite in the validation data; a callback that watches it sees no improvement."
            )
        if (
            self.told
            or isfinite(loss)
            or any(isinstance(one, TerminateOnNaN) for one in self.model.callbacks.callbacks)
        ):
            return
        self.told = True
        example = None if self.model.train_data is None else self.model.train_data.example
        spoilt = any(isinstance(leaf, Tensor) and not leaf.isfinite().all() for leaf in leaves(example))
        cure = (
            "The first batch holds values that are not finite: look for them in the data."
            if spoilt
            else "A lower learning rate, or clip_grad_norm=1.0 in compile(), is the usual cure."
        )
        warn(
            f"The loss of epoch {epoch + 1} is {loss}. {cure} The callback TerminateOnNaN() ends training at the first such "
            "loss, and says where it came from."
        )


class TerminateOnNaN(Callback):
    """Ends training when a loss is NaN or infinite, before the weights are damaged, and says where it came from.

    The batch is run once more, with the same random numbers, and the report names the first module whose output is not
    finite, the term of the loss, and the samples. On a CPU every loss is looked at, which costs about five microseconds. On an
    accelerator it is looked at every 16 updates, so that no update waits for the device; a fused optimizer (every one that is
    made by name, where torch has one) leaves the weights alone in an update whose loss is not finite. With any other optimizer
    every update waits.

    Args:
        raise_error: Raise a ``FloatingPointError`` with the report, instead of a warning and an ordinary ending.
        path: Write the batch, the weights and the random states there, to reproduce it; None writes nothing.

    Attributes:
        report: What was found, in words; None as long as all is well.
    """

    EVERY = 16  # updates between two looks at an accelerator
    PROBE = 128  # and between two looks at whether steps draw random numbers, each as long as thirty of a loss

    def __init__(self, raise_error: bool = False, path: str | os.PathLike[str] | None = None) -> None:
        self.raise_error, self.path = raise_error, path
        self.report: str | None = None
        self._held_back = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Find out how to look without waiting."""
        self.report = None
        optimizer = self.model.require_optimizer("fit")
        self._waiting: list[tuple[Tensor, list[Tensor], list[Any], list[Any] | None]] = []
        held_back = self.model.device.type != "cpu" and bool(optimizer.defaults.get("fused"))
        self._held_back = held_back and not self.model.strategy.scaler.is_enabled()
        assert self.model.train_data is not None
        self._feed, self._losses = (
            self.model.train_data,
            self.model.metrics.last_losses(self.model.train_data.window_size),
        )
        self._generators = [torch.default_generator.get_state]
        if (device := self.model.device).type != "cpu":
            self._generators.append(functools.partial(torch.get_device_module(device).get_rng_state, device))
        self._random: list[Tensor] = []
        self._draws = False  # whether steps draw random numbers

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Remember the random states, which the replay needs where a step draws random numbers."""
        self._probes = not self._draws and (batch % self.PROBE == 0 or not self._random)
        if self._draws or self._probes:
            self._random = [state() for state in self._generators]

    def on_before_optimizer_step(self) -> None:
        """Look at the losses of this update, or put them aside to be looked at."""
        if self._probes:
            self._draws = any(
                not torch.equal(old, new()) for old, new in zip(self._random, self._generators, strict=True)
            )
        if self._held_back:
            self._put_aside()
            return
        bad = not all(map(isfinite, self._losses))
        if self.model.strategy.control.loss_not_finite(bad):
            self._end(self._random, self._feed.window, self._feed.sample_indices())

    def _put_aside(self) -> None:
        bad = self.model.strategy.control.loss_not_finite(~torch.stack(list(self._losses)).isfinite().all())
        optimizer: Any = self.model.optimizer
        optimizer.found_inf, optimizer.grad_scale = bad.float(), None  # fused kernels update nothing where it is 1
        self._waiting.append((bad, self._random, self._feed.window, self._feed.sample_indices()))
        if len(self._waiting) == self.EVERY:
            self._look()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Look at what is still waiting."""
        if self._waiting:
            self._look()

    def on_train_end(self, logs: Any = None) -> None:
        """Give the optimizer back as it was."""
        for name in ("found_inf", "grad_scale"):
            if self._held_back and hasattr(self.model.optimizer, name):
                delattr(self.model.optimizer, name)

    def _look(self) -> None:
        waiting, self._waiting = self._waiting, []
        for bad, (_, random, window, indices) in zip(
            torch.stack([one[0] for one in waiting]).tolist(), waiting, strict=True
        ):
            if bad:
                self._end(random, window, indices)
                return

    def _end(self, random: list[Tensor], window: list[Any], indices: list[Any] | None) -> None:
        state = self.model.state
        title = f"The loss is not finite in update {state.step + 1} (epoch {state.epoch + 1})"
        self.report = "\n  ".join(
            [f"{title}; training ends, with the weights from before it.", *self._autopsy(random, window, indices)]
        )
        if self.path is not None:
            content = {
                "window": window,
                "random": random,
                "report": self.report,
                "module": state_dicts.unwrapped_state_dict(self.model.module),
            }
            try:
                self.report += f"\n  Written to {files.write(Path(self.path), content)}, to reproduce it."
            except (OSError, TypeError) as error:  # what was found matters more
                self.report += f"\n  {error}"
        self.model.require_optimizer("fit").zero_grad()  # without gradients the optimizer does nothing
        self.model.stop_training = self.model.callbacks.diverged = True
        if self.raise_error:
            raise FloatingPointError(self.report)
        warn(self.report)

    def _autopsy(self, random: list[Tensor], window: list[Any], indices: list[Any] | None) -> list[str]:
        """Run the batches again, with a hook on every module, and return what was found, a line for each."""
        model, found = self.model, _Witness(self.model.module)
        kept, buffers = get_rng_state(), [(buffer, buffer.clone()) for buffer in model.module.buffers()]
        metrics, model.metrics = model.metrics, model.metrics.new_copy()
        try:
            _set_random(random, model.device)
            for number, batch in enumerate(window):
                with found:
                    terms = model.strategy.run_locally(model.train_step, batch)
                bad = [
                    name
                    for name, value in terms.items()
                    if isinstance(value, Tensor) and not bool(value.isfinite().all())
                ]
                if bad:
                    return self._findings(bad, found, batch, indices[number] if indices is not None else None)
        finally:
            model.metrics = metrics
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            set_rng_state(kept)
        if model.strategy.group.world_size > 1:
            return [f"The batch of process {model.strategy.group.rank} is finite: it is another one's."]
        return [
            "Run again it is finite: the module draws random numbers that cannot be restored, or changes while it runs."
        ]

    def _findings(self, terms: list[str], found: _Witness, batch: Any, indices: Any) -> list[str]:
        x, y, _ = self.model.unpack(self.model.strategy.to_device(batch))
        lines = [f"Term of the loss: {', '.join(terms)}"]
        broken = [name for name, value in self.model.module.named_parameters() if not bool(value.isfinite().all())]
        if broken:
            lines.append(f"Parameters that are not finite: {', '.join(broken[:5])}")
        rows = {"inputs": _bad_rows(x), "targets": _bad_rows(y), "outputs": found.rows}
        for what in ("inputs", "targets"):
            if rows[what]:
                lines.append(f"The {what} are not finite")
        if found.first is not None:
            name, layer = found.first
            lines.append(f"First module with an output that is not finite: {name or 'the module itself'}, {layer}")
        elif not rows["targets"]:
            lines.append("Every module's output is finite: it is the loss itself, or its weights")
        samples = next((found_rows for found_rows in rows.values() if found_rows), [])
        if samples:
            named = [indices[i] for i in samples] if isinstance(indices, list) and len(indices) > max(samples) else None
            lines.append(
                f"Rows of the batch: {_some(samples)}" + (f"; samples of the dataset: {_some(named)}" if named else "")
            )
        return lines


class _Witness:
    """Sees, module by module, the first output that is not finite."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.first: tuple[str, str] | None = None
        self.rows: list[int] = []

    def __enter__(self) -> None:
        self.handles = [part.register_forward_hook(self._hook(name)) for name, part in self.module.named_modules()]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def look(part: nn.Module, inputs: Any, output: Any) -> None:
            if self.first is None and not all(bool(tensor.isfinite().all()) for tensor in _floats(output)):
                self.first, self.rows = (name, type(part).__name__), _bad_rows(output)

        return look


def _floats(tree: Any) -> Iterator[Tensor]:
    for leaf in leaves(tree):
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
            yield leaf.detach()


def _bad_rows(tree: Any) -> list[int]:
    rows: set[int] = set()
    for tensor in _floats(tree):
        if tensor.ndim:
            rows.update(
                (~tensor.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
                if tensor.ndim > 1
                else (~tensor.isfinite()).nonzero().flatten().tolist()
            )
    return sorted(rows)


def _some(numbers: list[Any], most: int = 10) -> str:
    return ", ".join(map(str, numbers[:most])) + (f", ... ({len(numbers)} in all)" if len(numbers) > most else "")


def _set_random(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module(device).set_rng_state(state, device)
