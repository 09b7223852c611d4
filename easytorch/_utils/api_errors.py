"""Errors for wrong arguments and attributes, with a hint for names of other libraries."""

from __future__ import annotations

import functools
import inspect
import opcode
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from types import FrameType
from typing import Any, TypeVar

from torch import nn

from easytorch._utils.api_hints import (
    ARGUMENT_HINTS,
    ATTRIBUTE_HINTS,
    BATCH_STEPS,
    COMPILE_ARGUMENTS,
    COMPILE_HINT_DEFAULTS,
    COMPILE_HINTS,
    IGNORED_ATTRIBUTES,
    METHOD_HINTS,
    OPTION_HINTS,
    OVERRIDABLE_STEPS,
    PREDICTION_NAMES,
    PREFIX_HINTS,
    SCHEDULER_HINTS,
    SCHEDULER_NAMES,
    STOP_FLAGS,
    TARGET_NAMES,
)
from easytorch._utils.internal import is_internal
from easytorch._utils.registry import did_you_mean, spellings
from easytorch._utils.tracebacks import hide_internal_frames
from easytorch._utils.warnings import warn

Class = TypeVar("Class", bound=type)

IMPORT_FROM = opcode.opmap["IMPORT_FROM"]


def missing_attribute_error(owner: str, name: str, hints: Mapping[str, str], names: Iterable[str]) -> AttributeError:
    """Return the error for an attribute that does not exist.

    Args:
        owner: The object, for the message: ``"easytorch"``.
        name: The attribute.
        hints: What to use for names of other libraries.
        names: The existing attributes, for a suggestion.
    """
    if name in hints:
        return AttributeError(f"{owner} has no {name!r}.{_format_hint(hints[name])}")
    public = [known for known in names if not known.startswith("_")]
    suggestion = "" if name.startswith("_") else did_you_mean(name, public, 0.75)
    return AttributeError(f"{owner} has no {name!r}.{suggestion}")


def missing_name_error(module: str, name: str, hints: Mapping[str, str], names: Iterable[str]) -> Exception:
    """Return the error for a name that a module does not have; see ``missing_attribute_error``.

    In ``from module import name`` it is an ``ImportError``: Python replaces an ``AttributeError`` by a message without a hint.
    """
    error = missing_attribute_error(module, name, hints, names)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_internal(frame):
        frame = frame.f_back
    is_import = frame is not None and frame.f_code.co_code[frame.f_lasti] == IMPORT_FROM
    return ImportError(str(error), name=module) if is_import else error


def missing_class_error(
    module: str, name: str, hints: Mapping[str, str], table: Iterable[str], usage: str
) -> Exception:
    """Return the error for a class of another library that a module does not have.

    Args:
        module: The module, for the message: ``"easytorch.losses"``.
        name: The class.
        hints: What to use for classes without a name in ``table``.
        table: The names that ``compile`` knows.
        usage: How to use such a name, with the field ``{name!r}``.
    """
    known = next((spelling for spelling in spellings(name.removesuffix("Loss")) if spelling in table), None)
    if known is not None:
        hints = {name: usage.format(name=known), **hints}
    return missing_name_error(module, name, hints, table)


def check_steps(cls: type) -> None:
    """Check the methods of a subclass of ``Model`` that look like steps.

    Warns of methods that are never called because their name is misspelled or belongs to another library.

    Raises:
        TypeError: If a step does not take the batch as its only argument.
    """
    for name, function in vars(cls).items():
        if not inspect.isfunction(function):
            continue
        if name in BATCH_STEPS:
            _check_takes_batch(cls, name, function)
        elif (
            name in ("compute_loss", "get_loss")
            and {"y_pred", "inputs"} & inspect.signature(function).parameters.keys()
        ):
            warn(
                f"{cls.__name__}.{name} is never called. Pass the loss to compile(optimizer, f), where f(y_pred, y) "
                "returns it, or f(y_pred, y, x, model) if it needs the inputs or the model; or override train_step(self, batch)."
            )
        elif name in METHOD_HINTS:
            warn(f"{cls.__name__}.{name} is never called.{_format_hint(METHOD_HINTS[name])}")
        elif suggestion := _suggest_step(cls, name):
            warn(
                f"{cls.__name__}.{name} is never called by easytorch.{suggestion} Rename it, or ignore this warning if your own "
                "code calls it."
            )


def check_assignment(name: str) -> None:
    """Raise an ``AttributeError`` for the assignment of an attribute that a model would ignore."""
    if name in IGNORED_ATTRIBUTES:
        raise AttributeError(f"Setting model.{name} has no effect.{_format_hint(ATTRIBUTE_HINTS[name])}")


def check_options(title: str, options: Iterable[str], names: Sequence[str], hints: Mapping[str, str]) -> None:
    """Raise a ``TypeError`` with a hint if one of ``options`` is not in ``names``.

    Args:
        title: The function, for the message: ``"Model.summary"``.
        options: The names of the arguments.
        names: The known names.
        hints: What to use for names of other libraries.
    """
    for option in options:
        if option not in names:
            fix = _format_hint(hints[option]) if option in hints else did_you_mean(option, names)
            fix = fix or f" Pass one of {', '.join(names)}."
            raise TypeError(f"{title}() got an unexpected keyword argument {option!r}.{fix}")


def check_flag(name: str) -> None:
    """Raise an ``AttributeError`` if ``name``, a new attribute of a model, is a misspelled flag that would have no effect."""
    suggestion = "" if name in STOP_FLAGS else did_you_mean(name, STOP_FLAGS, 0.8)
    if suggestion:
        raise AttributeError(f"Setting model.{name} has no effect.{suggestion}")


def read_sizes(y: Any, sizes: tuple[Any, ...], batch_size: Any, epochs: Any) -> tuple[Any, Any, Any]:
    """Return ``y``, ``batch_size`` and ``epochs`` for the positional arguments of ``fit``.

    Two integers after ``y`` have one meaning, that of Keras. One may be either, and is refused.

    Args:
        y: The second argument: the targets, or the number of epochs.
        sizes: The arguments after ``y``.
        batch_size, epochs: The arguments by name.

    Raises:
        TypeError: If ``sizes`` have no or several meanings.
    """
    if isinstance(y, Integral) and not sizes:
        return None, batch_size, int(y)
    if not sizes:
        return y, batch_size, epochs
    if len(sizes) == 2 and all(isinstance(size, Integral) for size in sizes) and batch_size is None and epochs == 1:
        return y, *sizes
    if len(sizes) == 1 and isinstance(sizes[0], Integral):
        raise TypeError(
            f"fit(x, y, {sizes[0]}) may mean epochs or batch_size. Write epochs={sizes[0]} or batch_size={sizes[0]}."
        )
    raise TypeError(
        f"fit() takes at most x, y, batch_size and epochs by position, received {len(sizes)} arguments after y. Pass the others "
        "by name: fit(x, y, epochs=10, batch_size=32, validation_data=..., verbose=2)."
    )


def check_argument_order(kind: str, name: str, function: Any) -> None:
    """Refuse a loss or metric whose first two parameters are named like targets and predictions, as in Keras.

    Args:
        kind: ``"loss"`` or ``"metric"``, for the message.
        name: Its name.
        function: The function or module.

    Raises:
        ValueError: If the first name is that of targets and the second that of predictions.
    """
    first, second = _first_two_parameters(function.forward if isinstance(function, nn.Module) else function)
    if first.lower() not in TARGET_NAMES or second.lower() not in PREDICTION_NAMES:
        return
    if first.lower() != "y" and len(first) == len(second) == 1:  # (t, o) and (t, p) may mean anything
        return
    caller = name if inspect.isfunction(function) and name.isidentifier() else "f"
    raise ValueError(
        f"The {kind} {name!r} takes ({first}, {second}), but easytorch calls {caller}(y_pred, y), predictions first, as torch "
        f"does. Swap the arguments, or pass lambda y_pred, y: {caller}(y, y_pred)."
    )


def suggest_scheduler(name: Any) -> str:
    """Return `` Use ...`` for a schedule of other libraries; an empty string for another name."""
    if not isinstance(name, str):
        return ""
    keys = [SCHEDULER_NAMES.get(spelling, spelling) for spelling in spellings(name)]
    hint = next((SCHEDULER_HINTS[key] for key in keys if key in SCHEDULER_HINTS), None)
    return "" if hint is None else _format_hint(hint)


class HelpfulInit:
    """A base class that adds suggestions to errors about wrong arguments of ``__init__``, in subclasses too."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            explain_bad_arguments("__init__")(cls)


def explain_bad_arguments(*names: str) -> Callable[[Class], Class]:
    """Return a class decorator that adds suggestions to Python's errors about wrong arguments.

    Explained errors that leave one of the methods have a short traceback.

    Args:
        names: The methods to decorate.
    """

    def decorate(cls: Class) -> Class:
        for name in names:
            method = inspect.getattr_static(cls, name)
            if isinstance(method, classmethod):
                # The function below it, so that a subclass is passed on.
                explained = hide_internal_frames(_explain_errors(method.__func__, cls))
                setattr(cls, name, classmethod(explained))
            else:
                setattr(cls, name, hide_internal_frames(_explain_errors(method, cls)))
        return cls

    return decorate


def _explain_errors(method: Callable[..., Any], cls: type) -> Callable[..., Any]:
    title = f"{cls.__name__}.{method.__name__}".removesuffix(".__init__")

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except TypeError as error:
            is_inside_method = error.__traceback__ is None or error.__traceback__.tb_next is not None
            if is_inside_method:
                raise
            message = str(error).replace(method.__qualname__, title)
            raise TypeError(f"{message}.{_suggest_call(method, title, cls, args, kwargs)}") from None
        except AttributeError:
            if _is_bound(args, cls):
                raise
            received = type(args[0]).__name__
            message = f"{title} was called on the class, with a {received} in place of the {cls.__name__}."
            raise TypeError(message + _suggest_call(method, title, cls, args, kwargs)) from None

    return call


def _is_bound(args: tuple[Any, ...], cls: type) -> bool:
    """Return whether the first of ``args`` is an instance of ``cls``, or for a class method a subclass of it."""
    if not args:
        return False
    return isinstance(args[0], cls) or (isinstance(args[0], type) and issubclass(args[0], cls))


def _suggest_call(
    method: Callable[..., Any], title: str, cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    """Return the fix for a call of ``method`` with wrong arguments."""
    name = title.rpartition(".")[2]
    if not _is_bound(args, cls):
        return f" Call it on an instance: {cls.__name__}(module).{name}(...)."
    # Without self.
    parameters = list(inspect.signature(method).parameters.values())[1:]
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    unknown = next((key for key in kwargs if key not in names), None)
    if unknown is not None:
        return _suggest_argument(title, unknown, names)
    positional = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
    keywords = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    if len(args) > len(positional) + 1 and keywords:
        others = ", ..." * (len(keywords) > 1)
        example = f"{name}({', '.join([*positional, f'{keywords[0]}=...'])}{others})"
        which = f"the arguments after {positional[-1]}" if positional else "all arguments"
        return f" Pass {which} by name: {example}."
    return f" See help({title})."


def unexpected_argument_error(
    title: str,
    argument: str,
    options: Mapping[str, Any],
    names: Iterable[str],
    *,
    option_of_others: str = "",
    otherwise: str = "",
) -> TypeError:
    """Return the error for a keyword argument that is neither an argument of ``compile`` nor an option of its optimizer.

    Args:
        title: The method: ``"Model.compile"``.
        argument: The name that the user typed.
        options: All keyword arguments that the method does not have, with their values.
        names: The names that it takes.
        option_of_others: The message if it is an option of another optimizer.
        otherwise: The message if no name is similar.
    """
    names = [*names]
    hint = COMPILE_HINTS.get(argument, "").format_map(COMPILE_HINT_DEFAULTS | dict(options))
    renamed = re.match(r"(\w+)=", hint)
    if hint and (renamed is None or renamed[1] in names):
        suggestion = _format_hint(hint)
    elif option_of_others:
        suggestion = option_of_others
    elif argument in ARGUMENT_HINTS or _find_prefix_hint(argument):
        suggestion = _suggest_argument(title, argument, names)
    else:
        suggestion = did_you_mean(argument, names) or otherwise or _suggest_argument(title, argument, names)
    return TypeError(f"{title}() got an unexpected keyword argument {argument!r}.{suggestion}")


def argument_names(method: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the arguments of ``method``, without ``self`` and without those that stand for any others."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    return tuple(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))


def argument_defaults(method: Callable[..., Any]) -> dict[str, Any]:
    """Return the default of each argument of ``method`` that has one."""
    parameters = inspect.signature(method).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _suggest_argument(title: str, argument: str, names: list[str]) -> str:
    """Return what to use instead of ``argument``, which the function ``title`` does not have."""
    hint = OPTION_HINTS.get(f"{title}.{argument}")
    if hint is None and title.startswith("Model"):
        hint = ARGUMENT_HINTS.get(argument) or _find_prefix_hint(argument)
        renamed = re.match(r"(\w+)=", hint or "")
        if hint is not None and renamed is not None and renamed[1] not in names:  # an argument of fit or compile
            method = "compile" if renamed[1] in COMPILE_ARGUMENTS else "fit"
            value, *rest = re.split(r"(?=, (?:or|which) )", hint, maxsplit=1)
            hint = f"{method}(..., {value}{'...' * value.endswith('=')}){''.join(rest)}"
    if hint is not None:
        return _format_hint(hint)
    name = title.rpartition(".")[2]
    return did_you_mean(argument, names) or f" {name}() takes {', '.join(names) or 'no arguments'}."


def _find_prefix_hint(argument: str) -> str | None:
    """Return the hint for an argument of skorch such as ``optimizer__momentum``."""
    hint = next((hint for prefix, hint in PREFIX_HINTS.items() if argument.startswith(prefix)), None)
    return None if hint is None else hint.format(option=argument.partition("__")[2])


def _format_hint(hint: str) -> str:
    return f" {hint}." if hint.startswith("Not needed") else f" Use {hint}."


def _check_takes_batch(cls: type, name: str, function: Callable[..., Any]) -> None:
    signature = inspect.signature(function)
    try:
        signature.bind(None, None)
    except TypeError:
        index = next((p for p in signature.parameters if p in ("optimizer_idx", "optimizer_index")), None)
        steps = (
            "" if index is None else " With several optimizers, define a step for each: def critic_step(self, batch)."
        )
        raise TypeError(
            f"{cls.__name__}.{name}{signature} must take the batch as its only argument. Define it as "
            f"def {name}(self, batch).{steps}"
        ) from None


def _suggest_step(cls: type, name: str) -> str:
    """Return the step that a new method of ``cls`` may be meant to override; an empty string if there is none."""
    is_new = not any(hasattr(base, name) for base in cls.__bases__)
    return did_you_mean(name, OVERRIDABLE_STEPS, 0.8) if is_new and not name.startswith("_") else ""


def _first_two_parameters(function: Any) -> tuple[str, str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        # Built-in functions have no signature.
        return "", ""
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return (names[0], names[1]) if len(names) > 1 else ("", "")
