"""Callbacks that average weights over training, on ``torch.optim.swa_utils``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from easytorch._utils.forward_signature import ForwardSignature
from easytorch._utils.rng import preserve_rng_state
from easytorch._utils.warnings import warn
from easytorch.callbacks.base import Callback


class Averaging(Callback):
    """Keeps an average of the weights, evaluates with it, and trains on with the weights of training.

    Args:
        keep_average: Leave the average in the module when training ends, instead of the weights of training.

    Attributes:
        average: The ``AveragedModel``; its ``module`` is like yours, with the averaged weights.
    """

    priority = -1  # so that a callback that puts back the best weights has the last word

    average: AveragedModel
    _of: torch.nn.Module  # whose average it is

    def __init__(self, keep_average: bool = False) -> None:
        self.keep_average = keep_average
        self._swapped = False

    def make(self) -> AveragedModel:
        """Return a new average of the module, which has seen nothing."""
        raise NotImplementedError(f"{type(self).__name__} must define make()")

    def on_train_begin(self, logs: Any = None) -> None:
        """Begin a new average; a second fit goes on with that of the first."""
        if any(hasattr(parameter, "to_local") for parameter in self.model.module.parameters()):
            raise ValueError(
                f"{type(self).__name__} keeps a copy of the module, but with strategy='fsdp' every process has parts of it only. "
                "Use strategy='ddp', or leave the average out."
            )
        self._check_alone()
        if "average" not in vars(self) or self._of is not self.model.module:
            self.average, self._of = self.make(), self.model.module
        self._swapped = False

    def on_test_begin(self, logs: Any = None) -> None:
        """Put the average into the module."""
        self._check_alone()
        self._put()

    def on_test_end(self, logs: Any = None) -> None:
        """Put the weights of training back."""
        if self._swapped:
            self._swap()

    def on_interrupt(self) -> None:
        """Put the weights of training back, should an evaluation have been interrupted."""
        self.on_test_end()

    def on_exception(self, error: BaseException) -> None:
        """Put the weights of training back, should an evaluation have failed."""
        self.on_test_end()

    def on_train_end(self, logs: Any = None) -> None:
        """Leave the average in the module, if that is wanted."""
        self.on_test_end()
        if self.keep_average and self._averaged():
            with torch.no_grad():
                for own, averaged in zip(_values(self.model.module), _values(self.average.module), strict=True):
                    own.copy_(averaged)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the average inside, for ``evaluate``, ``predict`` or ``save``, and the weights of training afterwards."""
        self._put()
        try:
            yield
        finally:
            self.on_test_end()

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"average": self.average.state_dict()} if "average" in vars(self) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self.average.load_state_dict(state["average"])

    def _check_alone(self) -> None:
        """Raise an error if there is another average: each would take the other's for the weights of training."""
        averages = [one for one in self.model.callbacks.callbacks if isinstance(one, Averaging)]
        others = [one for one in averages if one is not self]
        if others:
            raise ValueError(
                f"{type(self).__name__} and {type(others[0]).__name__} both keep an average, and evaluations can measure one "
                "only. Pass one of them."
            )

    def _averaged(self) -> bool:
        return "average" in vars(self) and bool(self.average.n_averaged)

    def _put(self) -> None:
        if self._averaged() and not self._swapped:
            self._swap()

    def _swap(self) -> None:
        """Exchange the values in place: the optimizer holds on to the very tensors of the module."""
        with torch.no_grad():
            for own, averaged in zip(_values(self.model.module), _values(self.average.module), strict=True):
                kept = own.clone()
                own.copy_(averaged)
                averaged.copy_(kept)
        self._swapped = not self._swapped


class EMA(Averaging):
    """An exponential moving average of the weights, updated after every update of the optimizer.

    Args:
        decay: What stays of the average in each update; 0.999 looks back over about 1,000 updates.
        keep_average: Leave the average in the module when training ends.
    """

    def __init__(self, decay: float = 0.999, keep_average: bool = False) -> None:
        super().__init__(keep_average)
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be between 0 and 1, received {decay!r}.")
        self.decay = decay

    def make(self) -> AveragedModel:
        """Return a new average."""
        average = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]  # torch has no types here
        return _counted_here(AveragedModel(self.model.module, multi_avg_fn=_of_floats(average), use_buffers=True))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Take the new weights into the average."""
        self.average.update_parameters(self.model.module)


class SWA(Averaging):
    """Stochastic weight averaging: the plain mean of the weights at the end of the last epochs.

    After training the statistics of BatchNorm are measured again for the average, as
    [the paper](https://arxiv.org/abs/1803.05407) asks.

    Args:
        start_epoch: The first epoch, from 0, that counts; or, as a float, the share of all epochs that comes before.
        keep_average: Leave the average in the module when training ends.
    """

    def __init__(self, start_epoch: int | float = 0.75, keep_average: bool = False) -> None:
        super().__init__(keep_average)
        share = isinstance(start_epoch, float) and 0 <= start_epoch < 1
        if not share and (type(start_epoch) is not int or start_epoch < 0):
            raise ValueError(f"start_epoch must be an epoch from 0 on, or a share below 1, received {start_epoch!r}.")
        self.start_epoch = start_epoch
        self._due = False  # whether an epoch has ended whose weights are not in the average yet
        self._failed = False

    def make(self) -> AveragedModel:
        """Return a new average."""
        average = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]  # torch has no types here
        return _counted_here(AveragedModel(self.model.module, multi_avg_fn=_of_floats(average), use_buffers=True))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Take the weights of the last epoch into the average, now that callbacks have saved what it measured."""
        self._take()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Note whether the weights of this epoch count."""
        state = self.model.state
        planned = state.last - state.first
        start = (
            state.first + int(self.start_epoch * planned) if isinstance(self.start_epoch, float) else self.start_epoch
        )
        self._due = epoch >= start

    def _take(self) -> None:
        if self._due:
            self.average.update_parameters(self.model.module)
        self._due = False

    def state_dict(self) -> dict[str, Any]:
        """Return the average, and whether weights are to go into it."""
        return super().state_dict() | {"due": self._due}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        super().load_state_dict(state)
        self._due = state.get("due", False)

    def on_train_begin(self, logs: Any = None) -> None:
        """Begin a new average, or go on with that of an earlier fit."""
        self._failed = False
        super().on_train_begin(logs)

    def on_exception(self, error: BaseException) -> None:
        """Note that the run did not come to its end: who stops it does not wait for another pass over the data."""
        self._failed = True
        super().on_exception(error)

    def on_train_end(self, logs: Any = None) -> None:
        """Measure the statistics of BatchNorm for the average."""
        self.on_test_end()
        self._take()
        normed = torch.nn.modules.batchnorm._BatchNorm
        ended = not self._failed and not self.model.history.interrupted
        if ended and self._averaged() and any(isinstance(part, normed) for part in self.average.modules()):
            self._measure_batch_norm()
        super().on_train_end(logs)

    def _measure_batch_norm(self) -> None:
        loader = self.model.last_fit["training"]
        if isinstance(loader, Iterator):
            warn(
                "The training data can be read only once, so SWA keeps the mean of BatchNorm's statistics as they are."
            )
            return
        with preserve_rng_state():  # a second fit draws what it would have drawn
            inputs = ([self.model.unpack(self.model.strategy.to_device(batch)).x] for batch in loader)
            update_bn(inputs, _Called(self.average.module, self.model.signature))


class _Called(torch.nn.Module):
    """The module as ``update_bn`` calls it, with one argument, whatever it is called with."""

    def __init__(self, module: torch.nn.Module, signature: ForwardSignature) -> None:
        super().__init__()
        self.module, self.signature = module, signature

    def forward(self, x: Any) -> Any:
        return self.signature.call(self.module, x)


def _of_floats(average: Callable[..., None]) -> Callable[..., None]:
    """Let ``average`` have the floats, and copy the rest: a mask and a table of indices have no mean."""

    def update(averaged: Any, current: Any, count: Any) -> None:
        if averaged[0].is_floating_point() or averaged[0].is_complex():
            average(averaged, current, count)
        else:
            for own, new in zip(averaged, current, strict=True):
                own.copy_(new)

    return update


def _counted_here(average: AveragedModel) -> AveragedModel:
    """Count on the host: torch asks for the count in every update, and would wait for the device."""
    average.n_averaged = average.n_averaged.cpu()
    return average


def _values(module: torch.nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
