"""Description of a run, from which both scripts and explanations are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from easytorch.training.fit_record import CallbackRecord, DataForm

# What a mean is over: samples; all values of the targets; labels that count, or the sum of their class weights. The last word
# is for the number of labels that count where class weights are summed, too.
SAMPLES, VALUES, LABELS, COUNTED = "samples", "values", "labels", "counted"


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Something that no script does exactly.

    Attributes:
        what: What it is, as the subject of a sentence.
        fix: What the user can do.
    """

    what: str
    fix: str


@dataclasses.dataclass(frozen=True)
class ModuleInfo:
    """The module.

    Attributes:
        name: The name of its class.
        origin: The module of Python that defines the class; empty for a class of torch or of the program.
        trainable, frozen: Numbers of parameters (values) with and without gradient.
        in_eval_mode: Paths of the submodules that stay in eval mode while the module trains.
        dtype: The dtype of its parameters; empty if there are several.
    """

    name: str
    origin: str
    trainable: int
    frozen: int
    in_eval_mode: tuple[str, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class LossInfo:
    """The loss.

    Attributes:
        title: Its text, as ``repr(model.loss)``.
        function: An expression of the function; the name of a custom one.
        per_sample: An expression of the function without reduction, for sample weights; None if there is none.
        is_custom: Whether the user has defined it.
        reduction: ``"mean"``, ``"sum"``, ``"batchmean"``, or ``"values"`` for a function that returns one value per sample.
        divisor: What the mean is over: samples or labels.
        conversions: What is applied to the targets, as ends of an expression: ``.view_as(outputs)``.
        ignore_index: The label that is ignored, if the data may have it; else None.
        class_weight: An expression of the weight of each class in the loss; empty without.
        losses_ndim: Number of dimensions of the loss without reduction.
        terms: The loss of each output, if there are several.
    """

    title: str
    function: str = ""
    per_sample: str | None = None
    is_custom: bool = False
    reduction: str = "mean"
    divisor: str = SAMPLES
    conversions: tuple[str, ...] = ()
    ignore_index: int | None = None
    class_weight: str = ""
    losses_ndim: int = 1
    terms: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class OptimizerInfo:
    """The optimizer.

    Attributes:
        title: The name of its class.
        expression: The call that creates it.
        parameters: An expression of the parameters that it has, for gradient clipping.
        rates: The learning rate of each parameter group at the start.
        count: The number of values that it updates.
        is_custom: Whether its class is not one of torch.
    """

    title: str
    expression: str
    parameters: str
    rates: tuple[float, ...]
    count: int
    is_custom: bool = False


@dataclasses.dataclass(frozen=True)
class ScheduleInfo:
    """A learning rate schedule.

    Attributes:
        title: Its name.
        step_every: ``"update"`` or ``"epoch"``; empty if that is unknown before ``fit``.
        lines: The lines that create it.
        monitor: The name of the value that its step gets; empty without.
        function: The name of the function of the user that it calls; empty without.
    """

    title: str
    step_every: str
    lines: tuple[str, ...] = ()
    monitor: str = ""
    function: str = ""


@dataclasses.dataclass(frozen=True)
class MetricInfo:
    """A metric that is a mean.

    Attributes:
        name: Its name in the logs.
        value: An expression of the sum over a batch, as a number.
        count: What the sum is divided by: samples, values or labels; or ``"pair"`` if the function returns sum and count.
        root: Whether the value is the square root of the mean.
        is_custom: Whether the user has defined the function.
        function: Its name then.
        in_training: Whether it is measured in training, too.
    """

    name: str
    value: str
    count: str
    root: bool = False
    is_custom: bool = False
    function: str = ""
    in_training: bool = True


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """One data set.

    Attributes:
        form: How the user has passed it.
        samples: Number of samples; None if unknown.
        batches: Number of batches; None if unknown.
        batch_size: Samples in a batch; None if the data comes in batches.
        shuffle: Whether the samples are drawn in random order.
        dtypes: The dtype of each array as the loop gets it.
        casts: What is applied to inputs, targets and weights of each batch, as ends of expressions.
        has_weights: Whether batches have sample weights.
        weight_dtype: Their dtype as the loop gets it.
        example: Inputs and targets of a batch in words.
        several_inputs: ``"tuple"`` or ``"dict"`` if the inputs are several arrays; empty for one.
        unpacking: ``"*"`` or ``"**"`` if they are several arguments of the module.
        sampler: The class of a custom sampler; empty without.
        draws: Number of samples that it draws in an epoch, if that is known and not the number of samples.
        dropped: Number of samples at the end of an epoch that form no batch.
    """

    form: DataForm
    samples: int | None
    batches: int | None
    batch_size: int | None
    shuffle: bool
    dtypes: tuple[str, ...]
    casts: tuple[str, ...]
    has_weights: bool
    weight_dtype: str
    example: str
    several_inputs: str
    unpacking: str
    sampler: str = ""
    draws: int | None = None
    dropped: int = 0


@dataclasses.dataclass(frozen=True)
class ValidationInfo:
    """Validation during the run.

    Attributes:
        names: The name of each data set, one empty name for a single one.
        frequency: The number of epochs, or a list of epochs, or an ``Every``.
        steps: Number of batches; None for all.
        split: The share of the training data; 0 if the user passed other data.
        split_size: Samples of the training data before the split.
        is_stratified: Whether each class has its share.
    """

    names: tuple[str, ...]
    frequency: Any
    steps: int | None
    split: float = 0.0
    split_size: int = 0
    is_stratified: bool = False


@dataclasses.dataclass(frozen=True)
class FitInfo:
    """The length of a run.

    Attributes:
        epochs: Number of epochs.
        first_epoch: Number of epochs before.
        updates: Updates per epoch; None if unknown.
        steps_per_epoch: The argument of ``fit``.
        continues: Whether the optimizer has a state of earlier updates at the start.
        class_weight: An expression of the weights of the classes; empty without.
        class_index: What turns targets into classes, as the end of an expression.
        labels_ndim: Number of dimensions of the classes.
        is_balanced: Whether the weights were computed from the data.
        class_names: The names of classes, if the labels are text.
    """

    epochs: int
    first_epoch: int
    updates: int | None
    steps_per_epoch: int | None
    continues: bool = False
    class_weight: str = ""
    class_index: str = ""
    labels_ndim: int = 1
    is_balanced: bool = False
    class_names: tuple[str, ...] = ()


@dataclasses.dataclass
class RunDescription:
    """Everything that ``compile`` and ``fit`` determine, as plain values.

    Attributes:
        refusals: What a script cannot do.
    """

    module: ModuleInfo
    device: str
    precision: str
    strategy: str
    jit_compile: bool
    channels_last: bool
    loss: LossInfo
    optimizers: dict[str, OptimizerInfo]
    schedules: list[ScheduleInfo]
    clip_norm: float | None
    clip_value: float | None
    accumulation: int
    metrics: list[MetricInfo]
    metric_names: list[str]
    directions: Mapping[str, str]
    fit: FitInfo | None = None
    train: DataInfo | None = None
    validation_data: DataInfo | None = None
    validation: ValidationInfo | None = None
    callbacks: tuple[CallbackRecord, ...] = ()
    overridden: tuple[str, ...] = ()
    refusals: list[Refusal] = dataclasses.field(default_factory=list)

    def refuse(self, what: str, fix: str) -> None:
        """Record that no script does ``what`` exactly."""
        self.refusals.append(Refusal(what, fix))

    def refuse_where(self, *rows: tuple[bool, str, str]) -> None:
        """Record each row ``(condition, what, fix)`` whose condition is true."""
        for is_refused, what, fix in rows:
            if is_refused:
                self.refuse(what, fix)

    @property
    def optimizer(self) -> OptimizerInfo | None:
        """The only optimizer; None if there is none, or several."""
        return next(iter(self.optimizers.values())) if len(self.optimizers) == 1 else None

    def callbacks_named(self, name: str) -> list[CallbackRecord]:
        """Return the callbacks of the class ``name`` of this package."""
        return [callback for callback in self.callbacks if callback.is_internal and callback.name == name]
