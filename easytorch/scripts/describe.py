"""The description of a run, made from a model and the arguments of fit."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from easytorch._utils import api_errors
from easytorch._utils.internal import is_internal
from easytorch._utils.pytree import describe as describe_tree
from easytorch._utils.pytree import leaves
from easytorch._utils.rng import preserve_generators, preserve_rng_state
from easytorch._utils.train_mode import in_eval_mode, preserve_module
from easytorch.callbacks.backup import BackupAndRestore
from easytorch.callbacks.base import as_callback_list, check_callback
from easytorch.callbacks.every import Every
from easytorch.callbacks.progress import progress_callbacks
from easytorch.data.batch import count_batches
from easytorch.data.data_sets import by_name
from easytorch.data.loader import first_batch
from easytorch.data.sample_weights import ClassWeight
from easytorch.data.splits import targets_of
from easytorch.diagnostics.torch_errors import translate_errors
from easytorch.distributed.process_group import SingleProcess
from easytorch.optimizer_group import OptimizerGroup, members_of
from easytorch.optimizers import needs_closure
from easytorch.scripts import describe_loss, describe_metrics, describe_optimizer
from easytorch.scripts.description import DataInfo, FitInfo, ModuleInfo, RunDescription, ValidationInfo
from easytorch.scripts.expressions import literal
from easytorch.training.evaluation import known_targets
from easytorch.training.fit_data import FitData
from easytorch.training.fit_record import DataForm, FitRecord
from easytorch.training.trial import restored_data
from easytorch.training.validation import Validation

if TYPE_CHECKING:
    from easytorch.model import Model

# Methods of the loop, which a subclass may override.
LOOP_METHODS = ("fit", "train_epoch", "update", "train_step", "test_epoch", "test_step", "unpack", "batch_size")
BY_ARGUMENTS = "Pass the arguments instead: model.to_script(x, y, epochs=...)"


class Plan(NamedTuple):
    """A fit that may happen: its record, and its data.

    Attributes:
        record: The arguments.
        train: The training batches.
        validation: The validation batches, ``DataSets`` of these, or None.
        example: The first training batch; None if it cannot be read without a trace.
    """

    record: FitRecord
    train: Any
    validation: Any
    example: Any


def plan_fit(model: Model, x: Any, y: Any, sizes: tuple[int, ...], options: Mapping[str, Any]) -> Plan:
    """Return the fit that ``model.fit(x, y, *sizes, **options)`` would be, and check its arguments as ``fit`` does.

    Raises:
        TypeError: If ``fit`` has no such argument.
        ValueError, TypeError: If an argument is invalid, as in ``fit``.
    """
    arguments = _bind_arguments(model, options)
    y, batch_size, epochs = api_errors.read_sizes(y, sizes, arguments["batch_size"], arguments["epochs"])
    names = (
        "shuffle", "steps_per_epoch", "class_weight", "sample_weight", "validation_data", "validation_split", "validation_steps",
    )  # fmt: skip
    data = FitData.of(
        model, x, y, group=SingleProcess(), epochs=epochs, batch_size=batch_size,
        **{name: arguments[name] for name in names},
    )  # fmt: skip
    data.train.close()
    callbacks = [
        *map(check_callback, as_callback_list(arguments["callbacks"])),
        *BackupAndRestore.at(arguments["resume"]),
    ]
    progress_callbacks(arguments["verbose"])
    model.state.plan(epochs, arguments["initial_epoch"])
    Validation.of(data.validation, arguments["validation_freq"], arguments["validation_steps"])
    record = data.record(model, arguments["initial_epoch"], arguments["validation_freq"], callbacks)
    return Plan(record, data.train.loader, data.validation, _read_first(data.train.loader))


def _read_first(loader: Any) -> Any:
    """Return the first batch; None if it cannot be read without a trace."""
    with restored_data(loader) as can_read:
        return first_batch(loader) if can_read else None


def _bind_arguments(model: Model, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of ``fit``, with their defaults."""
    # A subclass may pass arguments on: def fit(self, *args, **options).
    methods = [vars(kind)["fit"] for kind in reversed(type(model).__mro__) if "fit" in vars(kind)]
    defaults = dict(itertools.chain.from_iterable(api_errors.argument_defaults(method).items() for method in methods))
    unknown = next((name for name in options if name not in defaults), None)
    if unknown is not None:
        raise api_errors.unexpected_argument_error("Model.fit", unknown, options, defaults)
    return {**defaults, **options}


def last_plan(model: Model) -> Plan | None:
    """Return the last fit of ``model``; None if there was none."""
    last = model.last_fit
    if not last.get("record"):
        return None
    # The example of the fit has class weights already.
    example = _read_first(last["training"])
    return Plan(last["record"], last["training"], last["validation"], last["example"] if example is None else example)


def describe_run(model: Model, plan: Plan | None) -> RunDescription:
    """Return the description of ``plan``, a fit of ``model``; without one of what ``compile`` determines alone."""
    model.require_compiled("explain")
    batch = None if plan is None else read_example(model, plan.example)
    targets = None if plan is None else _known_targets(model, plan.train)
    validation_targets = [] if plan is None else [
        _known_targets(model, loader) for loader in by_name(plan.validation).values()
    ]  # fmt: skip
    run = RunDescription(
        module=_describe_module(model.module),
        device=str(model.device),
        precision=model.strategy.precision,
        strategy=type(model.strategy).__name__,
        jit_compile=model.strategy.jit_compile,
        channels_last=model.strategy.channels_last,
        loss=describe_loss.describe_loss(model.loss, batch, [targets, *validation_targets]),
        optimizers={},
        schedules=[],
        clip_norm=model.clip_grad_norm,
        clip_value=model.clip_grad_value,
        accumulation=model.gradient_accumulation_steps,
        metrics=[],
        metric_names=list(model.metrics.evaluation_names),
        directions={},
        overridden=tuple(name for name in LOOP_METHODS if model.overrides(name)),
    )
    # The cause of further refusals comes first: without a standard step, nothing is known of the loss.
    for name in run.overridden:
        run.refuse(
            f"{type(model).__name__}.{name}, which overrides a method of the loop", "Write the loop around it by hand"
        )
    if not run.overridden:
        describe_loss.refuse_losses(run, model.loss, batch)
    describe_metrics.add_metrics(run, model, batch)
    if plan is not None:
        _add_fit(run, model, plan, batch, targets)
    if model.optimizer is not None:
        rates = None if plan is None else plan.record.rates
        describe_optimizer.add_optimizers(run, model, model.optimizer, rates)
    describe_optimizer.add_schedules(run, model)
    _refuse_what_needs_easytorch(run, model)
    return run


def _describe_module(module: nn.Module) -> ModuleInfo:
    parameters = [p for p in module.parameters() if not isinstance(p, nn.parameter.UninitializedParameter)]
    dtypes = {parameter.dtype for parameter in parameters if parameter.is_floating_point()}
    frozen = [name for name, part in module.named_modules() if name and module.training and not part.training]
    outer = [name for name in frozen if not any(name.startswith(f"{other}.") for other in frozen)]
    origin = type(module).__module__
    return ModuleInfo(
        name=type(module).__name__,
        origin="" if origin == "__main__" or origin.partition(".")[0] == "torch" else origin,
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        frozen=sum(parameter.numel() for parameter in parameters if not parameter.requires_grad),
        in_eval_mode=tuple(outer),
        dtype=str(dtypes.pop()).removeprefix("torch.") if len(dtypes) == 1 else "",
    )


# The first batch


class ExampleBatch(NamedTuple):
    """The first batch and what the module returns for it.

    Attributes:
        raw: The batch as the loader returns it.
        x, y, sample_weight: Its parts on the device.
        outputs: The outputs in eval mode, without gradients.
    """

    raw: Any
    x: Any
    y: Any
    sample_weight: Any
    outputs: Any


def read_example(model: Model, raw: Any) -> ExampleBatch | None:
    """Return the parts of the batch ``raw`` and the outputs for it, and leave no trace; None if that is not possible."""
    if raw is None or any(map(model.overrides, ("unpack", "train_step"))) or _is_lazy(model.module):
        return None
    module, run = model.module, functools.partial(_run_module, model, raw)
    with (
        translate_errors(module, without_gradients=True), preserve_rng_state(), preserve_generators([module]),
        preserve_module(module), in_eval_mode(module), torch.no_grad(),
    ):  # fmt: skip
        example: ExampleBatch = model.strategy.run(run, raw)
        return example


def check_example(model: Model, plan: Plan) -> None:
    """Raise the error that ``fit`` would raise for the outputs and targets of the first batch of ``plan``."""
    batch = read_example(model, plan.example)
    if batch is not None:
        with translate_errors(model.module, without_gradients=True):
            describe_loss.check_loss(model.loss, batch, _known_targets(model, plan.train))


def _is_lazy(module: nn.Module) -> bool:
    """Return whether a first batch would give parameters of ``module`` their shape."""
    return any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in module.parameters())


def _run_module(model: Model, raw: Any, batch: Any) -> ExampleBatch:
    x, y, sample_weight = model.unpack(batch)
    return ExampleBatch(raw, x, y, sample_weight, model.signature.call(model.module, x))


def _known_targets(model: Model, loader: Any) -> Any:
    with preserve_rng_state():
        return known_targets(model, loader)


# The arguments of fit


def _add_fit(run: RunDescription, model: Model, plan: Plan, batch: ExampleBatch | None, targets: Any) -> None:
    """Add to ``run`` what ``fit`` determines."""
    record = plan.record
    run.callbacks = record.callbacks
    batches = count_batches(plan.train)
    per_rank = run.accumulation * model.strategy.group.world_size
    updates = None if batches is None else -(-batches // per_rank)
    weights = _class_weights(run, model, plan, batch, targets)
    run.fit = FitInfo(
        epochs=record.epochs,
        first_epoch=record.first_epoch,
        updates=record.steps_per_epoch or updates,
        steps_per_epoch=record.steps_per_epoch,
        continues=record.continues,
        class_weight=weights.expression,
        class_index=weights.end,
        labels_ndim=weights.ndim,
        is_balanced=isinstance(record.class_weight, str),
        class_names=record.class_names,
    )
    run.train = _describe_data(run, model, record.x, plan.train, batch, record.shuffle)
    if not run.overridden:
        refuse_data(run, record.x, run.train, batch)
    if plan.validation is not None:
        _add_validation(run, model, plan, batch)
    run.directions = {
        name: _direction(model, name) for callback in record.callbacks if (name := callback.options.get("monitor"))
    }
    if record.continues:
        run.refuse(
            "the state of the optimizer after earlier updates, with which this fit() started",
            f"Call compile() before fit(), so that it starts without. {BY_ARGUMENTS} for a run from the start",
        )


def _direction(model: Model, name: str) -> str:
    try:
        return model.metrics.mode(name)
    except ValueError:
        return ""


class ClassWeights(NamedTuple):
    """Weights of classes: an expression of them, the end of one that turns targets into classes, and the latter's dimensions."""

    expression: str = ""
    end: str = ""
    ndim: int = 1


def _class_weights(
    run: RunDescription, model: Model, plan: Plan, batch: ExampleBatch | None, targets: Any
) -> ClassWeights:
    """Return the weights of the classes."""
    if plan.record.class_weight is None:
        return ClassWeights()
    weights = ClassWeight(plan.record.class_weight, plan.train, model.unpack, model.loss.ignore_index)
    expression = literal(weights.table)
    if not isinstance(targets, Tensor) or batch is None or not isinstance(batch.y, Tensor) or weights.has_columns:
        run.refuse("class_weight with targets that are no class numbers, or are unknown before training", "Pass arrays")
        return ClassWeights(expression)
    if int(targets.min()) < 0 or int(targets.max()) >= len(weights.table):
        run.refuse("class_weight for labels that have no weight", "Pass a weight for each class")
    is_column = targets.ndim == 2 and targets.shape[1] == 1
    ndim = 1 if is_column else targets.ndim
    if ndim > 1 and batch.sample_weight is not None:
        run.refuse("class_weight together with sample_weight for several labels of a sample", "Pass one of them")
    end = ".squeeze(1)" * is_column + ".long()" * (batch.y.dtype != torch.int64)
    return ClassWeights(expression, end, ndim)


def _describe_data(
    run: RunDescription, model: Model, form: DataForm, loader: Any, batch: ExampleBatch | None, shuffle: bool | None
) -> DataInfo:
    dataset = getattr(loader, "dataset", None)
    is_plain = isinstance(loader, DataLoader)
    module_dtype = getattr(torch, run.module.dtype) if run.module.dtype else None
    parts = [None if batch is None else _find_tensor(batch.raw, i) for i in range(3)]
    casts = tuple(_cast(tensor, module_dtype) for tensor in parts)
    dtypes = tuple(
        str(module_dtype if part.is_floating_point() and module_dtype else part.dtype).removeprefix("torch.")
        for part in parts[:2]
        if isinstance(part, Tensor)
    )
    weight = None if batch is None else batch.sample_weight
    return DataInfo(
        form=form,
        samples=None if dataset is None or isinstance(dataset, IterableDataset) else count_batches(dataset),
        batches=count_batches(loader),
        batch_size=loader.batch_size if is_plain and form.kind not in ("loader", "several data sets") else None,
        shuffle=is_plain and isinstance(loader.sampler, RandomSampler),
        dtypes=dtypes,
        casts=("", "", "") if form.kind == "arrays" else casts,
        has_weights=weight is not None or form.sample_weight is not None,
        weight_dtype=run.module.dtype or "float32",
        example="" if batch is None else describe_tree(batch.raw),
        several_inputs="" if batch is None else _kind_of_inputs(batch.x),
        unpacking="" if batch is None else _unpacking(model, batch.x),
        **_describe_sampling(loader),
    )


def _kind_of_inputs(x: Any) -> str:
    return "dict" if isinstance(x, Mapping) else "tuple" if isinstance(x, (tuple, list)) else ""


def _unpacking(model: Model, x: Any) -> str:
    """Return what turns the inputs ``x`` into the arguments of the module, as ``model.signature`` does."""

    def describe_call(*args: Any, **kwargs: Any) -> str:
        return "**" if kwargs else "" if len(args) == 1 and args[0] is x else "*"

    unpacking: str = model.signature.call(describe_call, x)
    return unpacking


def _describe_sampling(loader: Any) -> dict[str, Any]:
    """Return the sampler of a ``DataLoader``, and which samples form no batch, as fields of ``DataInfo``."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return {}
    sampler = loader.sampler if loader.batch_size is not None else loader.batch_sampler or loader.sampler
    drawn = count_batches(sampler) if loader.batch_size is not None else None
    is_custom = type(sampler) not in (RandomSampler, SequentialSampler) and not is_internal(type(sampler))
    is_other = drawn is not None and drawn != count_batches(loader.dataset)
    return {
        "sampler": type(sampler).__name__ if is_custom else "",
        "draws": drawn if is_other else None,
        "dropped": drawn % loader.batch_size if drawn and loader.batch_size and loader.drop_last else 0,
    }


def _find_tensor(batch: Any, index: int) -> Any:
    part = batch[index] if isinstance(batch, (tuple, list)) and len(batch) > index else None
    return part if isinstance(part, Tensor) else None


def _cast(tensor: Any, dtype: torch.dtype | None) -> str:
    """Return what gives the floats of a batch the dtype of the module."""
    if tensor is None or dtype is None or not tensor.is_floating_point() or tensor.dtype == dtype:
        return ""
    return {torch.float32: ".float()", torch.float64: ".double()"}.get(dtype, f".to({dtype})")


def _add_validation(run: RunDescription, model: Model, plan: Plan, batch: ExampleBatch | None) -> None:
    record, sets = plan.record, by_name(plan.validation)
    split = record.validation_split
    dataset = getattr(plan.train, "dataset", None)
    is_split = bool(split) and isinstance(dataset, Subset)
    targets = targets_of(dataset.dataset) if is_split and isinstance(dataset, Subset) else None
    run.validation = ValidationInfo(
        names=tuple(sets),
        frequency=record.validation_freq,
        steps=record.validation_steps,
        split=split,
        # fit() splits only datasets with a length.
        split_size=len(dataset.dataset) if is_split and isinstance(dataset, Subset) else 0,  # type: ignore[arg-type]
        is_stratified=isinstance(targets, Tensor) and _has_classes(targets),
    )
    if len(sets) > 1 or "" not in sets:
        run.refuse("several validation data sets", "Pass one: validation_data=(x, y)")
    if split and record.x.kind != "arrays":
        run.refuse("validation_split of data that is not arrays", "Pass validation_data")
    frequency = record.validation_freq
    if isinstance(frequency, Every) and frequency.epochs is None:
        run.refuse(f"validation between two updates, validation_freq={frequency!r}", "Pass Every(epochs=1)")
    loader = next(iter(sets.values()))
    form = record.x if split else record.validation or record.x
    first = _read_first(loader)
    example = None if first is None or batch is None else _replace_parts(batch, first)
    run.validation_data = _describe_data(run, model, form, loader, example, False)
    if not run.overridden:
        refuse_data(run, form, run.validation_data, example)


def _replace_parts(batch: ExampleBatch, raw: Any) -> ExampleBatch:
    """Return ``batch`` with the targets and weights of another batch ``raw``."""
    parts = [*raw, None, None] if isinstance(raw, (tuple, list)) else [raw, None, None]
    return batch._replace(raw=raw, y=parts[1], sample_weight=parts[2])


def _has_classes(targets: Tensor) -> bool:
    """Return whether a split is stratified by ``targets``; see ``splits.split_indices``."""
    y = targets.squeeze(1) if targets.ndim == 2 and targets.shape[1] == 1 else targets
    return y.ndim == 1 and (not y.is_floating_point() or bool(((y == 0) | (y == 1)).all()))


# What no script does

# Kinds of data of which a script gets the batches or the samples.
KNOWN_KINDS = ("arrays", "loader", "dataset", "dataset of another library", "stream", "batches", "function")


def refuse_data(run: RunDescription, form: DataForm, data: DataInfo, batch: ExampleBatch | None) -> None:
    """Add to ``run`` what no script can do with a data set."""
    is_arrays = form.kind == "arrays"
    arrays = [part for part in (form.x, form.y, form.sample_weight) if part is not None]
    run.refuse_where(
        (
            form.kind not in KNOWN_KINDS,
            f"data of this kind: {form.kind}",
            "Pass arrays, a Dataset, a DataLoader or a list of batches",
        ),
        (
            is_arrays and any(part.kind == "several" for part in arrays),
            "several arrays as inputs or targets",
            "Pass a DataLoader that returns them: ((x1, x2), y)",
        ),
        (
            not is_arrays and form.sample_weight is not None,
            f"sample_weight for a {form.kind}",
            "Let it return (x, y, sample_weight)",
        ),
        (
            batch is None,
            f"data whose first batch cannot be read in advance, {form.type_name or form.kind}",
            "Call fit(), and then to_script() without arguments",
        ),
    )
    if batch is not None:
        _refuse_weights(run, batch)
        _refuse_inputs(run, data, batch)


def _refuse_weights(run: RunDescription, batch: ExampleBatch) -> None:
    weight = batch.sample_weight
    is_weighted = weight is not None or bool(run.fit is not None and run.fit.class_weight)
    is_per_sample = not isinstance(weight, Tensor) or not isinstance(batch.y, Tensor) or weight.numel() == len(batch.y)
    run.refuse_where(
        (not is_per_sample, f"sample weights that are {describe_tree(weight)}", "Pass one weight per sample"),
        (
            is_weighted and run.loss.is_custom and run.loss.reduction != "values",
            f"weights for {run.loss.title}, which returns one number",
            "Return one value per sample from it",
        ),
    )


def _refuse_inputs(run: RunDescription, data: DataInfo, batch: ExampleBatch) -> None:
    if not data.several_inputs or not isinstance(batch.raw, (tuple, list)):
        return
    inputs = batch.raw[0]
    members = inputs.values() if isinstance(inputs, Mapping) else inputs
    dtype = getattr(torch, run.module.dtype, None) if run.module.dtype else None
    run.refuse_where(
        (
            any(_cast(leaf, dtype) for leaf in leaves(inputs) if isinstance(leaf, Tensor)),
            "several inputs of another dtype than the module",
            f"Let the loader return {run.module.dtype}",
        ),
        (
            run.device != "cpu" and not all(isinstance(member, Tensor) for member in members),
            "nested inputs on an accelerator",
            "Let the loader return a tuple or a dict of tensors",
        ),
    )


def _refuse_what_needs_easytorch(run: RunDescription, model: Model) -> None:
    if run.strategy != "Strategy" or model.strategy.group.world_size > 1:
        run.refuse(f"the strategy {run.strategy}", "Compile with strategy='one'")
    if model.optimizer is None:
        run.refuse("a run without an optimizer", "Pass one: compile('adam', ...)")
    if isinstance(model.optimizer, OptimizerGroup):
        run.refuse("several optimizers", "Compile with one optimizer")
    if model.strategy.evaluations is not None or (model.optimizer is not None and _needs_closure(model.optimizer)):
        run.refuse(f"{type(model.optimizer).__name__}, which needs a closure", "Compile with another optimizer")


def _needs_closure(optimizer: Any) -> bool:
    return any(map(needs_closure, members_of(optimizer).values()))
