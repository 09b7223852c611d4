"""Detection of non-finite losses and search for their origin."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from easytorch._utils.integers import boolean
from easytorch._utils.paths import check_file, to_absolute_path
from easytorch._utils.pytree import leaves
from easytorch._utils.registry import quote_list
from easytorch._utils.rng import get_torch_rng_state, preserve_rng_state, set_torch_rng_state
from easytorch._utils.text_table import join_numbers
from easytorch._utils.train_mode import preserve_buffers
from easytorch._utils.warnings import warn
from easytorch.callbacks.base import Callback
from easytorch.checkpoint import files, state_dicts
from easytorch.optimizer_group import OptimizerGroup, members_of

# What to change, by the origin of the loss.
FIX_OF_DATA = "remove or fill the values of these samples that are NaN or infinite"
FIX_OF_WEIGHTS = "load weights that are finite, such as an earlier checkpoint"
FIX_OF_STEPS = "use a lower learning rate, compile(..., clip_grad_norm=1.0), or precision='bf16' in place of 'fp16'"
FIX_OF_LOSS = (
    "use a loss that takes logits, such as 'cross_entropy' or 'bce_with_logits', or bound what the loss divides by or takes the "
    "logarithm of: x.clamp(min=1e-7)"
)


class UpdateRecord(NamedTuple):
    """What a replay of an update needs."""

    rng_states: list[Tensor]
    window: list[Any]
    # Dataset indices of the samples, for each batch of the window; None if they are unknown.
    indices: list[Any] | None


class TerminateOnNaN(Callback):
    """Stop training when a loss is NaN or infinite, before the optimizer uses it, and report the origin.

    Every loss that an update backpropagates is checked, whatever its name in the logs.
    A custom ``update`` that does not call ``self.callbacks.on_before_optimizer_step()`` is checked after the update.

    The batch runs once more with the same random numbers.
    The report names the first module whose output is not finite, the term of the loss, and the samples.

    On a CPU every loss is checked, which takes about five microseconds.
    On an accelerator losses are checked every 16 updates, so that no update waits for the device.
    A fused optimizer does not change the weights in an update whose loss is not finite.
    Optimizers created by name are fused where torch supports it; with any other optimizer every update waits for the device.

    Args:
        raise_error: Raise a ``FloatingPointError`` with the report; by default the report is a warning and training ends.
        path: File for the batch, the weights and the random states; None writes no file.

    Attributes:
        report: What was found; None if every loss was finite.

    Raises:
        FloatingPointError: In ``fit``, if ``raise_error`` and a loss is not finite.

    Examples:
        >>> model.fit(x, y, callbacks=[TerminateOnNaN(raise_error=True)])
    """

    # Updates between two checks on an accelerator.
    CHECK_INTERVAL = 16
    # Updates between two checks whether a step draws random numbers; such a check takes as long as 30 checks of a loss.
    RNG_CHECK_INTERVAL = 128

    def __init__(self, raise_error: bool = False, path: str | os.PathLike[str] | None = None) -> None:
        self.raise_error, self._shown = boolean("raise_error", raise_error), path
        self.path = None if path is None else to_absolute_path(path)
        self.report: str | None = None
        self._checks_on_device = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Choose between checks on the host and checks on the device."""
        model, optimizer = self.model, self.model.require_optimizer("fit")
        assert model.train_data is not None
        if self.path is not None:
            check_file(self.path, "path")
        is_fused = model.device.type != "cpu" and bool(optimizer.defaults.get("fused"))
        self._checks_on_device = is_fused and not model.strategy.scaler.is_enabled()
        self.report = None
        self._pending: list[tuple[Tensor, UpdateRecord]] = []
        self._train_data, self._is_checked = model.train_data, False
        model.strategy.watch_losses(True)
        self._rng_states: list[Tensor] = []
        self._draws_random_numbers = self._checks_rng = False

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Record the random states, if steps draw random numbers."""
        self.model.strategy.losses.clear()
        self._is_checked = False
        is_due = batch % self.RNG_CHECK_INTERVAL == 0 or not self._rng_states
        self._checks_rng = is_due and not self._draws_random_numbers
        if self._draws_random_numbers or self._checks_rng:
            self._rng_states = get_torch_rng_state(self.model.device)

    def on_before_optimizer_step(self) -> None:
        """Check the losses of this update, or schedule the check."""
        if self._checks_rng:
            states = get_torch_rng_state(self.model.device)
            self._draws_random_numbers = not all(map(torch.equal, self._rng_states, states))
        self._is_checked = True
        if not self.model.strategy.losses:
            return
        if self._checks_on_device:
            self._schedule_check()
            return
        if self.model.strategy.control.loss_not_finite(self._has_bad_loss()):
            self._terminate(self._record_update())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Check the losses of a custom update that does not call ``on_before_optimizer_step``."""
        strategy = self.model.strategy
        if not self._is_checked and strategy.group.any_rank(self._has_bad_loss()):
            self._terminate(self._record_update(), is_over=True)
        strategy.losses.clear()

    def _has_bad_loss(self) -> bool:
        return not all(map(isfinite, _values(self.model.strategy.losses)))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Run the pending checks."""
        if self._pending:
            self._run_pending_checks()

    def on_train_end(self, logs: Any = None) -> None:
        """Remove the attributes that were set on the optimizer."""
        self.model.strategy.watch_losses(False)
        for name in ("found_inf", "grad_scale"):
            for member in members_of(self.model.require_optimizer("fit")).values():
                if self._checks_on_device and hasattr(member, name):
                    delattr(member, name)

    def _record_update(self) -> UpdateRecord:
        return UpdateRecord(self._rng_states, self._train_data.window, self._train_data.sample_indices())

    def _schedule_check(self) -> None:
        """Let the optimizer skip this update on the device if a loss is not finite; the host checks later."""
        is_bad = self.model.strategy.control.loss_not_finite(
            ~torch.stack([*_values(self.model.strategy.losses)]).isfinite().all()
        )
        optimizer: Any
        for optimizer in members_of(self.model.require_optimizer("fit")).values():
            optimizer.found_inf, optimizer.grad_scale = is_bad.float(), None
        self._pending.append((is_bad, self._record_update()))
        if len(self._pending) == self.CHECK_INTERVAL:
            self._run_pending_checks()

    def _run_pending_checks(self) -> None:
        pending, self._pending = self._pending, []
        # One transfer for all flags.
        flags = torch.stack([is_bad for is_bad, _ in pending]).tolist()
        for is_bad, (_, update) in zip(flags, pending, strict=True):
            if is_bad:
                self._terminate(update)
                return

    def _terminate(self, update: UpdateRecord, is_over: bool = False) -> None:
        """Stop training and report the origin; ``is_over`` if the optimizer has used the loss already."""
        state, optimizer = self.model.state, self.model.require_optimizer("fit")
        stepped = optimizer.stepped if isinstance(optimizer, OptimizerGroup) and not is_over else ()
        note = f" Only {quote_list(stepped)} made a step in it before." if stepped else ""
        if is_over:
            note += " To stop before it, call self.callbacks.on_before_optimizer_step() before self.strategy.step(...)."
        self.report = _stop_message(
            state.step + (not is_over),
            state.epoch + 1,
            side="after" if is_over else "before",
            note=note,
            origin_and_fix="".join(f"\n  {line}" for line in self._replay(update)),
        )
        if self.path is not None:
            self.report += f"\n  {self._write(self.path, update, self.report)}"
        # Optimizers skip parameters without gradients; a custom update may have several.
        optimizer.zero_grad()
        self.model.module.zero_grad()
        self.model.stop_training = self.model.callbacks.diverged = True
        if self.raise_error:
            raise FloatingPointError(self.report)
        warn(self.report)

    def _write(self, path: Path, update: UpdateRecord, report: str) -> str:
        """Write a file that reproduces the update, and return the last line of the report."""
        content = {
            "window": list(update.window),
            "random": update.rng_states,
            "report": report,
            "module": state_dicts.unwrapped_state_dict(self.model.module),
        }
        try:
            files.write(path, content)
            return f"To reproduce it, read {self._shown}"
        # The report matters more than the file.
        except (OSError, TypeError) as error:
            return str(error)

    def _replay(self, update: UpdateRecord) -> list[str]:
        """Run the batches again with a hook on every module, and return the findings, one line each."""
        if self.model.overrides("update"):
            return ["The update is custom, so its steps are not run again", f"Fix: {FIX_OF_STEPS}"]
        model, hook = self.model, FirstNonFiniteHook(self.model.module)
        metrics, model.metrics = model.metrics, model.metrics.new_copy()
        try:
            with (
                model.strategy.evaluating(),
                preserve_rng_state(),
                preserve_buffers(model.module, model.loss.modules),
            ):
                set_torch_rng_state(update.rng_states, model.device)
                for i, batch in enumerate(update.window):
                    terms: list[str] = []
                    for step in _training_steps(model):
                        with hook:
                            outputs = model.strategy.run_locally(step, batch)
                        terms += [name for name, value in outputs.items() if has_non_finite(value)]
                    if terms:
                        return self._describe(batch, terms, hook, update.indices[i] if update.indices else None)
        finally:
            model.metrics = metrics
        group = model.strategy.group
        if group.world_size > 1:
            return [
                f"The loss of rank {group.rank} is finite: the report of another rank states the origin and the fix"
            ]
        return [
            "The loss is finite when it is computed again: the module changes, or uses other random generators",
            f"Fix: {FIX_OF_STEPS}",
        ]

    def _describe(self, batch: Any, terms: list[str], hook: FirstNonFiniteHook, indices: Any) -> list[str]:
        """Return the findings about a batch.

        Args:
            batch: The batch.
            terms: Names of the outputs of the step that are not finite.
            hook: The hook that ran with the batch.
            indices: Dataset indices of its samples, if they are known.
        """
        try:
            x, y, _ = self.model.unpack(self.model.strategy.to_device(batch))
        except ValueError:  # only a custom step knows the form of its batches
            x, y = batch, None
        rows = {"inputs": find_non_finite_rows(x), "targets": find_non_finite_rows(y)}
        parameters = [name for name, value in self.model.module.named_parameters() if has_non_finite(value)]
        lines = [f"Term of the loss: {', '.join(terms)}"]
        if parameters:
            lines.append(f"Parameters that are not finite: {', '.join(parameters[:5])}")
        lines += [f"The {name} are not finite" for name in rows if rows[name]]
        if hook.first is not None:
            lines.append(f"First module with an output that is not finite: {hook.first}")
        elif not rows["targets"]:
            lines.append("The output of every module is finite: check the loss and its weights")
        if samples := _describe_samples(rows["inputs"] or rows["targets"] or hook.rows, indices):
            lines.append(samples)
        return [*lines, f"Fix: {_find_fix(rows, parameters, hook.first)}"]


class FirstNonFiniteHook:
    """Forward hooks that record the first module whose output is not finite; active inside a ``with`` block.

    Args:
        module: The module to observe.

    Attributes:
        first: Name and class of the first submodule with such an output, or None.
        rows: Indices of the samples that are not finite in that output.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.first: str | None = None
        self.rows: list[int] = []

    def __enter__(self) -> None:
        self._handles = [
            module.register_forward_hook(self._make_hook(name)) for name, module in self.module.named_modules()
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _make_hook(self, name: str) -> Any:
        def check_output(module: nn.Module, inputs: Any, output: Any) -> None:
            if self.first is None and has_non_finite(output):
                self.first = f"{name or 'the module itself'}, {type(module).__name__}"
                self.rows = find_non_finite_rows(output)

        return check_output


def _stop_message(update: int, epoch: int, *, side: str, note: str, origin_and_fix: str) -> str:
    return (
        f"The loss is not finite in update {update} (epoch {epoch}). Training stops with the weights from {side} this "
        f"update.{note}{origin_and_fix}"
    )


def _find_fix(rows: Mapping[str, list[int]], parameters: Sequence[str], first: str | None) -> str:
    """Return the fix for what was found, the earliest origin first."""
    if rows["inputs"] or rows["targets"]:
        return FIX_OF_DATA
    if parameters:
        return FIX_OF_WEIGHTS
    return FIX_OF_LOSS if first is None else FIX_OF_STEPS


def _training_steps(model: Any) -> list[Any]:
    """Return ``train_step``, or the step of each optimizer."""
    names = model.optimizer.steps if isinstance(model.optimizer, OptimizerGroup) else ()
    return [getattr(model, f"{name}_step") for name in names] or [model.train_step]


def _values(losses: Iterable[Any]) -> Iterator[Tensor]:
    """Yield each loss, or the sum of a pair ``(sum, count)``, without its graph."""
    return ((loss[0] if isinstance(loss, tuple) else loss).detach() for loss in losses)


def has_non_finite(tree: Any) -> bool:
    """Return whether a floating-point tensor in ``tree`` has a value that is not finite."""
    return not all(bool(tensor.isfinite().all()) for tensor in _floating_tensors(tree))


def find_non_finite_rows(tree: Any) -> list[int]:
    """Return the indices along the first axis of the values in ``tree`` that are not finite."""
    rows: set[int] = set()
    for tensor in _floating_tensors(tree):
        if tensor.ndim:
            rows.update((~tensor.isfinite()).unsqueeze(-1).flatten(1).any(1).nonzero().flatten().tolist())
    return sorted(rows)


def _floating_tensors(tree: Any) -> Iterator[Tensor]:
    for leaf in leaves(tree):
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
            yield leaf.detach()


def _describe_samples(samples: list[int], indices: Any) -> str:
    """Return the rows of a batch, and the ``indices`` of these samples in the dataset if they are known."""
    if not samples:
        return ""
    line = f"Rows of the batch: {join_numbers(samples)}"
    if isinstance(indices, list) and len(indices) > max(samples):
        line += f"; samples of the dataset: {join_numbers([indices[i] for i in samples])}"
    return line
