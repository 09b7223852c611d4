"""Everything that the checks look at, measured once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from easytorch._utils import train_mode
from easytorch._utils.pytree import leaves, map_leaves
from easytorch._utils.rng import preserve_rng_state
from easytorch.callbacks.base import Callback, CallbackList
from easytorch.checks.recording import Recorder, Recording
from easytorch.checks.samples import Samples
from easytorch.data.batch import Batch, Window, divide
from easytorch.losses.criterion import Criterion
from easytorch.losses.module_loss import ModuleLoss, find_loss_parts
from easytorch.losses.multi_output_loss import MultiOutputLoss
from easytorch.losses.single_loss import SingleLoss
from easytorch.metrics.aggregation import to_floats
from easytorch.metrics.collection import loss_of
from easytorch.optimizer_group import OptimizerGroup, parameters_of
from easytorch.training.evaluation import separate_metrics
from easytorch.training.session import update_session
from easytorch.training.trial import trial

if TYPE_CHECKING:
    from easytorch.data.epoch_iterator import EpochIterator
    from easytorch.model import Model

# Updates with the user's optimizer on one batch, and seconds for them.
UPDATES, UPDATE_SECONDS = 20, 0.7
# Updates in which gradients are measured after the first one.
MORE_UPDATES = 2
# Steps of the trial to fit one batch, samples of it, and seconds for the steps with each learning rate.
FIT_STEPS, FIT_SAMPLES, FIT_SECONDS = 60, 32, 0.8
FIT_RATES = (3e-3, 3e-2, 3e-4)
# Below this share of the first loss, the batch was fitted.
FITTED = 0.5


@dataclasses.dataclass
class Head:
    """An output of the module and its targets.

    Attributes:
        name: The name of the output; empty for the only one.
        loss: The loss; None if the module computes it.
        y_pred: The output of the training step, with its graph.
        y: The targets as the loss takes them; None if there are none.
        labels: The targets of all samples that are known, as they are in the data.
    """

    name: str
    loss: SingleLoss | None
    y_pred: Tensor
    y: Tensor | None
    labels: Tensor | None

    @property
    def title(self) -> str:
        """How to call the output in a sentence."""
        return f"output {self.name!r}" if self.name else "output"


@dataclasses.dataclass
class Row:
    """A parameter in the first update.

    Attributes:
        gradient: The norm of its gradient; None without a gradient.
        largest: The largest norm in this and a few more updates, in which layers that start with zeros have moved.
        weight: Its norm before the update.
        change: The norm of what the update added.
        size: The number of its values.
    """

    gradient: float | None
    largest: float
    weight: float
    change: float
    size: int

    @property
    def ratio(self) -> float:
        """The size of the update in relation to the parameter; NaN for a parameter of zeros."""
        return self.change / self.weight if self.weight else math.nan


@dataclasses.dataclass
class Probe:
    """A model and a batch of its data, with everything that was measured.

    Attributes:
        model: The model; its weights are those of the user while checks run.
        train: Samples of the training data.
        validation: Samples of the validation data, by name; the only one has an empty name.
        batch: The first batch: inputs, targets and weights on the device. None if only a custom step can read it.
        batch_size: The number of samples of the batch.
        steps: Updates in an epoch; None if unknown.
        samples: Samples in an epoch; None if unknown.
        heads: The outputs that have a tensor, with their losses and targets.
        eval_outputs: The outputs in eval mode, of the first and a second call; None if the call failed.
        eval_recording: The layers in eval mode.
        halves: The rows of each half of the batch with the outputs for the half alone, or the exception.
        later_outputs: The outputs in train mode after the updates of ``curve``; None if only a custom step computes them.
        recording: The layers in the first update; None if it failed.
        loss: The loss of the first update; None if it failed or there are several.
        rows: The parameters in the first update, by name; empty if it failed.
        curve: The losses of updates of the user's optimizer on the batch.
        fit_curve: The losses of an Adam optimizer on a part of the batch; empty if it was not tried.
        failure: Why the training step failed; None if it did not.
        messages: Warnings of this package while training.
        data_seconds: The time to get a batch.
        data_advice: How to load data faster; empty if it is in memory.
        step_seconds: The time of an update.

    Examples:
        >>> def check_it(probe):
        ...     print(probe.batch_size, probe.loss)
        ...     return []
        >>> report = model.check(x, y, checks=[check_it])
    """

    model: Model
    train: Samples
    validation: dict[str, Samples]
    batch: Batch | None = None
    batch_size: int = 0
    steps: int | None = None
    samples: int | None = None
    heads: list[Head] = dataclasses.field(default_factory=list)
    eval_outputs: tuple[Any, Any] | None = None
    eval_recording: Recording | None = None
    halves: list[tuple[slice, Any]] = dataclasses.field(default_factory=list)
    later_outputs: Any = None
    recording: Recording | None = None
    loss: float | None = None
    rows: dict[str, Row] = dataclasses.field(default_factory=dict)
    curve: list[float] = dataclasses.field(default_factory=list)
    fit_curve: list[float] = dataclasses.field(default_factory=list)
    failure: BaseException | None = None
    messages: list[str] = dataclasses.field(default_factory=list)
    data_seconds: float = 0.0
    data_advice: str = ""
    step_seconds: float = 0.0

    @property
    def module(self) -> nn.Module:
        """The module."""
        return self.model.module

    @property
    def is_standard(self) -> bool:
        """Whether the training step is that of ``Model``, so that inputs, outputs and targets are known."""
        return not any(map(self.model.overrides, ("train_step", "update", "unpack")))

    @property
    def is_untrained(self) -> bool:
        """Whether the model has had no update."""
        return self.model.state.step == 0

    def head_of(self, name: str) -> Head | None:
        """Return the head with the targets ``name``.

        Args:
            name: The name of the targets; an empty text if there is only one output.

        Examples:
            >>> def check_it(probe):
            ...     head = probe.head_of("")
            ...     return []
            >>> report = model.check(x, y, checks=[check_it])
        """
        if len(self.heads) == 1:
            return self.heads[0]
        return next((head for head in self.heads if head.name in (name, f"output_{name}")), None)


def run_model(probe: Probe, train_data: EpochIterator, seconds: float) -> None:
    """Run the model of ``probe`` on the first batch, and fill in everything that is measured.

    Args:
        probe: The probe, with the data.
        train_data: The training data, as ``fit`` reads it.
        seconds: Time for reading batches.
    """
    model = probe.model
    try:
        window = _read_windows(probe, train_data, seconds)
    except Exception as error:  # whatever the data raises is a finding
        probe.failure = error
        return
    probe.data_advice = train_data.data_loading_advice(model.device) or ""
    probe.batch_size = sum(window.sizes)
    probe.steps = len(train_data) or None
    placed = model.strategy.to_device(window[0])
    try:
        probe.batch = model.unpack(placed)
    except Exception:  # only a custom step knows the form of its batches
        probe.batch = None
    with _plain_forward(model):
        _run_eval(probe)
        try:
            _run_updates(probe, window)
        except Exception as error:  # whatever the program raises is a finding
            probe.failure = error
            return
        if not model.overrides("update") and not isinstance(model.optimizer, OptimizerGroup):
            with contextlib.suppress(Exception):  # a step that needs a whole batch
                _fit_batch(probe, _first_rows(placed, FIT_SAMPLES, model.batch_size(placed)))


@contextlib.contextmanager
def _plain_forward(model: Model) -> Iterator[None]:
    """Call the module itself inside, not its compiled twin, whose layers cannot be observed."""
    forward = model.strategy.forward
    model.strategy.forward = model.module
    try:
        yield
    finally:
        model.strategy.forward = forward


def _read_windows(probe: Probe, train_data: EpochIterator, seconds: float) -> Window:
    """Return the first window of the data; measure the time for a window."""
    first, times, start = None, [], time.perf_counter()
    deadline = start + seconds
    for window in train_data:
        times.append(time.perf_counter() - start)
        first = window if first is None else first
        if time.perf_counter() > deadline or len(times) > 10:
            break
        start = time.perf_counter()
    assert first is not None
    # The first window includes the start of workers.
    probe.data_seconds = statistics.median(times[1:] or times)
    return first


# Eval mode


def _run_eval(probe: Probe) -> None:
    """Call the module in eval mode: twice with the batch, and with each half of it."""
    model, batch = probe.model, probe.batch
    if batch is None or model.overrides("train_step"):
        return
    recorder = Recorder(model.module, probe.batch_size)
    with (
        preserve_rng_state(),
        torch.no_grad(),
        train_mode.preserve_module(model.module),
        train_mode.in_eval_mode(model.module),
    ):
        try:
            with recorder.record() as recording:
                first = _call(model, batch.x)
            probe.eval_outputs, probe.eval_recording = (first, _call(model, batch.x)), recording
        except Exception:  # the training step fails too, or fails alone and is reported then
            return
        count = model.batch_size((batch.x, batch.y))
        if count < 2 or not _has_rows(batch.x, count):
            return
        for half in (slice(0, count // 2), slice(count // 2, count)):
            probe.halves.append((half, _call_or_error(model, _rows(batch.x, half))))


def _call(model: Model, x: Any) -> Any:
    with model.strategy.autocast:
        return map_leaves(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, model(x))


def _call_or_error(model: Model, x: Any) -> Any:
    try:
        return _call(model, x)
    except Exception as error:  # a module with a fixed batch size may raise anything
        return error


def _has_rows(tree: Any, count: int) -> bool:
    """Return whether each leaf of ``tree`` is a tensor with one row per sample."""
    parts = list(leaves(tree))
    return bool(parts) and all(isinstance(leaf, Tensor) and leaf.shape[:1] == (count,) for leaf in parts)


def _rows(tree: Any, rows: slice) -> Any:
    return map_leaves(lambda leaf: leaf[rows], tree)


def _first_rows(batch: Any, limit: int, count: int) -> Any:
    """Return the first rows of ``batch``; the batch itself if it cannot be divided."""
    return _rows(batch, slice(0, limit)) if count > limit and _has_rows(batch, count) else batch


# Updates with the optimizer of the user


class GradientRecorder(Callback):
    """Records the norms of the gradients of the first update."""

    def __init__(self) -> None:
        self.gradients: dict[str, float] = {}
        self.has_seen = False

    def on_before_optimizer_step(self) -> None:
        """Add the gradients of one of the optimizer steps of an update."""
        self.has_seen = True
        for name, parameter in named_parameters(self.model).items():
            if parameter.grad is not None:
                norm = _norm(parameter.grad)
                self.gradients[name] = max(norm, self.gradients.get(name, 0.0)) if norm == norm else norm


def named_parameters(model: Model) -> dict[str, nn.Parameter]:
    """Return the parameters of the module and of the loss."""
    named = dict(model.module.named_parameters())
    return named | {f"loss.{name}": value for name, value in model.loss.modules.named_own_parameters()}


def _norm(tensor: Tensor) -> float:
    value = tensor.detach().coalesce().values() if tensor.is_sparse else tensor.detach()
    return float(torch.linalg.vector_norm(value.float()))


def _run_updates(probe: Probe, window: Window) -> None:
    """Update the weights some times with the optimizer of the user, on one window; restore them."""
    model = probe.model
    recorder, gradients = Recorder(model.module, probe.batch_size), GradientRecorder()
    with trial(model, purpose="check()"), separate_metrics(model):
        weights = {name: value.detach().clone() for name, value in named_parameters(model).items()}
        with update_session(model, CallbackList([gradients], model, {})):
            with recorder.record() as recording:
                losses = [_update(model, window) for _ in range(_updates_of_all(model))]
            probe.recording, probe.loss = recording, losses[0]
            if gradients.has_seen:
                probe.rows = _compare_weights(model, weights, gradients.gradients)
            probe.heads = list(_find_heads(probe))
            losses += [_update(model, window) for _ in range(MORE_UPDATES)]
            for name, row in probe.rows.items():
                row.largest = gradients.gradients.get(name, 0.0)
            model.callbacks = CallbackList([], model, {})
            probe.curve = [loss for loss in losses if loss is not None]
            _repeat_updates(probe, window)
            if probe.heads and probe.batch is not None:
                with torch.no_grad():
                    probe.later_outputs = _call(model, probe.batch.x)


def _updates_of_all(model: Model) -> int:
    """Return the number of updates in which each of several optimizers steps."""
    optimizer = model.optimizer
    return max(optimizer.update_every.values()) if isinstance(optimizer, OptimizerGroup) else 1


def _compare_weights(model: Model, weights: dict[str, Tensor], gradients: dict[str, float]) -> dict[str, Row]:
    """Return the parameters that may be trained, with their gradients and what has changed since they were ``weights``."""
    rows = {}
    for name, parameter in named_parameters(model).items():
        before = weights.get(name)
        if before is not None and parameter.requires_grad and parameter.shape == before.shape:
            change = _norm(parameter.detach() - before)
            rows[name] = Row(gradients.get(name), 0.0, _norm(before), change, parameter.numel())
    return rows


def _update(model: Model, window: Window) -> float | None:
    """Update once, and return the loss of the batch before it; None if there are several."""
    model.metrics.reset()
    model.metrics.window = window
    model.update(window)
    model.state.step += 1
    return to_floats(model.metrics.compute()).get("loss")


def _repeat_updates(probe: Probe, window: Window) -> None:
    times: list[float] = []
    deadline = time.perf_counter() + UPDATE_SECONDS
    for _ in range(UPDATES):
        start = time.perf_counter()
        loss = _update(probe.model, window)
        times.append(time.perf_counter() - start)
        if loss is not None:
            probe.curve.append(loss)
        if start + times[-1] > deadline or (loss is not None and not math.isfinite(loss)):
            break
    probe.step_seconds = statistics.median(times)


def _find_heads(probe: Probe) -> Iterator[Head]:
    """Yield the outputs of the first update with their losses and targets, if ``train_step`` is that of ``Model``."""
    model, batch = probe.model, probe.batch
    outputs = None if probe.recording is None else probe.recording.outputs
    if batch is None or outputs is None or not probe.is_standard or find_loss_parts(outputs) is not None:
        return
    for name, loss in losses_by_name(model.loss).items():
        y_pred, y = model.loss.select(outputs, batch.y, name or None)
        if loss is not None:
            y_pred, y = loss.compared_prediction(y_pred, None), loss.convert_targets(y_pred, y)
        if not isinstance(y_pred, Tensor) or not y_pred.is_floating_point() or not y_pred.ndim:
            continue
        labels = probe.train.labels
        known = labels.get(name, labels.get(name.removeprefix("output_")))
        yield Head(name, loss, y_pred, y if isinstance(y, Tensor) else None, known)


def losses_by_name(loss: Criterion) -> dict[str, SingleLoss | None]:
    """Return the loss of each output; None for one that the module computes."""
    if isinstance(loss, MultiOutputLoss):
        return dict(loss.losses)
    if isinstance(loss, SingleLoss):
        return {"": loss}
    return {"": None} if isinstance(loss, ModuleLoss) else {}


# The trial to fit one batch


def _fit_batch(probe: Probe, batch: Any) -> None:
    """Fit ``batch`` with Adam at some learning rates until one of them fits it; restore everything."""
    model = probe.model
    assert model.optimizer is not None
    parameters = [parameter for parameter in parameters_of(model.optimizer) if parameter.requires_grad]
    for rate in FIT_RATES if parameters else ():
        with trial(model, purpose="check()"), separate_metrics(model), train_mode.in_train_mode(model.module):
            optimizer = torch.optim.Adam(parameters, lr=rate)
            curve = _minimize(functools.partial(_loss, model, batch), optimizer)
        if not probe.fit_curve or final_loss(curve) < final_loss(probe.fit_curve):
            probe.fit_curve = curve
        is_slow = len(curve) < FIT_STEPS and math.isfinite(curve[-1])
        if is_slow or final_loss(probe.fit_curve) < FITTED * probe.fit_curve[0]:
            return


def _minimize(compute_loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> list[float]:
    """Return the losses of steps of ``optimizer``."""
    curve: list[float] = []
    deadline = time.perf_counter() + FIT_SECONDS
    while len(curve) < FIT_STEPS and time.perf_counter() < deadline:
        optimizer.zero_grad()
        loss = compute_loss()
        torch.autograd.backward(loss)
        optimizer.step()
        curve.append(float(loss.detach()))
        if not math.isfinite(curve[-1]) or curve[-1] < FITTED / 10 * curve[0]:
            break
    return curve


def _loss(model: Model, batch: Any) -> Tensor:
    loss = loss_of(model.strategy.run(model.train_step, batch))
    result: Tensor = divide(*loss) if isinstance(loss, tuple) else loss
    return result


def final_loss(curve: list[float]) -> float:
    """Return the mean of the last losses of ``curve``, infinite if it is not finite."""
    last = curve[-3:]
    mean = sum(last) / len(last)
    return mean if math.isfinite(mean) else math.inf
