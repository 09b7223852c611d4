"""Saving, loading and resuming of a model."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from easytorch._utils.warnings import warn
from easytorch.callbacks.base import Callback, CallbackList
from easytorch.callbacks.freeze import Freeze
from easytorch.callbacks.lr_schedulers import Schedule
from easytorch.checkpoint import files, rotation, serialization, state_dicts
from easytorch.checkpoint.storage import Location, storage_of, to_location
from easytorch.data.class_names import read_names
from easytorch.errors import ResumeError
from easytorch.losses.modules import describe_state
from easytorch.optimizer_group import OptimizerGroup, members_of
from easytorch.training import compile_arguments
from easytorch.training.consensus import check_replicas
from easytorch.training.results import History
from easytorch.training.state import TrainState

if TYPE_CHECKING:
    from easytorch.model import Model

# Compile arguments that are part of the optimizer state, which a resumed run restores.
RESTORED_FROM_CHECKPOINT = ("lr", "optimizer_options")
# Kinds of attributes of which all ranks have the same.
SHARED_KINDS = ("stateful", "tensor")
# Settings of an optimizer that change its speed and not its results.
IMPLEMENTATION_SETTINGS = ("foreach", "fused", "capturable", "differentiable")
# Arguments of fit that a resumed run may change, with a warning.
FIT_ARGUMENTS = ("class_weight", "shuffle", "sample_weight")


# Files


def save(model: Model, path: str | os.PathLike[str]) -> Location:
    """Write the state of ``model`` to a file; see ``Model.save``."""
    files.check_suffix(path)
    with _saving(model, "save", path):
        content = {"format": files.FORMAT, "version": files.VERSION, **state_dict(model)}
        return _write_on_main_rank(model, files.write, path, content)


def save_weights(model: Model, path: str | os.PathLike[str]) -> Location:
    """Write the weights of ``model`` to a file; see ``Model.save_weights``."""
    files.check_suffix(path, weights_only=True)
    write = files.write_safetensors if to_location(path).suffix == ".safetensors" else files.write
    with _saving(model, "save_weights", path):
        weights = model.strategy.checkpoints.gather(state_dicts.unwrapped_state_dict(model.module))
        return _write_on_main_rank(model, write, path, weights)


def load(model: Model, path: str | os.PathLike[str]) -> None:
    """Restore the state of ``model`` from a file; see ``Model.load``."""
    with model.strategy.group.call("load"):  # not before the main rank has written the file
        path = to_location(path)
        if storage_of(path).is_folder(path):
            path, content = rotation.read_newest(path, model.device)
        else:
            content = files.read_model(path, model.device)
        previous = dict(vars(model))
        try:
            with files.as_file_error(path):
                _load_content(model, content, path)
        except BaseException:
            vars(model).update(previous)
            raise
        check_replicas(model, f"after loading {os.fspath(path)!r}")


def load_weights(model: Model, path: str | os.PathLike[str], strict: bool = True) -> None:
    """Load weights from a file into ``model``; see ``Model.load_weights``."""
    with model.strategy.group.call("load_weights"):  # not before the main rank has written the file
        path = to_location(path)
        with files.as_file_error(path):
            content = files.read(path, model.device)
            if files.is_model(content):
                content = _read_shards(model, content, path)
            weights = files.extract_weights(content)
        if strict:
            weights = state_dicts.match_state_dict(weights, model.module, path)
        else:
            current = model.strategy.checkpoints.gather(model.module.state_dict())
            weights = state_dicts.merge_state_dict(weights, model.module, current, path)
        model.strategy.checkpoints.load_weights(weights)
        check_replicas(model, f"after loading {os.fspath(path)!r}")


def _saving(model: Model, name: str, path: str | os.PathLike[str]) -> contextlib.AbstractContextManager[None]:
    """Return the context of a call that saves: all ranks take part if tensors are gathered, otherwise rank 0 must."""
    if model.strategy.checkpoints.is_collective:
        return model.strategy.group.call(name)
    model.strategy.group.saved(to_location(path).name)
    return contextlib.nullcontext()


def _write_on_main_rank(
    model: Model, write: Callable[..., Location], path: str | os.PathLike[str], content: dict[str, Any]
) -> Location:
    target = to_location(path)
    if os.fsdecode(path).endswith(("/", os.sep)):
        raise ValueError(
            f"path must name a file, received the folder {os.fsdecode(path)!r}. Use {str(target / 'model.pt')!r}."
        )
    return write(target, content) if model.strategy.group.is_main else target


def _load_content(model: Model, content: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Load ``content``; an error leaves weights and optimizer unchanged, but not the attributes of the model."""
    content = _read_shards(model, content, path)
    weights = state_dicts.match_state_dict(content["module"], model.module, path)
    if model.compile_args is None or model.unrestored_arguments is not None:
        compile_arguments.compile_as_saved(model, content)
    state_dicts.check_optimizer(content, model.optimizer, path)
    _check_content(model, content)
    schedules = list(zip(model.schedules, content["schedules"], strict=False))
    for schedule, state in schedules:
        schedule.check_state(state)
    _load_components(model, content, weights)
    model.attribute_state.load_state_dict({**content.get("attributes", {}), **content.get("rank_attributes", {})})
    for schedule, state in schedules:
        schedule.load_state_dict(state)


def _read_shards(model: Model, content: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return ``content`` with the tensors of its shards, if it has any."""
    if content.get("shards") is None:
        return dict(content)
    from easytorch.checkpoint import dcp

    return dcp.read_shards(content, to_location(path), model.strategy.checkpoints.empty)


# State


def state_dict(model: Model) -> dict[str, Any]:
    """Return everything that ``save`` writes: tensors and plain values, the module's under its own names."""
    gather = model.strategy.checkpoints.gather
    return {**_state(model, gather), "attributes": gather(model.attribute_state.state_dict())}


def pickle_state(model: Model) -> dict[str, Any]:
    """Return the attributes that a pickle or a copy of ``model`` holds: no data, and nothing of a running fit."""
    callbacks = {"callbacks": CallbackList([], model, {}), "batch_advice": []}
    return vars(model) | callbacks | {"train_data": None, "last_fit": {}, "phases": ()}


def training_state(model: Model) -> dict[str, Any]:
    """Return everything that a run needs to continue exactly here; see ``Model.training_state``."""
    assert model.train_data is not None
    prepare = model.strategy.checkpoints.prepare
    attributes = model.attribute_state.state_dict(model.callbacks.callbacks)
    rank_state = {
        "metrics": model.metrics.state_dict(),
        "train_data": model.train_data.state_dict(model.state.epoch_step),
        # The position in the data has the random generators.
        "rank_attributes": {path: entry for path, entry in attributes.items() if entry["kind"] == "data"},
    }
    ranks = model.strategy.group.gather(rank_state)
    return {
        **_state(model, prepare),
        "format": files.FORMAT,
        "version": files.VERSION,
        "callbacks": [[type(callback).__name__, _callback_state(model, callback)] for callback in _stateful(model)],
        "attributes": prepare({path: entry for path, entry in attributes.items() if entry["kind"] in SHARED_KINDS}),
        "groups": _group_names(model),
        "loggers": [
            [type(callback).__name__, _callback_state(model, callback)] for callback in _stateful(model, optional=True)
        ],
        "environment": _environment(model),
        "flags": _flags(model),
        "settings": _settings(model),
        "fit": _fit_settings(model),
        **ranks[0],
        **({} if len(ranks) == 1 else {"ranks": ranks}),
    }


def _callback_state(model: Model, callback: Callback) -> Any:
    state = model.strategy.checkpoints.prepare(callback.state_dict())
    return serialization.to_serializable(state, model.callbacks.place(callback))


def load_training_state(
    model: Model, content: Mapping[str, Any], path: str | os.PathLike[str]
) -> Callable[[], None] | None:
    """Continue exactly where ``training_state`` was taken; see ``Model.load_training_state``.

    Returns:
        A function that restores the state once more, after ``on_epoch_begin``; None between two epochs.
    """
    if "train_data" not in content:
        raise ResumeError(
            f"Cannot resume from {str(path)!r}: save() wrote it, which does not store the position in the data. Use load(), "
            "then fit() without resume."
        )
    with files.as_file_error(path):
        content = _read_shards(model, content, path)
        weights = state_dicts.match_state_dict(content["module"], model.module, path)
        _restore_groups(model, content)
        _check_same_run(model, content, path)
        _warn_of_changes(model, content)
        rank_state = _continue_run(model, content, weights)
    if model.state.epoch_step == 0:
        return None

    def repeat() -> None:
        assert model.train_data is not None
        stops = model.stop_training
        model.train_data.restore_random_state(rank_state["train_data"])
        _restore_state(model, content, weights, rank_state)
        model.stop_training |= stops

    return repeat


def _flags(model: Model) -> dict[str, Any]:
    """Return what callbacks may have frozen: the trainable parameters, and the submodules in eval mode."""
    parameters, submodules = model.module.named_parameters(), model.module.named_modules()
    return {
        "trainable": [_plain_name(name) for name, parameter in parameters if parameter.requires_grad],
        "eval_mode": [_plain_name(name) for name, submodule in submodules if not submodule.training],
    }


def _plain_name(name: str) -> str:
    """Return ``name`` without the prefixes of torch.compile."""
    return ".".join(key for key in name.split(".") if key != "_orig_mod")


def _restore_flags(model: Model, flags: Mapping[str, Any] | None) -> None:
    """Freeze and unfreeze as in the run that is resumed."""
    if flags is None:
        return
    trainable, eval_mode = set(flags["trainable"]), set(flags["eval_mode"])
    for name, parameter in model.module.named_parameters():
        is_trainable = _plain_name(name) in trainable
        if parameter.requires_grad != is_trainable:
            parameter.requires_grad_(is_trainable)
    for name, submodule in model.module.named_modules():
        submodule.training = _plain_name(name) not in eval_mode


def _group_names(model: Model) -> Any:
    """Return the names of the parameters in each group of the optimizer; of several optimizers a dict."""
    optimizer = model.require_optimizer("fit")
    names = {key: _parameter_names(model, member) for key, member in members_of(optimizer).items()}
    return names if isinstance(optimizer, OptimizerGroup) else names[""]


def _parameter_names(model: Model, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    names = {id(parameter): _plain_name(name) for name, parameter in model.module.named_parameters()}
    return [[names.get(id(parameter), "") for parameter in group["params"]] for group in optimizer.param_groups]


def _restore_groups(model: Model, content: Mapping[str, Any]) -> None:
    """Add the parameter groups that a callback has added to the optimizer in the run that is resumed.

    The callback may add them again, if the run was stopped before its hook was complete: then nothing happens.
    """
    optimizer, names, state = model.require_optimizer("fit"), content.get("groups", []), content["optimizer"] or {}
    if not isinstance(optimizer, OptimizerGroup):
        _restore_added(model, optimizer, names, state)
    elif isinstance(names, dict) and set(names) == set(state) == set(optimizer):
        for key, member in optimizer.items():
            _restore_added(model, member, names[key], state[key])


def _restore_added(
    model: Model, optimizer: torch.optim.Optimizer, names: list[list[str]], state: Mapping[str, Any]
) -> None:
    """Add the groups that ``optimizer`` lacks, which ``names`` and ``state`` have."""
    current, saved = _parameter_names(model, optimizer), state.get("param_groups", [])
    if len(names) <= len(current) or names[: len(current)] != current or len(saved) != len(names):
        return
    parameters = {_plain_name(name): parameter for name, parameter in model.module.named_parameters()}
    added: list[set[int]] = []
    for group_names, settings in zip(names[len(current) :], saved[len(current) :], strict=True):
        if not all(name in parameters for name in group_names):
            return
        group = {**settings, "params": [parameters[name] for name in group_names]}
        optimizer.add_param_group(group)
        added.append(set(map(id, group["params"])))
    add = type(optimizer).add_param_group

    def add_unless_restored(group: dict[str, Any]) -> None:
        tensors = group["params"]
        tensors = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
        if set(map(id, tensors)) not in added:
            add(optimizer, {**group, "params": tensors})

    vars(optimizer)["add_param_group"] = add_unless_restored


def _restore_attributes(model: Model, attributes: Mapping[str, Any]) -> None:
    try:
        model.attribute_state.load_state_dict(attributes, model.callbacks.callbacks, strict=True)
    except ValueError as error:
        raise ResumeError(
            f"The run cannot be resumed, because model.{error}. Run the program that was stopped, or start a new run in another "
            "folder."
        ) from error


def _state(model: Model, transform: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the state of all components, with ``transform`` applied to what holds tensors."""
    return {
        **{name: transform(component.state_dict()) for name, component in _components(model).items()},
        "optimizer_kind": None if model.optimizer is None else type(model.optimizer).__name__,
        "schedules": [schedule.state_dict() for schedule in model.schedules],
        "precision": model.strategy.precision,
        "module": transform(state_dicts.unwrapped_state_dict(model.module)),
        "loss": transform(model.loss.modules.read_state()),
        **compile_arguments.encode(model),
        "class_names": read_names(model.class_names),
        "columns": _plain_columns(model.columns),
    }


def _plain_columns(columns: list[Any] | None) -> list[Any] | None:
    """Return the names of columns, None if a file cannot contain them."""
    is_plain = columns is not None and all(isinstance(name, (str, int)) for name in columns)
    return columns if is_plain else None


def _read_columns(content: Mapping[str, Any]) -> list[Any] | None:
    columns = content.get("columns")
    if columns is not None and not isinstance(columns, list):
        raise ValueError(f"the names of columns must be a list, received {type(columns).__name__}")
    return columns


def _components(model: Model) -> dict[str, Any]:
    components = {
        "optimizer": model.optimizer,
        "strategy": model.strategy,
        "state": model.state,
        "history": model.recorded_history,
    }
    return {name: component for name, component in components.items() if component is not None}


def _load_components(model: Model, content: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Load weights and components; the optimizer first, since it may still raise."""
    if model.optimizer is not None and content.get("optimizer"):
        model.strategy.checkpoints.load_optimizer(model.optimizer, content["optimizer"])
    model.strategy.checkpoints.load_weights(weights)
    model.loss.modules.restore_state(content.get("loss", {}))
    model.class_names = read_names(content.get("class_names")) or model.class_names
    model.columns = _read_columns(content) or model.columns
    for name, component in _components(model).items():
        if name != "optimizer":
            component.load_state_dict(content[name])


def _check_content(model: Model, content: Mapping[str, Any]) -> None:
    """Raise an error if a component cannot be loaded."""
    had_optimizer = content.get("optimizer_kind", "") is not None
    if model.optimizer is not None and had_optimizer and "optimizer" not in content:
        raise KeyError("optimizer")
    TrainState().load_state_dict(content["state"])
    History().load_state_dict(content["history"])
    model.strategy.check_state(content["strategy"])
    model.loss.modules.check_state(content.get("loss", {}))
    read_names(content.get("class_names"))
    _read_columns(content)


# Resume


def _check_same_run(model: Model, content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Raise a ``ResumeError`` unless the run had the callbacks, the metrics and the optimizer of this one."""
    callbacks = [type(callback).__name__ for callback in _stateful(model)]
    arguments = (content["compiled"], compile_arguments.encode(model)["compiled"])
    schedulers = [(saved or {}).get("scheduler") for saved in arguments]
    names = [content.get("class_names"), read_names(model.class_names)]
    columns = [_read_columns(content), _plain_columns(model.columns)]
    # Freeze has no state, but without it, the layers of the checkpoint would stay frozen.
    settings = _fit_settings(model)
    frozen = [content.get("fit", settings)["frozen"], settings["frozen"]]
    for name, before, now in (
        # A scheduler object has no name to compare, but a state.
        ("scheduler", *(schedulers if all(schedulers) else [None, None])),
        ("callbacks with state", [name for name, _ in content["callbacks"]], callbacks),
        ("frozen layers", *frozen),
        ("metrics", content["metrics"]["names"], model.metrics.names),
        # Class numbers of a loader have names only if the user sets them.
        ("classes", *(names if all(names) else [None, None])),
        ("columns of inputs", *(columns if all(columns) else [None, None])),
        ("state of the loss", *map(describe_state, (content.get("loss", {}), model.loss.modules.read_state()))),
    ):
        if before != now:
            raise ResumeError(
                f"Cannot resume from {str(path)!r}: the run had the {name} {before}, and this program has {now}. Pass the same "
                "in the same order, or start a new run in another folder."
            )
    state_dicts.check_optimizer(dict(content), model.optimizer, path, ResumeError)
    _check_content(model, content)


def _warn_of_changes(model: Model, content: Mapping[str, Any]) -> None:
    """Warn of differences from the run that are allowed but change its results."""
    for change in _changes(content["environment"], _environment(model)):
        warn(
            f"{change}; the resumed run will differ in the last bits. For equal results, resume in the environment of the "
            "stopped run."
        )
    before, now = _comparable_arguments(content), _comparable_arguments(compile_arguments.encode(model))
    for change in _changes(before, {name: value for name, value in now.items() if name in before}):
        warn(
            f"{change}; continuing with the new value, so results will differ from the original run. To avoid it, pass "
            "the old value to compile()."
        )
    _warn_of_changed_fit(model, content)
    if _is_named_optimizer(content["compiled"]) and _is_named_optimizer(model.compile_args):
        _keep_optimizer_arguments(model, content["compiled"])
        return
    settings = content.get("settings", {})
    for change in _changes(settings, {name: value for name, value in _settings(model).items() if name in settings}):
        warn(
            f"{change} in the optimizer; the resumed run keeps the old value. To use the new one, load() the checkpoint, set "
            "model.optimizer.lr or another value in model.optimizer.param_groups, and call fit() without resume."
        )


def _warn_of_changed_fit(model: Model, content: Mapping[str, Any]) -> None:
    """Warn of arguments of ``fit`` that were changed, and of parameters that were frozen or unfrozen since."""
    before, now = content.get("fit", {}), _fit_settings(model)
    for change in _changes(before, {name: now[name] for name in FIT_ARGUMENTS if name in before}):
        warn(
            f"{change}; continuing with the new value, so results will differ from the original run. To avoid it, pass "
            "the old value to fit()."
        )
    trainable = set(now["trainable"])
    # The same process may resume its own run, in which a callback has frozen or unfrozen parameters.
    starts = [set(before.get("trainable", trainable)), set((content.get("flags") or now)["trainable"])]
    if trainable not in starts:
        names = sorted(trainable ^ starts[0])
        shown = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        warn(
            f"requires_grad changed for {shown}; the resumed run keeps the old value. To use the new one, load() the "
            "checkpoint and call fit() without resume."
        )
    if "trainable" in before:
        # The checkpoints of this process remain those of the first start.
        record = model.callbacks.params["record"]
        model.callbacks.params["record"] = dataclasses.replace(record, trainable=tuple(before["trainable"]))
    state, planned = content["state"], model.state.last - model.state.first
    epochs = state["last"] - state["first"]
    schedule = next((callback for callback in model.callbacks.callbacks if isinstance(callback, Schedule)), None)
    if schedule is not None and planned != epochs and state["epoch"] < state["first"] + planned:
        warn(
            f"epochs changed from {epochs} to {planned}, so {schedule!r} continues on the curve of {planned} epochs: the "
            f"learning rate jumps, and results will differ from a run that started with epochs={planned}. For its results, "
            "start a new run in another folder."
        )


def _fit_settings(model: Model) -> dict[str, Any]:
    """Return what a resumed run compares with its own call of ``fit``, as plain values."""
    record = model.callbacks.params["record"]
    weights = record.class_weight
    if isinstance(weights, dict):
        weights = {name: weights[name] for name in sorted(weights, key=str)}
    return {
        "class_weight": None if weights is None else repr(weights),
        "shuffle": record.shuffle is not False,
        "sample_weight": record.x.sample_weight is not None,
        "frozen": sorted(repr(callback) for callback in model.callbacks.callbacks if isinstance(callback, Freeze)),
        "trainable": [_plain_name(name) for name in record.trainable],
    }


def _comparable_arguments(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``compile`` in ``saved`` that a new run may change, as plain values."""
    others = (*RESTORED_FROM_CHECKPOINT, *saved.get("compiled_objects", {}))
    arguments = {name: value for name, value in (saved["compiled"] or {}).items() if name not in others}
    if not _is_named_optimizer(arguments):
        arguments.pop("optimizer", None)
    return {name: compile_arguments.describe(value) for name, value in arguments.items()}


def _is_named_optimizer(arguments: Mapping[str, Any] | None) -> bool:
    return isinstance((arguments or {}).get("optimizer"), str)


def _keep_optimizer_arguments(model: Model, before: Mapping[str, Any]) -> None:
    """Warn of options of the optimizer that were changed; the optimizer's state has the old values."""
    assert model.compile_args is not None
    restored = {name: before.get(name) for name in RESTORED_FROM_CHECKPOINT}
    old, new = (
        {"lr": arguments.get("lr"), **(arguments.get("optimizer_options") or {})}
        for arguments in (before, model.compile_args)
    )
    for change in _changes(old, {**dict.fromkeys(old), **new}):
        warn(
            f"{change}; the resumed run keeps the old value. To use the new one, load() the checkpoint and call fit() without "
            "resume."
        )
    model.compile_args = model.compile_args | restored


def _continue_run(model: Model, content: Mapping[str, Any], weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """Restore the run in ``content``, train it for as many epochs as were planned, and return the state of this rank."""
    assert model.train_data is not None
    ranks, group = content.get("ranks", [content]), model.strategy.group
    rank_state: Mapping[str, Any] = ranks[group.rank] if len(ranks) == group.world_size else ranks[0]
    model.train_data.load_state_dict(rank_state["train_data"])
    _restore_state(model, content, weights, rank_state)
    return rank_state


def _restore_state(
    model: Model, content: Mapping[str, Any], weights: Mapping[str, Any], rank_state: Mapping[str, Any]
) -> None:
    """Restore everything but the position in the data."""
    group, planned = model.strategy.group, model.state.last - model.state.first
    ranks = content.get("ranks", [content])
    _load_components(model, content, weights)
    _restore_flags(model, content.get("flags"))
    _restore_attributes(model, {**content.get("attributes", {}), **rank_state.get("rank_attributes", {})})
    model.state.last = model.state.first + planned
    if len(ranks) == group.world_size:
        model.metrics.load_state_dict(rank_state["metrics"])
    elif group.is_main:  # one rank continues with what all ranks have measured
        model.metrics.load_state_dict(model.metrics.merged([state["metrics"] for state in ranks]).state_dict())
    model.stop_training = False
    states = [state for _, state in content["callbacks"]]
    for callback, state in [*zip(_stateful(model), states, strict=True), *_match_loggers(model, content)]:
        if callback.all_ranks or group.is_main:
            callback.load_state_dict(state)
    if model.stop_training:  # early stopping had ended the run
        model.state.last = model.state.epoch


def _stateful(model: Model, optional: bool = False) -> list[Callback]:
    """Return the callbacks that have a state to save; the ``optional`` ones, which a resumed run may add or leave out."""
    callbacks = (callback for callback in model.callbacks.callbacks if callback.optional == optional)
    return [callback for callback in callbacks if type(callback).state_dict is not Callback.state_dict]


def _match_loggers(model: Model, content: Mapping[str, Any]) -> Iterator[tuple[Callback, Any]]:
    """Yield each optional callback that the run had too, with its state."""
    remaining = list(content.get("loggers", []))
    for callback in _stateful(model, optional=True):
        i = next((i for i, entry in enumerate(remaining) if entry[0] == type(callback).__name__), None)
        if i is not None:
            yield callback, remaining.pop(i)[1]


def _environment(model: Model) -> dict[str, Any]:
    """Return what determines the last bits of results besides the state."""
    return {
        "torch": torch.__version__.split("+")[0],
        "threads": torch.get_num_threads(),
        "device": model.device.type,
        "precision": model.strategy.precision,
        "jit_compile": model.strategy.jit_compile,
        "world_size": model.strategy.group.world_size,
    }


def _settings(model: Model) -> dict[str, Any]:
    """Return the numbers that the optimizer was created with, such as ``lr``; callbacks and schedules do not change them."""
    members = {} if model.optimizer is None else members_of(model.optimizer)
    return {
        f"{key}.{name}" if key else name: value
        for key, member in members.items()
        for name, value in _numbers(member.defaults).items()
    }


def _numbers(defaults: Mapping[str, Any]) -> dict[str, Any]:
    names = set(defaults) - set(IMPLEMENTATION_SETTINGS)
    numbers = {name: list(value) if isinstance(value := defaults[name], tuple) else value for name in sorted(names)}
    return {
        name: value
        for name, value in numbers.items()
        if all(isinstance(item, (int, float)) for item in (value if isinstance(value, list) else [value]))
    }


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each value that differs."""
    return [
        f"{name} changed from {before.get(name)!r} to {value!r}"
        for name, value in now.items()
        if before.get(name) != value
    ]
