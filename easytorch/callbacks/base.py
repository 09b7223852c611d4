"""The base class of callbacks and the list that calls them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from easytorch._utils.api_hints import HelpfulInit
from easytorch._utils.internal import is_internal
from easytorch._utils.pytree import describe
from easytorch._utils.registry import did_you_mean
from easytorch._utils.warnings import warn

if TYPE_CHECKING:
    from easytorch.model import Model


class Callback(HelpfulInit):
    """Watches a model while it trains; override the hooks you need.

    Epochs and batches are counted from 0. ``logs`` are values by name: in ``on_epoch_end`` a plain dict, which is kept in
    the history with whatever is added to it; in batch hooks a mapping that is computed when it is read, so only who reads
    it waits for the device. A "batch" is one update: with gradient accumulation it is a window of batches.

    To steer, set ``self.model.stop_training = True``: training ends after the update that runs.

    Attributes:
        model: The model that trains.
        params: ``epochs``, ``steps`` (None where unknown) and ``verbose``.

    Of many processes each runs its own callbacks; those with ``everywhere = False`` run in process 0 alone.
    """

    model: Model
    params: dict[str, Any]
    priority = 0  # those with more are told later
    optional = False  # whether training goes on without it when it fails
    all_ranks = True  # whether it runs in each process, or in process 0 alone: what shows or writes something

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in vars(cls):
            if name.startswith("on_") and not hasattr(Callback, name) and name not in SHORT.values():
                warn(f"{cls.__name__}.{name} is no hook, and nobody calls it.{did_you_mean(name, HOOKS)}")

    def on_train_begin(self, logs: Any = None) -> None:
        """Run before the first epoch of a fit."""

    def on_train_end(self, logs: Any = None) -> None:
        """Run after the last epoch of a fit, however it came to an end: also after an interruption or an error."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Run before an epoch."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Run after an epoch and its validation."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Run before an update."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Run after an update."""

    def on_before_optimizer_step(self) -> None:
        """Run when all gradients of an update are there, before they are clipped and used."""

    def on_test_begin(self, logs: Any = None) -> None:
        """Run before an evaluation, within fit too."""

    def on_test_end(self, logs: Any = None) -> None:
        """Run after an evaluation."""

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Run before a batch of an evaluation."""

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Run after a batch of an evaluation."""

    def on_predict_begin(self, logs: Any = None) -> None:
        """Run before a prediction."""

    def on_predict_end(self, logs: Any = None) -> None:
        """Run after a prediction."""

    def on_predict_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Run before a batch of a prediction."""

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        """Run after a batch of a prediction; ``logs["outputs"]`` are the module's outputs."""

    def on_restore(self) -> None:
        """Run after every ``on_train_begin``: the moment to take a state back."""

    def on_interrupt(self) -> None:
        """Run when Ctrl-C or SIGTERM stops training, after the update that ran, before ``on_train_end``."""

    def on_exception(self, error: BaseException) -> None:
        """Run when training fails, before ``on_train_end``; the error is raised again afterwards."""

    def close_on_failure(self) -> None:
        """Let go of everything, when an expendable callback has failed."""

    def say(self, text: str) -> None:
        """Print ``text``, in process 0 alone."""
        if self.model.strategy.group.is_main:
            print(text, flush=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what a restart needs, tensors and plain values only; nothing by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""


class LambdaCallback(Callback):
    """A callback from functions.

    Args:
        hooks: Functions by the name of the hook, with the hook's arguments: ``on_epoch_end=lambda epoch, logs: ...``.

    Raises:
        ValueError: If there is no such hook.
    """

    def __init__(self, **hooks: Callable[..., Any] | None) -> None:
        for name, function in hooks.items():
            if name not in HOOKS:
                from easytorch._utils.registry import quote_list

                raise ValueError(
                    f"There is no hook {name!r}.{did_you_mean(name, HOOKS)} Hooks are {quote_list(HOOKS)}."
                )
            if function is not None:
                setattr(self, name, function)


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))


class CallbackList(Callback):
    """Tells every callback, in order; a hook that nobody overrides costs one call of an empty function."""

    def __init__(self, callbacks: Iterable[Any], model: Model, params: dict[str, Any]) -> None:
        self.diverged = False  # whether training ended by numbers that are none, so that nothing of it is to be kept
        self.callbacks, self.params = sorted(map(_checked, callbacks), key=lambda callback: callback.priority), params
        for callback in self.callbacks:
            callback.model, callback.params = model, params
            vars(callback).pop("broken", None)  # one that failed in another fit is tried again
        first = model.strategy.group.is_main
        self.heard = [callback for callback in self.callbacks if callback.all_ranks or first]
        for hook in HOOKS:
            listeners = [_listener(callback, hook) for callback in self.heard if _overrides(callback, hook)]
            if listeners:
                setattr(self, hook, listeners[0] if len(listeners) == 1 else _all(listeners))

    @contextlib.contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """Have the weights in the module that evaluations measure: the average, where a callback keeps one."""
        with contextlib.ExitStack() as stack:
            for callback in self.callbacks:
                if hasattr(callback, "averaged"):
                    stack.enter_context(callback.averaged())
            yield

    def has_user_callbacks(self) -> bool:
        """Whether there is a callback with code of the user's own."""
        return any(
            isinstance(callback, LambdaCallback) or not is_internal(type(callback)) for callback in self.callbacks
        )

    def finish(self, error: BaseException | None, logs: Any) -> None:
        """Run ``on_exception``, if there was an error, and ``on_train_end`` of every callback, whatever else fails.

        An error of their own is raised when all have run; beside ``error`` it becomes a warning.
        """
        failures = []
        for callback in self.heard:
            for hook, argument in (("on_exception", error), ("on_train_end", logs)):
                if argument is None or not _overrides(callback, hook):
                    continue
                try:
                    _listener(callback, hook)(argument)
                except Exception as failure:
                    failures.append(failure)
                    if error is not None:
                        warn(f"{type(callback).__name__}.{hook} failed too: {type(failure).__name__}: {failure}")
        if failures and error is None:
            raise failures[0]


def _listener(callback: Callback, hook: str) -> Callable[..., Any]:
    name = hook if _overridden(callback, hook) else SHORT[hook]
    method: Callable[..., Any] = getattr(callback, name)
    _check_arguments(callback, name, method, list(inspect.signature(getattr(Callback, hook)).parameters)[1:])
    if not callback.optional:
        return method

    def tell(*args: Any) -> None:
        if not vars(callback).get("broken"):
            try:
                method(*args)
            except (Exception, SystemExit) as error:  # rich ends the process when its pipe is broken
                vars(callback)["broken"] = True
                callback.close_on_failure()
                name = type(callback).__name__
                warn(f"{name} failed and is switched off; training goes on. {type(error).__name__}: {error}")

    return tell


def _all(listeners: list[Callable[..., Any]]) -> Callable[..., None]:
    def tell(*args: Any) -> None:
        for listener in listeners:
            listener(*args)

    return tell


def _check_arguments(callback: Callback, name: str, method: Callable[..., Any], names: list[str]) -> None:
    """Raise a ``TypeError`` if a hook cannot be called with what it will be called with."""
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # built-in functions tell nothing about themselves
        return
    try:
        signature.bind(*names)
    except TypeError:
        takes = f"takes {signature}, but is called with ({', '.join(names)})"
        own = ", ".join(f"{one}=None" if one == "logs" else one for one in names)
        cure = f"{name}=lambda {', '.join(names)}: ..." if name in vars(callback) else f"def {name}(self, {own})"
        raise TypeError(f"{type(callback).__name__}.{name} {takes}. Write {cure}.") from None


SHORT = {"on_train_batch_begin": "on_batch_begin", "on_train_batch_end": "on_batch_end"}  # as in Keras


def _overrides(callback: Callback, hook: str) -> bool:
    return _overridden(callback, hook) or (hook in SHORT and hasattr(callback, SHORT[hook]))


def _overridden(callback: Callback, hook: str) -> bool:
    return hook in vars(callback) or getattr(type(callback), hook) is not getattr(Callback, hook)


def as_callback_list(callbacks: Any) -> list[Any]:
    """Return the callbacks that the user passed as a list.

    Raises:
        TypeError: If it is one callback, or nothing that can be a list of them.
    """
    if callbacks is None or isinstance(callbacks, Iterable):
        return list(callbacks or ())
    raise TypeError(f"callbacks is a list of callbacks, received {type(callbacks).__name__}. Pass callbacks=[...].")


def _checked(callback: Any) -> Callback:
    if isinstance(callback, Callback):
        return callback
    if isinstance(callback, type):
        raise TypeError(
            f"Expected a callback, received the class {callback.__name__}. Make an object of it: {callback.__name__}()."
        )
    raise TypeError(
        f"Expected a callback, received {callback!r} ({describe(callback)}). Pass objects of easytorch.callbacks, of your own "
        "subclass of easytorch.callbacks.Callback, or a LambdaCallback."
    )
