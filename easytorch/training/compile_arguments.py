"""Arguments of ``compile`` in files.

Each argument is saved by itself. An object of a class of ``torch.nn`` or ``torch.optim`` is stored as its name and its
constructor arguments, so that a file never holds code. Of any other object only the type is stored, for messages.
"""

from __future__ import annotations

import functools
import inspect
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from easytorch import optimizers
from easytorch._utils import torch_private
from easytorch._utils.internal import is_internal
from easytorch._utils.paths import printable
from easytorch._utils.registry import get_name, quote_list
from easytorch.callbacks.lr_schedulers import as_saved
from easytorch.losses.names import ACTIVATIONS, FUNCTION_FAMILIES, TORCH_LOSSES
from easytorch.optimizer_group import OptimizerGroup, is_plain
from easytorch.strategies.device import saved_precision

if TYPE_CHECKING:
    from easytorch.callbacks.lr_schedulers import LRScheduler
    from easytorch.model import Model

# The key of an entry that stands for an object of torch.
OBJECT = "torch object"
LOSSES: dict[str, Callable[..., Any]] = {
    **{f"nn.{cls.__name__}": cls for cls in TORCH_LOSSES.values()},
    **{f"nn.functional.{function.__name__}": function for function in FUNCTION_FAMILIES},
}
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    f"optim.{name}": value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
}
REDUCTIONS = ("none", "mean", "sum", "batchmean")
# Arguments without which a method cannot run as it did for the saved model.
FOR_PREDICTION = ("loss",)
FOR_EVALUATION = ("loss", "loss_weights", "metrics", "weighted_metrics", "validation_only")
# Characters of a description in a file that a message shows.
MAX_DESCRIPTION = 100
# Numbers of a tensor that a message shows.
MAX_NUMBERS = 10
# Values in the arguments of one file. A small file can name one value a million times, and each becomes an object.
MAX_VALUES = 10_000
# The first arguments of compile, for messages.
POSITIONAL = ("optimizer", "loss", "metrics")
# Arguments that have no meaning without others.
DEPENDENTS = {
    "loss": ("optimizer", "metrics", "weighted_metrics", "validation_only"),
    "metrics": ("validation_only",),
    "weighted_metrics": ("validation_only",),
    "optimizer": ("lr", "optimizer_options", "scheduler", "update_every"),
}


class UnsavableError(TypeError):
    """A value that no file holds; its text describes it."""


# Save


def arguments_to_save(
    optimizer: Any,
    resolved: torch.optim.Optimizer | None,
    lr: float | None,
    options: Mapping[str, Any],
    scheduler: Any,
    schedules: list[LRScheduler],
    update_every: Mapping[str, int] | None,
    validation_only: Collection[Any],
    **others: Any,
) -> dict[str, Any]:
    """Return the arguments of ``compile`` that ``encode`` saves.

    Args:
        optimizer, lr, options, scheduler, update_every, validation_only, others: The arguments.
        resolved: The optimizer that ``optimizer`` stands for, if any, which has its options itself unless it is a name.
        schedules: The callbacks that ``scheduler`` stands for.
    """
    has_name = is_plain(optimizer)
    arguments = {
        "optimizer": optimizer if has_name else resolved,
        "lr": lr if has_name else None,
        "optimizer_options": dict(options) if has_name else {},
        **others,
    }
    if validation_only:
        arguments["validation_only"] = list(validation_only)
    if scheduler is not None:
        arguments["scheduler"] = as_saved(scheduler, schedules)
    if update_every is not None:
        arguments["update_every"] = dict(update_every)
    return arguments


def encode(model: Model) -> dict[str, Any]:
    """Return the entries of a file that hold the arguments of ``compile``.

    Returns:
        ``"compiled"``: the arguments that can be saved; None if ``compile`` was not called. ``"compiled_objects"``: a description
        of every other argument.
    """
    if model.unrestored_arguments is not None:
        return dict(model.unrestored_arguments)
    if model.compile_args is None:
        return {"compiled": None, "compiled_objects": {}}
    arguments: dict[str, Any] = {}
    objects: dict[str, str] = {}
    for name, value in model.compile_args.items():
        try:
            is_object = isinstance(value, torch.optim.Optimizer)
            arguments[name] = _encode_optimizers(model, value) if is_object else _encode(value)
        except UnsavableError as error:
            objects[name] = str(error)
    if "loss" in objects:
        arguments |= _encode_family(model.compile_args["loss"])
    return {"compiled": arguments, "compiled_objects": objects}


def _encode(value: Any) -> Any:
    """Return a name, a number, a tensor, a stock loss, or a list or dict of these, as a file can hold it."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is Tensor:
        return value.detach()
    if isinstance(value, Mapping) and OBJECT not in value and all(isinstance(key, (str, int)) for key in value):
        return {key: _encode(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        children = [_encode(child) for child in value]
        return children if isinstance(value, list) else tuple(children)
    if isinstance(value, nn.Module):
        return _encode_module(value)
    return _encode_function(value)


def _encode_module(loss: nn.Module) -> dict[str, Any]:
    """Return a loss of ``torch.nn`` by name and constructor arguments, if these make an equal loss."""
    name = f"nn.{type(loss).__name__}"
    cls = LOSSES.get(name)
    if cls is None or cls is not type(loss):
        raise UnsavableError(type(loss).__name__)
    options = {name: getattr(loss, name) for name in inspect.signature(cls).parameters if hasattr(loss, name)}
    entry = {OBJECT: name, "options": {name: _encode(option) for name, option in options.items()}}
    if not _are_equal(vars(cls(**options)), vars(loss)):
        raise UnsavableError(f"{type(loss).__name__} with other attributes")
    return entry


def _encode_function(function: Any) -> dict[str, Any]:
    """Return a loss of ``torch.nn.functional`` by name, with the keywords that ``functools.partial`` fixes."""
    base, options = function, {}
    if isinstance(function, functools.partial) and not function.args:
        base, options = function.func, function.keywords
    # Compare by identity, because a callable object may not be hashable.
    name = next((name for name, value in LOSSES.items() if value is base and not isinstance(value, type)), None)
    if name is None:
        raise UnsavableError(get_name(function))
    return {OBJECT: name, "options": {key: _encode(option) for key, option in options.items()}}


def _encode_family(loss: Any) -> dict[str, Any]:
    """Return the stock loss whose outputs mean the same as those of a custom subclass, for predictions; empty if unknown."""
    family = next((cls for cls in type(loss).__mro__ if cls in ACTIVATIONS), None)
    return {} if family is None else {"loss": {OBJECT: f"nn.{family.__name__}", "options": {}}}


def _encode_optimizers(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    if isinstance(optimizer, OptimizerGroup):
        return {name: _encode_optimizer(model, member) for name, member in optimizer.items()}
    return _encode_optimizer(model, optimizer)


def _encode_optimizer(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer of ``torch.optim`` by name, options, and the names of the parameters in each group.

    The values of the options of each group are part of the optimizer's state.
    """
    cls = optimizers.stock_class(optimizer)
    names = {id(parameter): name for name, parameter in model.module.named_parameters()}
    groups = [[names.get(id(parameter)) for parameter in group["params"]] for group in optimizer.param_groups]
    if cls is None or not all(map(is_internal, torch_private.step_hooks(optimizer))):
        raise UnsavableError(type(optimizer).__name__)
    if any(name is None for group in groups for name in group):
        raise UnsavableError(f"{cls.__name__} of parameters outside of the module")
    options = {name: optimizer.defaults[name] for name in optimizers.option_defaults(cls) if name in optimizer.defaults}
    entry = {OBJECT: f"optim.{cls.__name__}", "options": {name: _encode(value) for name, value in options.items()}}
    return {**entry, "groups": groups}


def _are_equal(first: Any, second: Any) -> bool:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        names = set(first) - {"training"}  # a loss of torch does not depend on its mode
        return names == set(second) - {"training"} and all(_are_equal(first[name], second[name]) for name in names)
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first is second or (first.shape == second.shape and bool((first == second).all()))
    return type(first) is type(second) and bool(first == second)


# Load


def compile_as_saved(model: Model, content: Mapping[str, Any]) -> None:
    """Compile ``model`` with the arguments that ``content`` holds; remember those that it lacks.

    Raises:
        ValueError, TypeError: If an entry is invalid.
    """
    saved: Any = content.get("compiled")
    objects: Any = content.get("compiled_objects") or {}
    if not saved and not objects:
        return
    _check_entries(saved, objects)
    unknown = _unusable_arguments(saved, objects)
    decoded = {name: _decode_argument(name, value, model) for name, value in saved.items()}
    arguments = {name: value for name, value in decoded.items() if name not in unknown}
    options = arguments.pop("optimizer_options", {})
    arguments |= {**options, **saved_precision(model.device, content.get("precision"))}
    is_compiled = "loss" not in unknown and _takes(model.compile, arguments)
    if is_compiled:
        model.compile(**arguments)
    elif model.compile_args is not None and _takes(model.compile, {}):
        model.compile()  # forget the arguments of the file that was loaded before
    if objects or not is_compiled:
        model.unrestored_arguments = {
            "compiled": saved, "compiled_objects": objects, "precision": content.get("precision")
        }  # fmt: skip


def _unusable_arguments(saved: Mapping[str, Any], objects: Mapping[str, str]) -> set[str]:
    """Return the arguments that are unknown, or have no meaning without one that is."""
    unknown = set(objects) - ({"loss"} if "loss" in saved else set())
    for argument in ("loss", "optimizer", "metrics", "weighted_metrics"):
        if argument in objects or argument in unknown:
            unknown |= set(DEPENDENTS[argument])
    return unknown


def _decode_argument(name: str, entry: Any, model: Model) -> Any:
    """Return the argument ``name`` that ``entry`` stands for.

    Raises:
        ValueError, TypeError: If it names no class of torch, or has invalid options.
    """
    if name == "optimizer" and isinstance(entry, dict):
        return _decode_optimizers(entry, model)
    return _decode(entry)


def _decode_optimizers(entry: Mapping[str, Any], model: Model) -> Any:
    """Return one optimizer, or a dict of several: of objects, names, and pairs of a name and options."""
    if OBJECT in entry:
        return _decode_optimizer(entry, model)
    return {
        name: _decode_optimizer(value, model) if isinstance(value, dict) else _decode(value)
        for name, value in entry.items()
    }


def _decode(entry: Any) -> Any:
    if isinstance(entry, (list, tuple)):
        return type(entry)(map(_decode, entry))
    if not isinstance(entry, dict):
        return entry
    if OBJECT not in entry:
        return {key: _decode(child) for key, child in entry.items()}
    loss = _find(LOSSES, entry, "loss")
    options = _decode_options(entry, loss)
    if isinstance(loss, type):
        return loss(**options)
    return functools.partial(loss, **options) if options else loss


def _decode_optimizer(entry: Mapping[str, Any], model: Model) -> torch.optim.Optimizer:
    create: Callable[..., torch.optim.Optimizer] = _find(OPTIMIZERS, entry, "optimizer")
    parameters = dict(model.module.named_parameters())
    if not all(isinstance(group, list) and group for group in entry["groups"]):
        raise ValueError("each parameter group of the optimizer must be a list of names")
    groups = [{"params": [_take(parameters, name) for name in group]} for group in entry["groups"]]
    return create(groups, **_decode_options(entry, create))


def _take(parameters: dict[str, nn.Parameter], name: Any) -> nn.Parameter:
    """Remove the parameter ``name`` from ``parameters`` and return it: an optimizer has each one once."""
    if name not in parameters:
        raise ValueError(f"the optimizer has the parameter {name!r}, which the module lacks, or has it twice")
    return parameters.pop(name)


def _find(classes: Mapping[str, Any], entry: Mapping[str, Any], kind: str) -> Any:
    name = entry.get(OBJECT)
    if not isinstance(name, str) or name not in classes:
        raise ValueError(f"{name!r} is no {kind} of torch")
    return classes[name]


def _decode_options(entry: Mapping[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """Return the checked options of ``entry`` for ``function``."""
    title = entry[OBJECT]
    known = inspect.signature(function).parameters
    options = entry.get("options")
    if not isinstance(options, dict):
        raise ValueError(f"the options of {title!r} must be a dict, received {options!r}")
    for name, value in options.items():
        if name not in known or name in ("params", "input", "target"):
            raise ValueError(f"{title!r} has no option {name!r}")
        if name == "reduction" and value not in REDUCTIONS:
            raise ValueError(f"the reduction of {title!r} must be one of {quote_list(REDUCTIONS)}, received {value!r}")
        if name in ("weight", "pos_weight") and not (value is None or isinstance(value, Tensor)):
            raise ValueError(f"{name} of {title!r} must be a tensor, received {value!r}")
        optimizers.check_option(f"{name} of {title!r}", known[name].default, value)
    return dict(options)


def _check_entries(saved: Any, objects: Any) -> None:
    if not isinstance(saved, dict) or not all(isinstance(name, str) for name in saved):
        raise ValueError(f"the arguments of compile must be a dict, received {type(saved).__name__}")
    is_text = isinstance(objects, dict) and all(isinstance(text, str) for text in (*objects, *objects.values()))
    if not is_text or not all(name.isidentifier() for name in objects):
        raise ValueError("the descriptions of the arguments of compile must be texts")
    if not isinstance(saved.get("optimizer_options", {}), dict):
        raise ValueError("the options of the optimizer must be a dict")
    # An optimizer object has the names of all parameters, each once.
    optimizer = saved.get("optimizer")
    values = optimizer.values() if isinstance(optimizer, dict) and OBJECT not in optimizer else []
    has_names = isinstance(optimizer, dict) and (
        OBJECT in optimizer or any(isinstance(value, dict) for value in values)
    )
    _check_count({name: value for name, value in saved.items() if name != "optimizer" or not has_names})


def _check_count(tree: Any, count: int = 0) -> int:
    """Return ``count`` plus the number of values in ``tree``; raise a ``ValueError`` if there are too many."""
    if count > MAX_VALUES:
        raise ValueError(f"the arguments of compile have more than {MAX_VALUES} values")
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    for child in children:
        count = _check_count(child, count + 1)
    return count


def _takes(function: Callable[..., Any], arguments: Mapping[str, Any]) -> bool:
    """Return whether ``function`` takes ``arguments``: a subclass may override ``compile``."""
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError:
        return False
    return True


# Compare and describe


def describe(entry: Any) -> Any:
    """Return ``entry`` with the objects as text, for comparisons and messages."""
    if isinstance(entry, (list, tuple)):
        return type(entry)(map(describe, entry))
    if isinstance(entry, Tensor):
        return _describe_tensor(entry)
    if not isinstance(entry, dict):
        return entry
    if OBJECT not in entry:
        return {key: describe(child) for key, child in entry.items()}
    function = LOSSES.get(entry[OBJECT]) or OPTIMIZERS.get(entry[OBJECT])
    defaults = {} if function is None else inspect.signature(function).parameters
    options = {
        name: describe(value)
        for name, value in entry["options"].items()
        if name not in defaults or defaults[name].default != describe(value)
    }
    text = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"torch.{entry[OBJECT]}({text})"


def _describe_tensor(tensor: Tensor) -> Any:
    """Return the numbers of a small tensor; of a large one the shape, and a checksum of the numbers."""
    if tensor.numel() <= MAX_NUMBERS:
        return tensor.tolist()
    return f"tensor {list(tensor.shape)} with the checksum {zlib.crc32(repr(tensor.tolist()).encode()):08x}"


def missing_arguments_hint(model: Model, names: Sequence[str] = ()) -> str:
    """Return the reason and the fix if ``model`` was loaded without one of the arguments ``names``; else an empty string.

    Args:
        model: The model.
        names: The arguments that a method needs; all by default.
    """
    unrestored = model.unrestored_arguments
    if unrestored is None:
        return ""
    saved, objects = unrestored["compiled"], unrestored["compiled_objects"]
    if not objects:
        return (
            f"{type(model).__name__}.compile takes other arguments than Model.compile, so a file cannot hold them. Call "
            "compile(), then load() the file again."
        )
    needed = {name for name in objects if not names or name in names}
    if not needed or (names == FOR_PREDICTION and "loss" in saved):
        return ""
    found = " and ".join(f"{name} ({printable(objects[name], MAX_DESCRIPTION)})" for name in objects)
    article = "an object" if len(objects) == 1 else "objects"
    return (
        f"the file's model was compiled with {article} for {found}, which a file cannot hold. Pass "
        f"compile({_show_call(unrestored)}), then load() the file again."
    )


def _show_call(unrestored: Mapping[str, Any]) -> str:
    """Return the arguments of the ``compile`` call of the saved model, with ``...`` for objects."""
    saved, objects = unrestored["compiled"], unrestored["compiled_objects"]
    arguments = {**saved, "precision": unrestored["precision"]}
    options = arguments.pop("optimizer_options", {})
    texts = {name: _show(value) for name, value in {**arguments, **options}.items() if not _is_default(value)}
    texts |= dict.fromkeys(objects, "...")
    names = sorted(texts, key=lambda name: POSITIONAL.index(name) if name in POSITIONAL else len(POSITIONAL))
    return ", ".join(f"{name}={texts[name]}" for name in names)


def _is_default(value: Any) -> bool:
    is_empty = isinstance(value, (list, tuple, dict)) and not value
    return value is None or is_empty or value == "fp32" or (type(value) is int and value == 1)


def _show(value: Any) -> str:
    description = describe(value)
    is_object = isinstance(value, dict) and OBJECT in value
    return str(description) if is_object else repr(description)
