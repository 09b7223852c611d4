"""Warnings and advice that every fit gives: non-finite losses, endless data, slow data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from easytorch._utils import torch_private
from easytorch._utils.pytree import leaves
from easytorch._utils.rng import preserve_generators, preserve_rng_state
from easytorch._utils.timer import compute_fractions
from easytorch._utils.train_mode import in_eval_mode, preserve_module
from easytorch._utils.warnings import warn
from easytorch.callbacks.base import Callback, has_hook
from easytorch.callbacks.nan import TerminateOnNaN
from easytorch.data.batch import find_misspelled_entry
from easytorch.losses.loss_arguments import takes_argument
from easytorch.losses.modules import referenced_modules
from easytorch.optimizer_group import OptimizerGroup, parameters_of

if TYPE_CHECKING:
    from easytorch.model import Model

# Time for the search for values that are not finite, after the loss of an epoch was not.
MAX_SEARCH_SECONDS = 10.0


class WarnOnNonFiniteLoss(Callback):
    """Warn once in a fit when the loss of an epoch is NaN or infinite; in a long epoch on a CPU, before it ends."""

    all_ranks = False

    # Time until the loss is read within an epoch; it doubles each time.
    FIRST_SECONDS = 5.0

    def __init__(self) -> None:
        self.has_warned = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Start the clock."""
        if self.model.device.type != "cpu":  # reading the loss would wait for the device
            self.model.callbacks.disconnect(self, "on_train_batch_end")
        self._seconds = self.FIRST_SECONDS
        self._next_check = time.perf_counter() + self._seconds

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Check the loss of a long epoch from time to time."""
        if time.perf_counter() < self._next_check:
            return
        self._seconds *= 2
        self._next_check = time.perf_counter() + self._seconds
        logs, epoch = logs or {}, self.model.state.epoch
        if "loss" not in logs or math.isfinite(logs["loss"]) or self.model.metrics.has_counted_nothing():
            return
        message = self._describe_training_loss(f"after update {batch + 1} of epoch {epoch + 1}", "loss", logs["loss"])
        self._warn_once(message)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Check the training loss and the validation loss."""
        if self.has_warned or self.model.metrics.has_counted_nothing():
            return
        logs = logs or {}
        val_names = [f"{prefix}loss" for prefix in self.params.get("validation_prefixes", ())]
        val_name = next((name for name in val_names if not math.isfinite(logs.get(name, 0.0))), None)
        name = next((name for name in self._list_losses(logs) if not math.isfinite(logs[name])), None)
        message = None
        if name is not None:
            message = self._describe_training_loss(f"of epoch {epoch + 1}", name, logs[name])
        elif val_name is not None:
            subject = "The validation loss" if val_name == "val_loss" else repr(val_name)
            message = (
                f"{subject} of epoch {epoch + 1} is {logs[val_name]}, but the training loss is finite. Check the validation "
                f"data for values that are not finite. A callback that monitors {val_name} sees no improvement."
            )
        self._warn_once(message)

    def _warn_once(self, message: str | None) -> None:
        if message is not None:
            self.has_warned = True
            self.model.callbacks.disconnect(self, "on_train_batch_end")
            warn(message)

    def _list_losses(self, logs: Mapping[str, Any]) -> list[str]:
        """Return the name of the loss; without one, the names of what a custom update has recorded."""
        if "loss" in logs or not self.model.overrides("update"):
            return ["loss"] * ("loss" in logs)
        metrics = self.model.metrics
        measured = {name for name in logs if name in metrics.names or metrics.may_have_entry(name)}
        return [
            name
            for name, value in logs.items()
            if isinstance(value, (int, float)) and name not in measured and not name.startswith(("val_", "lr"))
        ]

    def _describe_training_loss(self, when: str, name: str, loss: float) -> str | None:
        """Return the message, or None if ``TerminateOnNaN`` reports the loss."""
        if any(isinstance(callback, TerminateOnNaN) for callback in self.model.callbacks.callbacks):
            return None
        data = None if self.model.train_data is None else find_bad_data(self.model.train_data.loader, self.model.unpack)
        rate = self.model.require_optimizer("fit").param_groups[0]["lr"]
        fix = f"Use a lower learning rate than lr={float(rate):g}, or pass clip_grad_norm=1.0 to compile()."
        if data is not None:
            fix = f"{data}: remove or fill these values."
        subject = "The loss" if name == "loss" else f"{name!r}"
        return (
            f"{subject} {when} is {loss}. {fix} The callback TerminateOnNaN() stops training at the first such "
            "loss and reports its origin."
        )


def find_bad_data(loader: Any, unpack: Callable[[Any], Any]) -> str | None:
    """Return the first sample or batch with values that are not finite; None if none is found within some seconds.

    Args:
        loader: The training data, which is read once more.
        unpack: Splits a batch into inputs, targets and weights.
    """
    if isinstance(loader, Iterator):
        return None
    kind, data = "batch", loader
    if isinstance(loader, DataLoader):
        kind, data = ("batch" if loader.batch_size is None else "sample"), loader.dataset
    items = (
        data
        if isinstance(data, IterableDataset) or not hasattr(data, "__len__") or not hasattr(data, "__getitem__")
        else map(data.__getitem__, range(len(data)))
    )
    try:
        with preserve_rng_state(), preserve_generators(data):
            return _search(items, kind, unpack)
    except Exception:  # only a custom step knows the form of its data, and the search must not end a run
        return None


def _search(items: Iterable[Any], kind: str, unpack: Callable[[Any], Any]) -> str | None:
    deadline = time.perf_counter() + MAX_SEARCH_SECONDS
    for i, item in enumerate(items):
        parts = unpack(item)
        for name, part in (("inputs", parts.x), ("targets", parts.y), ("sample weights", parts.sample_weight)):
            if not all(np.isfinite(leaf).all() for leaf in map(_as_array, leaves(part)) if leaf.dtype.kind in "fc"):
                return f"The {name} of {kind} {i} of the data have values that are not finite"
        if time.perf_counter() > deadline:
            return None
    return None


def _as_array(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        leaf = leaf.detach().cpu()
        return (leaf.float() if leaf.dtype == torch.bfloat16 else leaf).numpy()
    return np.asarray(leaf)


class WarnOnMisspelledEntry(Callback):
    """Warn before the first step about an entry of a dict that is ignored, if an argument of the module is similar."""

    all_ranks = False

    def __init__(self) -> None:
        self._messages = {""}

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Check the first batch of a fit."""
        self._check("on_train_batch_begin", self.model.metrics.current_batches(), ("train_step", "update", "unpack"))

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Check the first batch of the first evaluation."""
        self._check("on_test_batch_begin", self.model.metrics.current_batches(), ("train_step", "test_step", "unpack"))

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        """Check the first batch of a prediction, which the logs have after its step."""
        self._check("on_predict_batch_end", [(logs or {})["batch"]], ("predict_step", "unpack"))

    def _check(self, hook: str, batches: list[Any], methods: tuple[str, ...]) -> None:
        """Check the first of ``batches``, unless one of ``methods`` is custom and may use its entries."""
        model = self.model
        model.callbacks.disconnect(self, hook)
        if not batches or any(map(model.overrides, methods)):
            return
        predicts = hook == "on_predict_batch_end"
        message = find_misspelled_entry(batches[0], model.signature, model.loss.entries, predicts=predicts)
        if message not in self._messages and (predicts or not self._takes_batch()):
            self._messages.add(message)
            warn(message)

    def _takes_batch(self) -> bool:
        """Return whether a loss or a metric of the user gets the whole batch."""
        functions = filter(callable, self.model.loss.functions())
        further = (entry.metric.further_arguments for entry in self.model.metrics.entries)
        return any(takes_argument(function, "batch") for function in functions) or any(
            "batch" in arguments.names for arguments in further if arguments is not None
        )


class WarnOnUnscaledInputs(Callback):
    """Warn once, in the first update of a model, about inputs that are much larger than 1 and reach a layer with weights."""

    all_ranks = False

    # Networks expect values of about 1; a table with larger values has not been scaled.
    MAX_VALUE = 1000.0
    LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Check the inputs of the first update."""
        model = self.model
        model.callbacks.disconnect(self, "on_train_batch_end")
        if (
            model.state.step != 1
            or model.train_data is None
            or any(map(model.overrides, ("train_step", "update", "unpack")))
        ):
            return
        x = model.unpack(model.train_data.window[0]).x
        if not isinstance(x, Tensor) or x.layout is not torch.strided or not x.is_floating_point() or not x.numel():
            return
        largest = float(x.detach().abs().max())
        if not self.MAX_VALUE < largest < math.inf or not self._reaches_layer(model.strategy.to_device(x)):
            return
        where = f" in column {int(x.detach().abs().amax(0).argmax())}" if x.ndim == 2 else ""
        warn(
            f"The inputs go up to {largest:.3g}{where}. Training will be slow or end in nan. Scale the columns of a table "
            "with the mean and the standard deviation of the training data, (x - x.mean(0)) / x.std(0). Divide images by their "
            "largest value."
        )

    def _reaches_layer(self, x: Tensor) -> bool:
        """Return whether the first layer with weights gets such values, and not normalized ones."""
        scales: list[float] = []

        def record(layer: nn.Module, inputs: Any) -> None:
            scales.extend(
                float(value.abs().max()) for value in inputs[:1] if isinstance(value, Tensor) and value.numel()
            )

        module = self.model.module
        if any(hasattr(parameter, "to_local") for parameter in module.parameters()):
            return False  # the ranks of a sharded module would wait for each other
        handles = [
            layer.register_forward_pre_hook(record) for layer in module.modules() if isinstance(layer, self.LAYERS)
        ]
        try:
            with torch.no_grad(), preserve_module(module), in_eval_mode(module), preserve_rng_state():
                module(x)
        except Exception:  # only a custom step knows how to call the module
            return False
        finally:
            for handle in handles:
                handle.remove()
        return bool(scales) and scales[0] > self.MAX_VALUE


class WarnOnUntrainedParameters(Callback):
    """Warn once, in the first update, about parameters that are not trained and not frozen either.

    With several optimizers, it is the update in which each of them has stepped.
    """

    all_ranks = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Wait for the first update."""
        self._used = set[int]()
        self._first_step, self._trained = 0, list[bool]()

    def on_before_optimizer_step(self) -> None:
        """Check which parameters have a gradient and an optimizer, unless a custom ``update`` may use other optimizers."""
        optimizer = self.model.require_optimizer("fit")
        self._used |= {id(p) for p in parameters_of(optimizer) if p.grad is not None}
        if isinstance(optimizer, OptimizerGroup) and not self._have_all_stepped(optimizer):
            return
        self.model.callbacks.disconnect(self, "on_before_optimizer_step")
        if self.model.overrides("update"):
            return
        optimizers = [optimizer, *_attributes(self.model, torch.optim.Optimizer).values()]
        owned = {id(p) for optimizer in optimizers for p in parameters_of(optimizer)}
        trained: dict[str, Tensor] = {
            name: value for name, value in self.model.module.named_parameters() if value.requires_grad
        }
        trained |= {
            f"loss.{name}": value
            for name, value in self.model.loss.modules.named_own_parameters()
            if value.requires_grad
        }
        trained |= self._find_in_other_modules(owned | {id(value) for value in trained.values()})
        missing = [name for name, value in trained.items() if id(value) not in owned]
        unused = [
            name
            for name, value in trained.items()
            if id(value) in owned and id(value) not in self._used and value.grad is None
        ]
        parts = [
            f"no optimizer has {_join_names(missing)}" * bool(missing),
            f"{_join_names(unused)} got no gradient, as the loss does not depend on {'it' if len(unused) == 1 else 'them'}"
            * bool(unused),
        ]
        if missing or 0 < len(unused) < len(trained) - len(missing):  # otherwise a callback has deleted all gradients
            warn(
                f"Some parameters are not trained: {'; '.join(filter(None, parts))}. If this is intended, freeze them with "
                "requires_grad_(False). Parameters of a loss are trained if the loss is a module, or a part of the module."
            )

    def _have_all_stepped(self, group: OptimizerGroup) -> bool:
        """Return whether each optimizer has had gradients, or should have had them."""
        step = self.model.state.step
        trained = [parameter.requires_grad for parameter in parameters_of(group)]
        if self._trained != trained:  # count from the update since which all of them are trained
            self._trained, self._first_step = trained, step
        have_gradients = all(any(id(p) in self._used for p in parameters_of(member)) for member in group.values())
        return have_gradients or step >= self._first_step + max(group.update_every.values())

    def _find_in_other_modules(self, known: set[int]) -> dict[str, Tensor]:
        """Return the parameters outside of the module and the loss, and not in ``known``, that got a gradient, by name.

        They belong to attributes of the model, or to variables of a function that is the loss.
        """
        modules = {
            f"model.{name}": value for name, value in _attributes(self.model, nn.Module).items() if name != "module"
        }
        for function in self.model.loss.functions():
            modules |= referenced_modules(function)
        return {
            f"{prefix}.{name}": parameter
            for prefix, module in modules.items()
            for name, parameter in module.named_parameters()
            if id(parameter) not in known and parameter.grad is not None
        }


def _attributes(model: Any, kind: type[Any]) -> dict[str, Any]:
    return {name: value for name, value in vars(model).items() if isinstance(value, kind)}


def _join_names(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def advise_on_batches(model: Model) -> list[Callback]:
    """Return what warns in ``train_on_batch`` about a custom ``update`` or ``train_step``."""
    if model.overrides("update"):
        return [WarnOnCustomUpdateOfBatch()]
    return [WarnOnLeakedGradients()] if model.overrides("train_step") else []


class WarnOnCustomUpdate(Callback):
    """Warn once of what a custom ``update`` leaves out although the program needs it or asks for it.

    After the first update: hooks and clipping. After the next one: gradients that were not deleted. After the first epoch:
    weights that did not change, and values that were not recorded.
    """

    all_ranks = False
    # Before all callbacks that may set the gradients to None.
    priority = -1

    def on_train_begin(self, logs: Any = None) -> None:
        """Wait for the first update."""
        self.is_due, self.is_first_epoch, self.has_called = True, True, False
        self.clips_before = self.model.strategy.clip_count
        self._old_gradient: _OldGradient | None = None
        self._weights: list[Tensor] = []
        self._before: list[Any] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Record the weights before the first update."""
        self._weights = self._list_weights()
        self._before = _fingerprints(self._weights)
        self.model.callbacks.disconnect(self, "on_train_batch_begin")

    def on_before_optimizer_step(self) -> None:
        """Record that ``update`` calls this hook."""
        self.has_called = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Check the first update; later ones until the weights of its gradients change again."""
        if self.is_due:
            self.is_due = False
            self._check_hooks()
            self._old_gradient = _OldGradient.find(self._weights, self._before)
            return
        if self._old_gradient is not None and not self._old_gradient.is_resolved():
            return
        if self._old_gradient is not None and self._old_gradient.is_added():
            warn(
                "update() is custom and does not delete the gradients of the update before, so each update adds its gradients to "
                "all earlier ones. Add self.strategy.zero_grad(self.optimizer) to it, after self.strategy.step(...)."
            )
        self._forget_gradient()
        self.model.callbacks.disconnect(self, "on_train_batch_end")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Check the weights and the logs of the first epoch."""
        if not self.is_first_epoch:
            return
        self.is_first_epoch = False
        if not any(not name.startswith(("val_", "lr")) for name in logs or {}):
            warn(
                "update() is custom and records nothing, so the history has no loss of the training. Add "
                "self.metrics.record(outputs, self.batch_size(batch)) to it, for each batch of the window."
            )
        # A loss scale that overflows skips updates.
        if self._weights and not self.model.strategy.scales_loss and _fingerprints(self._weights) == self._before:
            warn(
                "update() is custom and has changed no weights in this epoch, so nothing is trained. Add "
                "self.strategy.backward(outputs['loss'], 1 / len(window)) to it for each batch of the window, and then "
                "self.strategy.step(self.optimizer)."
            )

    def on_train_end(self, logs: Any = None) -> None:
        """Release the weights."""
        self._forget_gradient()
        self._weights, self._before = [], []

    def _check_hooks(self) -> None:
        """Warn of hooks that were not called and gradients that were not clipped."""
        model = self.model
        callbacks = [
            type(callback).__name__
            for callback in model.callbacks.callbacks
            if not isinstance(callback, (TerminateOnNaN, WarnOnCustomUpdate, WarnOnUntrainedParameters))
            and has_hook(callback, "on_before_optimizer_step")
        ]
        if callbacks and not self.has_called:
            warn(
                f"update() is custom and does not call on_before_optimizer_step() of {', '.join(callbacks)}. Add "
                "self.callbacks.on_before_optimizer_step() to it, before self.strategy.step(...)."
            )
        if (model.clip_grad_norm or model.clip_grad_value) and model.strategy.clip_count == self.clips_before:
            warn(
                "update() is custom and does not clip gradients, so clip_grad_norm and clip_grad_value have no effect. Add "
                "self.strategy.clip(self.optimizer, self.clip_grad_norm, self.clip_grad_value) to it, before "
                "self.strategy.step(...)."
            )

    def _list_weights(self) -> list[Tensor]:
        """Return what may be trained: the parameters of the module and of all optimizers; none if they are sharded."""
        model = self.model
        optimizers = [model.require_optimizer("fit"), *_attributes(model, torch.optim.Optimizer).values()]
        weights: dict[int, Tensor] = {id(p): p for optimizer in optimizers for p in parameters_of(optimizer)}
        weights |= {id(p): p for p in model.module.parameters()}
        trained = [weight for weight in weights.values() if weight.requires_grad]
        return [] if any(hasattr(weight, "to_local") for weight in trained) else trained

    def _forget_gradient(self) -> None:
        if self._old_gradient is not None:
            self._old_gradient.close()
            self._old_gradient = None


class WarnOnCustomUpdateOfBatch(WarnOnCustomUpdate):
    """The same warnings for ``train_on_batch``, once for a model, after its first calls."""

    # Calls without a change of the weights, since an update may take several.
    PATIENCE = 20

    def __init__(self) -> None:
        self.calls, self.has_changed = 0, False

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Record the weights before the first update."""
        if not self.calls:
            self.on_train_begin()
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Check the first updates."""
        self.calls += 1
        if self.calls == 1 and not logs:
            warn(
                "update() is custom and records nothing, so train_on_batch() returns no loss. Add "
                "self.metrics.record(outputs, self.batch_size(batch)) to it, for each batch of the window."
            )
        super().on_train_batch_end(batch, logs)
        if self.calls in (1, self.PATIENCE):
            self.has_changed |= not self._weights or _fingerprints(self._weights) != self._before
        if self.calls < self.PATIENCE and not (self.has_changed and self._old_gradient is None):
            return
        if not self.has_changed and not self.model.strategy.scales_loss:
            warn(
                f"update() is custom and has changed no weights in {self.PATIENCE} calls of train_on_batch(), so nothing is "
                "trained. Add self.strategy.backward(outputs['loss'], 1 / len(window)) to it for each batch of the window, and "
                "then self.strategy.step(self.optimizer)."
            )
        self.on_train_end()
        self.model.batch_advice = []


class _OldGradient:
    """The gradient that an update has left in a weight, until the weight changes again or the gradient is deleted.

    Args:
        weight: The weight, which an optimizer has changed.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight, self._before = weight, _fingerprints([weight])
        self._is_deleted = self._is_used = False
        tensor: Any = weight  # the type stubs of torch lack register_hook
        self._handle = tensor.register_hook(self._record)

    @classmethod
    def find(cls, weights: list[Tensor], before: list[Any]) -> _OldGradient | None:
        """Return that of one of ``weights`` that has changed since ``before`` and has a gradient; None if there is none."""
        for weight, after, fingerprint in zip(weights, _fingerprints(weights), before, strict=True):
            gradient = weight.grad
            if after != fingerprint and gradient is not None and gradient.layout is torch.strided and gradient.any():
                return cls(weight)
        return None

    def _record(self, gradient: Tensor) -> None:
        # Called before the new gradient is added to the old one.
        old = self._weight.grad
        self._is_used = True
        self._is_deleted |= old is None or not bool(old.any())

    def is_resolved(self) -> bool:
        """Return whether it is known if the gradient counts twice."""
        return self._is_deleted or _fingerprints([self._weight]) != self._before

    def is_added(self) -> bool:
        """Return whether the weight has changed by the sum of this gradient and new ones."""
        return self._is_used and not self._is_deleted

    def close(self) -> None:
        """Stop watching."""
        self._handle.remove()


def _fingerprints(weights: list[Tensor]) -> list[Any]:
    """Return what differs after a change of each weight: its sum, and its version, which a fused optimizer does not count."""
    if not weights:
        return []
    parts = [torch.view_as_real(weight) if weight.is_complex() else weight for weight in weights]
    # MPS has no float64.
    wide = torch.float32 if parts[0].device.type == "mps" else torch.float64
    sums = torch.stack([part.detach().sum(dtype=wide).to(parts[0].device) for part in parts]).tolist()
    return list(zip(sums, (weight._version for weight in weights), strict=True))


class WarnOnLeakedGradients(Callback):
    """Warn once, after the first update, if a custom step left gradients, which are deleted."""

    all_ranks = False
    has_warned = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Allow one warning in this fit."""
        self.has_warned = False

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Check whether a step of this run has left gradients."""
        if self.model.callbacks.has_leaked and not self.has_warned:
            self.has_warned = True
            warn(
                "train_step called backward(), and the gradients that it left are deleted: an update uses the gradients of the "
                "loss that train_step returns, and no others. To compute gradients for the step itself, use "
                "torch.autograd.grad(loss, x), or call self.module.zero_grad() after backward(). To add gradients to the update, "
                "override update(window)."
            )


class WarnOnSummedLoss(Callback):
    """Warn once, in the first update, if a custom step returns a sum over samples where batches are averaged."""

    all_ranks = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Watch the losses of the first update."""
        # A loss of compile() that is a sum is not averaged.
        self.is_due = not getattr(self.model.loss, "is_sum", False)
        if self.is_due:
            self.model.strategy.watch_losses(True)

    def on_before_optimizer_step(self) -> None:
        """Check the losses of this update."""
        if not self.is_due:
            return
        assert self.model.train_data is not None
        sizes = self.model.train_data.window.sizes
        for loss, size in zip(self.model.strategy.losses, sizes, strict=False):
            # The pair (sum, count) is divided by its count.
            if not isinstance(loss, tuple) and torch_private.is_sum_over(loss.grad_fn, size):
                warn(
                    "train_step returns a sum over the samples of a batch as 'loss', but the batches of an update are averaged, "
                    "weighted by their samples. So the gradients are not those of one large batch. Return the mean, or the pair "
                    "{'loss': (sum, count)}."
                )
                break
        self._stop()

    def on_train_end(self, logs: Any = None) -> None:
        """Release the losses."""
        if self.is_due:
            self._stop()

    def _stop(self) -> None:
        self.is_due = False
        self.model.strategy.watch_losses(False)


class WarnOnEndlessData(Callback):
    """Warn once when the first epoch over data without a length takes long: the data may never end."""

    all_ranks = False

    MAX_SECONDS = 60.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Start the clock."""
        self.deadline = time.perf_counter() + self.MAX_SECONDS

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Warn if the deadline has passed."""
        if time.perf_counter() >= self.deadline:
            self.deadline = math.inf
            warn(
                f"The first epoch has run for more than a minute and {batch + 1:,} updates. The data has no length and may never "
                "end. Pass the number of updates in an epoch: fit(..., steps_per_epoch=1000)."
            )

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Disable the warning, because the data does end."""
        self.deadline = math.inf


class WarnOnEndlessValidation(Callback):
    """Warn once when the first validation over data without a length takes long: the data may never end."""

    all_ranks = False

    MAX_SECONDS = 60.0

    def __init__(self) -> None:
        self.is_due = True

    def on_test_begin(self, logs: Any = None) -> None:
        """Start the clock."""
        self.is_due = self.is_due and self.params["test_steps"] is None
        self.deadline = time.perf_counter() + self.MAX_SECONDS

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Warn if the deadline has passed."""
        if self.is_due and time.perf_counter() >= self.deadline:
            self.is_due = False
            warn(
                f"The first validation has run for more than a minute and {batch + 1:,} batches. Its data has no length and may "
                "never end. Pass the number of batches: fit(..., validation_steps=100)."
            )

    def on_test_end(self, logs: Any = None) -> None:
        """Disable the warning, because the data does end."""
        self.is_due = False


class AdviseOnSlowData(Callback):
    """Print once in a fit how to load data faster, if an epoch waited long for it."""

    # After the line of the epoch.
    priority = 21
    optional = True
    all_ranks = False

    # Smallest share of an epoch, and time in seconds, that counts as a long wait.
    MIN_SHARE = 0.3
    MIN_SECONDS = 1.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Enable the advice for this fit."""
        self.has_advised = False

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Check how long the epoch waited for data."""
        epoch_seconds = self.model.history.seconds[-1]
        seconds, share = epoch_seconds["data"], compute_fractions(epoch_seconds)["data"]
        if self.has_advised or share <= self.MIN_SHARE or seconds <= self.MIN_SECONDS or self.model.train_data is None:
            return
        if advice := self.model.train_data.data_loading_advice(self.model.device):
            self.has_advised = True
            self.print_message(f"Waiting for data took {share:.0%} of this epoch. {advice}")
