"""Averages of the weights over training, on top of ``torch.optim.swa_utils``."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from easytorch._utils.forward_signature import ForwardSignature
from easytorch._utils.integers import non_negative_int
from easytorch._utils.rng import preserve_rng_state
from easytorch._utils.warnings import warn
from easytorch.callbacks.base import Callback

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Averaging(Callback, abc.ABC):
    """Base class of callbacks that average the weights.

    Evaluations use the average; training continues with the training weights.

    Args:
        keep_average: Leave the average in the module at the end of training, instead of the training weights.

    Attributes:
        average: The ``AveragedModel``. Its ``module`` is a copy of yours with the averaged weights.

    Raises:
        ValueError: In ``fit``, with ``strategy="fsdp"`` or with a second average.
    """

    # At the end of training a callback that restores the best weights runs later.
    priority = -1

    average: AveragedModel
    _averaged_module: nn.Module

    def __init__(self, keep_average: bool = False) -> None:
        self.keep_average = keep_average
        self._is_swapped = False

    @abc.abstractmethod
    def make(self) -> AveragedModel:
        """Return a new average of ``self.model.module`` that contains no weights yet."""

    def on_train_begin(self, logs: Any = None) -> None:
        """Start a new average, or continue that of an earlier fit of the same module."""
        if any(hasattr(parameter, "to_local") for parameter in self.model.module.parameters()):
            raise ValueError(
                f"{type(self).__name__} needs a copy of the module, but with strategy='fsdp' every rank has only a shard of it. "
                "Use strategy='ddp', or remove the callback."
            )
        self._check_is_only_average()
        if "average" not in vars(self) or self._averaged_module is not self.model.module:
            self.average, self._averaged_module = self.make(), self.model.module
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
                for weight, averaged in self._pair_tensors():
                    weight.copy_(averaged)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Load the average into the module for the block, and restore the training weights afterwards.

        Examples:
            >>> with ema.averaged():
            ...     model.evaluate(x, y)
            ...     model.save_weights("averaged.pt")
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
        self.average.load_state_dict(state["average"])

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
            for weight, averaged in self._pair_tensors():
                copy = weight.clone()
                weight.copy_(averaged)
                averaged.copy_(copy)
        self._is_swapped = not self._is_swapped

    def _pair_tensors(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(_list_tensors(self.model.module), _list_tensors(self.average.module), strict=True)


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
            raise ValueError(f"decay must be between 0 and 1, received {decay!r}.")
        self.decay = decay

    def make(self) -> AveragedModel:
        """Return a new average."""
        average = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]  # torch has no types here
        return _make_average(self.model.module, average)

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

    def make(self) -> AveragedModel:
        """Return a new average."""
        average = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]  # torch has no types here
        return _make_average(self.model.module, average)

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
        if is_complete and self._has_average() and self._has_batch_norm():
            self._update_batch_norm()
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

    def _has_batch_norm(self) -> bool:
        return any(isinstance(module, BATCH_NORMS) for module in self.average.modules())

    def _update_batch_norm(self) -> None:
        loader = self.model.last_fit["training"]
        if isinstance(loader, Iterator):
            warn(
                "SWA leaves the averaged statistics of BatchNorm unchanged, because a generator can be read only once. Pass a "
                "DataLoader to compute them again."
            )
            return
        # A second fit draws the same random numbers as without this pass.
        with preserve_rng_state():
            inputs = ([self.model.unpack(self.model.strategy.to_device(batch)).x] for batch in loader)
            update_bn(inputs, _SingleArgumentModule(self.average.module, self.model.signature))


class _SingleArgumentModule(nn.Module):
    """Module with one argument, as ``update_bn`` calls it, around one with any signature."""

    def __init__(self, module: nn.Module, signature: ForwardSignature) -> None:
        super().__init__()
        self.module, self.signature = module, signature

    def forward(self, x: Any) -> Any:
        return self.signature.call(self.module, x)


def _make_average(module: nn.Module, average_floats: Callable[..., None]) -> AveragedModel:
    """Return an average that copies integers and bools: a mask and a table of indices have no mean."""

    def update(averaged: Any, current: Any, count: Any) -> None:
        if averaged[0].is_floating_point() or averaged[0].is_complex():
            average_floats(averaged, current, count)
        else:
            for target, source in zip(averaged, current, strict=True):
                target.copy_(source)

    average = AveragedModel(module, multi_avg_fn=update, use_buffers=True)
    # torch reads the count in every update, which would wait for the device.
    average.n_averaged = average.n_averaged.cpu()
    return average


def _list_tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
