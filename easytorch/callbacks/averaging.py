"""Averages of the weights over training, on top of ``torch.optim.swa_utils``."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from easytorch._utils.integers import boolean, non_negative_int
from easytorch._utils.rng import preserve_rng_state
from easytorch._utils.warnings import warn
from easytorch.callbacks.base import Callback
from easytorch.checkpoint.state_dicts import rename

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Averaging(Callback, abc.ABC):
    """Base class of callbacks that average the weights.

    Evaluations use the average; training continues with the training weights. Trained parameters and running statistics are
    averaged. Everything else is copied: frozen parameters, masks, counters, queues, and the vectors of spectral norm.

    Args:
        keep_average: Leave the average in the module at the end of training, instead of the training weights.

    Attributes:
        average: The ``AveragedModel``. Its ``module`` is a copy of yours with the averaged weights.

    Raises:
        ValueError: In ``fit``, with ``strategy="fsdp"`` or with a second average.
        TypeError: In ``fit``, if the module cannot be copied.

    Examples:
        >>> class RunningMean(Averaging):
        ...     def make_function(self):
        ...         return torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
        ...     def on_train_batch_end(self, batch, logs=None):
        ...         self.average.update_parameters(self.model.module)
        >>> history = model.fit(x, y, callbacks=[RunningMean()], verbose=0)
    """

    # At the end of training a callback that restores the best weights runs later.
    priority = -1

    average: Average
    _averaged_module: nn.Module

    def __init__(self, keep_average: bool = False) -> None:
        self.keep_average = boolean("keep_average", keep_average)
        self._is_swapped = False

    @abc.abstractmethod
    def make_function(self) -> Callable[..., None]:
        """Return the function that adds weights to their averages, as ``AveragedModel`` calls it.

        Examples:
            >>> function = EMA(decay=0.99).make_function()
        """

    def on_train_begin(self, logs: Any = None) -> None:
        """Start a new average, or continue that of an earlier fit of the same module."""
        if any(hasattr(parameter, "to_local") for parameter in self.model.module.parameters()):
            raise ValueError(
                f"{type(self).__name__} needs a copy of the module, but with strategy='fsdp' every rank has only a shard of it. "
                "Use strategy='ddp', or remove the callback."
            )
        self._check_is_only_average()
        if "average" not in vars(self) or self._averaged_module is not self.model.module:
            self.average, self._averaged_module = self._make_average(), self.model.module
        self._is_swapped = False

    def on_test_begin(self, logs: Any = None) -> None:
        """Load the average into the module."""
        self._check_is_only_average()
        self._load_average()

    def on_test_end(self, logs: Any = None) -> None:
        """Restore the training weights."""
        self._load_training_weights()

    def on_interrupt(self) -> None:
        """Restore the training weights after an interrupted evaluation."""
        self._load_training_weights()

    def on_exception(self, error: BaseException) -> None:
        """Restore the training weights after a failed evaluation."""
        self._load_training_weights()

    def on_train_end(self, logs: Any = None) -> None:
        """Leave the average in the module, if ``keep_average``."""
        self._load_training_weights()
        if self.keep_average and self._has_average():
            with torch.no_grad():
                for averaged, weight in self.average.pairs(self.model.module):
                    weight.copy_(averaged)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Load the average into the module for the block, and restore the training weights afterwards.

        Returns:
            A context manager.

        Examples:
            >>> ema = EMA(0.99)
            >>> history = model.fit(x, y, callbacks=[ema], verbose=0)
            >>> with ema.averaged():
            ...     path = model.save_weights("averaged.pt")
        """
        self._load_average()
        try:
            yield
        finally:
            self._load_training_weights()

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"average": self.average.state_dict()} if "average" in vars(self) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the average."""
        weights, expected = state["average"], self.average.state_dict()
        # The saved module may have been compiled, and this one not, or the other way round.
        if any("_orig_mod" in name for name in (*weights, *expected)):
            weights = rename(weights, expected)
        self.average.load_state_dict(weights)

    def _make_average(self) -> Average:
        """Return a new average that contains no weights yet."""
        try:
            return Average(self.model.module, self.make_function())
        except Exception as error:  # a custom __deepcopy__ may raise anything
            raise TypeError(
                f"{type(self).__name__} needs a copy of the module, but it cannot be copied: {type(error).__name__}: {error}. "
                "Let the module detach() tensors that it stores, use torch.nn.utils.parametrizations.weight_norm instead of "
                "torch.nn.utils.weight_norm, or remove the callback."
            ) from error

    def _check_is_only_average(self) -> None:
        """Raise a ``ValueError`` for a second average: each would take the other's weights for the training weights."""
        for callback in self.model.callbacks.callbacks:
            if isinstance(callback, Averaging) and callback is not self:
                raise ValueError(
                    f"{type(self).__name__} and {type(callback).__name__} both average the weights, but an evaluation can use "
                    "only one average. Pass one of them."
                )

    def _has_average(self) -> bool:
        return "average" in vars(self) and bool(self.average.n_averaged)

    def _load_average(self) -> None:
        if self._has_average() and not self._is_swapped:
            self._swap()

    def _load_training_weights(self) -> None:
        if self._is_swapped:
            self._swap()

    def _swap(self) -> None:
        """Exchange the values in place, because the optimizer refers to the tensors of the module."""
        with torch.no_grad():
            for averaged, weight in self.average.pairs(self.model.module):
                copy = weight.clone()
                weight.copy_(averaged)
                averaged.copy_(copy)
        self._is_swapped = not self._is_swapped


class EMA(Averaging):
    """Exponential moving average of the weights, updated after every optimizer step.

    Args:
        decay: Weight of the average in each update, from 0 to 1; 0.999 averages about the last 1,000 updates.
        keep_average: Leave the average in the module at the end of training.

    Raises:
        ValueError: If ``decay`` is out of range.

    Examples:
        >>> model.fit(x, y, callbacks=[EMA(0.99)], validation_split=0.2)
    """

    def __init__(self, decay: float = 0.999, keep_average: bool = False) -> None:
        super().__init__(keep_average)
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be between 0 and 1, received {decay!r}. Use EMA(decay=0.999).")
        self.decay = decay

    def make_function(self) -> Callable[..., None]:
        """Return the function that adds weights to their averages."""
        make: Callable[[float], Callable[..., None]] = get_ema_multi_avg_fn
        return make(self.decay)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Add the new weights to the average."""
        self.average.update_parameters(self.model.module)


class SWA(Averaging):
    """Stochastic weight averaging: the mean of the weights at the end of the last epochs.

    At the end of training the statistics of BatchNorm are computed again for the average, as in
    [the paper](https://arxiv.org/abs/1803.05407).

    Args:
        start_epoch: Index of the first epoch, from 0, that is averaged; or, as a float below 1, the share of epochs before it.
        keep_average: Leave the average in the module at the end of training.

    Raises:
        ValueError: If ``start_epoch`` is invalid.

    Examples:
        >>> model.fit(x, y, epochs=20, callbacks=[SWA(start_epoch=15, keep_average=True)])
    """

    def __init__(self, start_epoch: int | float = 0.75, keep_average: bool = False) -> None:
        super().__init__(keep_average)
        is_share = isinstance(start_epoch, float) and 0 <= start_epoch < 1
        self.start_epoch = start_epoch if is_share else non_negative_int("start_epoch", start_epoch)
        # Whether an epoch has ended whose weights are still to be added to the average.
        self._is_due = False
        self._has_failed = False

    def make_function(self) -> Callable[..., None]:
        """Return the function that adds weights to their averages."""
        make: Callable[[], Callable[..., None]] = get_swa_multi_avg_fn
        return make()

    def on_train_begin(self, logs: Any = None) -> None:
        """Start a new average, or continue that of an earlier fit."""
        self._has_failed = False
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Add the weights of the last epoch to the average.

        Not earlier, because callbacks at the end of that epoch save the average that its validation used.
        """
        self._add_weights()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Record whether the weights of this epoch are to be averaged."""
        state, start = self.model.state, self.start_epoch
        if isinstance(start, float):
            start = state.first + int(start * (state.last - state.first))
        self._is_due = epoch >= start

    def on_exception(self, error: BaseException) -> None:
        """Record the failure, after which no statistics are computed."""
        self._has_failed = True
        super().on_exception(error)

    def on_train_end(self, logs: Any = None) -> None:
        """Compute the statistics of BatchNorm for the average."""
        self._load_training_weights()
        self._add_weights()
        is_complete = not self._has_failed and not self.model.history.interrupted
        if is_complete and self._has_average() and (norms := self._trained_batch_norms()):
            self._update_batch_norm(norms)
        super().on_train_end(logs)

    def state_dict(self) -> dict[str, Any]:
        """Return the average, and whether weights are to be added to it."""
        return super().state_dict() | {"due": self._is_due}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the average."""
        super().load_state_dict(state)
        self._is_due = state.get("due", False)

    def _add_weights(self) -> None:
        if self._is_due:
            self.average.update_parameters(self.model.module)
        self._is_due = False

    def _trained_batch_norms(self) -> list[Any]:
        """Return the BatchNorms of the average, without those that are frozen by eval mode in the module."""
        pairs = zip(self.average.module.modules(), self.model.module.modules(), strict=False)
        return [norm for norm, current in pairs if isinstance(norm, BATCH_NORMS) and current.training]

    def _update_batch_norm(self, norms: list[Any]) -> None:
        """Compute the statistics of ``norms`` again, as the mean over all batches of the training data."""
        loader = self.model.last_fit["training"]
        if isinstance(loader, Iterator):
            warn(
                "SWA leaves the averaged statistics of BatchNorm unchanged, because a generator can be read only once. Pass a "
                "DataLoader to compute them again."
            )
            return
        average, momenta = self.average.module, [norm.momentum for norm in norms]
        for module, current in zip(average.modules(), self.model.module.modules(), strict=False):
            module.training = current.training
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative mean
        # A second fit draws the same random numbers as without this pass.
        with preserve_rng_state(), torch.no_grad():
            for batch in loader:
                self.model.signature.call(average, self.model.unpack(self.model.strategy.to_device(batch)).x)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class Average(AveragedModel):
    """An average of the trained parameters and running statistics of a module, with a copy of everything else.

    Args:
        module: The module; a copy of it holds the averages.
        average: Adds lists of tensors to lists of their averages.
    """

    def __init__(self, module: nn.Module, average: Callable[..., None]) -> None:
        super().__init__(module, multi_avg_fn=average)
        # torch reads the count in every update, which would wait for the device.
        self.n_averaged = self.n_averaged.cpu()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the weights of ``model``, and copy what is not averaged."""
        pairs = list(self.pairs(model))
        update: Callable[..., None] | None = self.multi_avg_fn
        assert update is not None, "__init__ passes it to torch"
        for (_, dtype), indices in _group_by_dtype(pairs).items():
            averages, weights = ([pairs[i][side] for i in indices] for side in (0, 1))
            if not self.n_averaged or not (dtype.is_floating_point or dtype.is_complex):
                for averaged, weight in zip(averages, weights, strict=True):
                    averaged.copy_(weight)
            else:
                update(averages, weights, self.n_averaged)
        for averaged, current in zip(self.module.parameters(), model.parameters(), strict=True):
            if not current.requires_grad:
                averaged.copy_(current)
        for owner, source in zip(self.module.modules(), model.modules(), strict=False):
            for name, buffer in source.named_buffers(recurse=False):
                if not _is_running_statistic(name, buffer):
                    _copy_buffer(owner, source, name, buffer)
        self.n_averaged += 1

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load ``state_dict``, with buffers that the module has created or resized since the copy was made."""
        for name, value in state_dict.items():
            path, _, key = name.rpartition(".")
            owner = self.get_submodule(path)
            current = dict(owner.named_buffers(recurse=False)).get(key)
            is_new = not hasattr(owner, key) and key != "_extra_state"
            if isinstance(value, Tensor) and (is_new or (current is not None and current.shape != value.shape)):
                owner.register_buffer(key, value.clone())
        return super().load_state_dict(state_dict, strict, assign)

    def pairs(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each averaged tensor with that of ``model``."""
        for averaged, current in zip(self.module.parameters(), model.parameters(), strict=True):
            if current.requires_grad:
                yield averaged.detach(), current.detach()
        for owner, source in zip(self.module.modules(), model.modules(), strict=False):
            for name, buffer in source.named_buffers(recurse=False):
                averaged_buffer = getattr(owner, name, None)
                if _is_running_statistic(name, buffer) and isinstance(averaged_buffer, Tensor):
                    yield averaged_buffer, buffer


def _is_running_statistic(name: str, buffer: Tensor) -> bool:
    """Return whether a buffer is a running mean or variance, as in the norms of torch."""
    return name.startswith("running_") and (buffer.is_floating_point() or buffer.is_complex())


def _copy_buffer(owner: nn.Module, source: nn.Module, name: str, buffer: Tensor) -> None:
    """Copy ``buffer`` to ``owner``, where it may be missing or have another shape."""
    copy = getattr(owner, name, None)
    if isinstance(copy, Tensor) and copy.shape == buffer.shape and copy.dtype == buffer.dtype:
        copy.copy_(buffer)
    else:
        owner.register_buffer(name, buffer.detach().clone(), persistent=name in source.state_dict())


def _group_by_dtype(pairs: list[tuple[Tensor, Tensor]]) -> dict[tuple[torch.device, torch.dtype], list[int]]:
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, (averaged, _) in enumerate(pairs):
        groups.setdefault((averaged.device, averaged.dtype), []).append(i)
    return groups
