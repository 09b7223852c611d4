"""Base class of callbacks and the list that calls them."""

from __future__ import annotations

import contextlib
import dis
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easytorch._utils.api_errors import HelpfulInit
from easytorch._utils.internal import is_internal
from easytorch._utils.pytree import describe
from easytorch._utils.registry import did_you_mean, quote_list
from easytorch._utils.terminal import print_message
from easytorch._utils.warnings import warn
from easytorch.errors import escape_lines

if TYPE_CHECKING:
    from easytorch.data.batch import Window
    from easytorch.model import Model

KERAS_ALIASES = {"on_train_batch_begin": "on_batch_begin", "on_train_batch_end": "on_batch_end"}


class Callback(HelpfulInit):
    """Base class of callbacks; override the hooks you need.

    Epochs and batches are counted from 0.
    A "batch" of training is one optimizer step: with gradient accumulation it is a window of batches.
    ``logs`` maps names to values.
    In ``on_epoch_end`` it is a plain dict, and the history records whatever a hook adds to it.
    In batch hooks it is a mapping that computes a value when it is read, and reading waits for the device.

    In batch hooks of training and evaluation, ``self.model.current_batch`` is the batch and ``self.model.current_outputs`` what
    the step returned.

    To stop training, set ``self.model.stop_training = True``: training ends after the current update.

    In distributed training every rank runs its own callbacks; those with ``all_ranks = False`` run on rank 0 only.

    Attributes:
        model: The model that is trained.
        params: ``epochs``, ``steps`` (updates in an epoch, None if unknown) and ``verbose``.
        priority: Callbacks with a higher priority run later; 0 by default.
        optional: Whether training continues without the callback when one of its hooks fails.
        all_ranks: Whether the callback runs on every rank. Set it to False if it prints or writes something.

    Examples:
        >>> class PrintLoss(Callback):
        ...     all_ranks = False
        ...
        ...     def on_epoch_end(self, epoch, logs=None):
        ...         print(epoch, logs["loss"])
        >>> model.fit(x, y, callbacks=[PrintLoss()])
    """

    model: Model
    params: dict[str, Any]
    priority = 0
    optional = False
    all_ranks = True
    _is_disabled = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in vars(cls):
            if name.startswith("on_") and not hasattr(Callback, name) and name not in KERAS_ALIASES.values():
                fix = suggest_hook(name) or f" The hooks are {quote_list(HOOKS)}."
                warn(
                    f"{cls.__name__}.{name} is not a hook and is never called.{fix} If your code calls it, choose a name that "
                    "does not start with 'on_'."
                )

    def on_train_begin(self, logs: Any = None) -> None:
        """Run before the first epoch of a fit.

        Args:
            logs: An empty dict.
        """

    def on_train_end(self, logs: Any = None) -> None:
        """Run at the end of a fit, also after an interruption or an error.

        Args:
            logs: The logs of the last epoch.
        """

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Run before an epoch.

        Args:
            epoch: Index of the epoch, from 0 and over all fits.
            logs: An empty dict.
        """

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Run after an epoch and its validation.

        Args:
            epoch: Index of the epoch, from 0 and over all fits.
            logs: The values of the epoch, as floats; the history records what a hook adds.
        """

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Run before an update.

        Args:
            batch: Index of the update in the epoch, from 0.
            logs: An empty dict.
        """

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Run after an update.

        Args:
            batch: Index of the update in the epoch, from 0.
            logs: The means over the epoch so far.
        """

    def on_before_optimizer_step(self) -> None:
        """Run when all gradients of an update are computed, before they are clipped and used.

        An optimizer that needs a closure, such as LBFGS, computes gradients several times; each time this is called.
        """

    def on_test_begin(self, logs: Any = None) -> None:
        """Run before an evaluation, also before a validation within ``fit``.

        Args:
            logs: An empty dict.
        """

    def on_test_end(self, logs: Any = None) -> None:
        """Run after an evaluation that was neither interrupted nor failed.

        Args:
            logs: The values of the evaluation, without the prefix ``val_``.
        """

    def on_validation_begin(self, logs: Any = None) -> None:
        """Run before a validation within ``fit``, which evaluates one data set or several.

        Args:
            logs: An empty dict.
        """

    def on_validation_end(self, logs: Any = None) -> None:
        """Run after a validation within ``fit``: at the end of an epoch, or with ``validation_freq=Every(updates=...)`` after
        an update.

        Args:
            logs: The values of all data sets, with the prefix ``val_``; ``history.validations`` records what a hook adds.
        """

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Run before a batch of an evaluation.

        Args:
            batch: Index of the batch, from 0.
            logs: An empty dict.
        """

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Run after a batch of an evaluation.

        Args:
            batch: Index of the batch, from 0.
            logs: The means over the evaluation so far.
        """

    def on_predict_begin(self, logs: Any = None) -> None:
        """Run before a prediction.

        Args:
            logs: An empty dict.
        """

    def on_predict_end(self, logs: Any = None) -> None:
        """Run after a prediction.

        Args:
            logs: An empty dict.
        """

    def on_predict_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Run before a batch of a prediction.

        Args:
            batch: Index of the batch, from 0.
            logs: An empty dict.
        """

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        """Run after a batch of a prediction.

        Args:
            batch: Index of the batch, from 0.
            logs: ``logs["outputs"]`` contains the outputs of the module, and ``logs["batch"]`` the batch of the data.
        """

    def on_log(self, values: Mapping[str, float], step: int) -> None:
        """Run when a callback has measured something in an update, such as ``GradientStatistics``; for loggers.

        Args:
            values: The values by name, as floats.
            step: The number of the update, from 1 and over all fits.
        """

    def on_restore(self) -> None:
        """Run after ``on_train_begin`` of all callbacks, to restore a state."""

    def on_interrupt(self) -> None:
        """Run when Ctrl-C or SIGTERM stops training: after the current update, before ``on_train_end``."""

    def on_exception(self, error: BaseException) -> None:
        """Run when training fails, before ``on_train_end``.

        Args:
            error: The error, which is raised again afterwards.
        """

    def close_on_failure(self) -> None:
        """Release all resources after a hook of an optional callback failed."""

    def wrap_update(self, update: Callable[[Window], None]) -> Callable[[Window], None]:
        """Return the function that the loop calls for each update of an epoch: ``update``, or one that calls it.

        Args:
            update: ``model.update``, or the function that another callback returned.
        """
        return update

    def redirect(self, folder: Path) -> None:
        """Write files to ``folder`` from now on; ``fit(..., dry_run=True)`` calls this after ``on_train_begin``.

        Override it in a callback that writes files. The attributes that it changes are restored after the dry run.

        Args:
            folder: A temporary folder for this callback, which does not exist yet.

        Raises:
            OSError: If the callback could not write its files in a run.
        """

    def print_message(self, text: str) -> None:
        """Print ``text`` on rank 0.

        Args:
            text: The message, in one line.

        Examples:
            >>> class Announce(Callback):
            ...     def on_epoch_end(self, epoch, logs=None):
            ...         self.print_message(f"epoch {epoch} is over")
            >>> history = model.fit(x, y, callbacks=[Announce()])
        """
        if self.model.strategy.group.is_main:
            print_message(escape_lines(text), sys.stdout)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs: tensors and plain values by name; an empty dict by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Args:
            state: The state, read from a checkpoint.
        """


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))
# Words of other libraries for the last part of the name of a hook.
HOOK_WORDS = dict.fromkeys(("finish", "finished", "ended", "done", "complete", "completed", "stop"), "end")
HOOK_WORDS |= dict.fromkeys(("start", "started", "starting"), "begin")  # codespell:ignore begin
# Hooks of the Hugging Face Trainer, and names of a batch.
HOOK_NAMES = {
    "on_step_begin": "on_train_batch_begin",
    "on_step_end": "on_train_batch_end",
    "on_iteration_begin": "on_train_batch_begin",
    "on_iteration_end": "on_train_batch_end",
    "on_evaluate": "on_validation_end",
}


def suggest_hook(name: str) -> str:
    """Return `` Did you mean 'on_epoch_end'?`` for a name that is not a hook; an empty string if none is similar."""
    meant = "_".join(HOOK_WORDS.get(word, word) for word in name.split("_"))
    meant = next((hook for hook, alias in KERAS_ALIASES.items() if alias == meant), HOOK_NAMES.get(meant, meant))
    return f" Did you mean {meant!r}?" if meant in HOOKS else did_you_mean(meant, HOOKS)


class LambdaCallback(Callback):
    """Callback made of functions.

    Args:
        hooks: Functions by name of the hook. Each takes the arguments of its hook.

    Raises:
        ValueError: If a name is not a hook.

    Examples:
        >>> LambdaCallback(on_epoch_end=lambda epoch, logs: print(epoch, logs["loss"]))
    """

    def __init__(self, **hooks: Callable[..., Any] | None) -> None:
        for name, function in hooks.items():
            if name not in HOOKS:
                raise ValueError(f"Unknown hook {name!r}.{suggest_hook(name)} Hooks are {quote_list(HOOKS)}.")
            if function is not None:
                setattr(self, name, function)


class CallbackList(Callback):
    """Callbacks of one run, called in the order of their priority.

    A hook that no callback overrides costs one call of an empty function.

    Args:
        callbacks: The callbacks.
        model: The model that is trained.
        params: The ``params`` of every callback.

    Attributes:
        active: The callbacks that run on this rank.
        diverged: True after a non-finite loss; checkpoints are no longer written.
        has_leaked: True after a step that left gradients of the optimizer's parameters, which were deleted.

    Examples:
        >>> callbacks = CallbackList([CSVLogger("log.csv")], model, {"epochs": 5})
        >>> len(callbacks.active)
        1
    """

    def __init__(self, callbacks: Iterable[Any], model: Model, params: dict[str, Any]) -> None:
        self.diverged = False
        self.has_leaked = False
        given = list(map(check_callback, callbacks))
        self.callbacks = sorted(given, key=lambda callback: callback.priority)
        # Schedules by name come first, and the user did not pass them.
        self._given = [callback for callback in given if not any(callback is schedule for schedule in model.schedules)]
        self.params = params
        for callback in self.callbacks:
            callback.model, callback.params = model, params
            callback._is_disabled = False  # the next fit tries it again
        is_main = model.strategy.group.is_main
        self.active = [callback for callback in self.callbacks if callback.all_ranks or is_main]
        self._connected = {hook: [callback for callback in self.active if has_hook(callback, hook)] for hook in HOOKS}
        for hook in HOOKS:
            self._connect(hook)

    def _connect(self, hook: str) -> None:
        """Make ``hook`` of this list call that of its callbacks, at the cost of an empty function if there are none."""
        methods = [_bind_hook(callback, hook) for callback in self._connected[hook]]
        vars(self).pop(hook, None)
        if methods:
            combine = _combine_batch_hooks if hook.endswith(("_batch_begin", "_batch_end")) else _combine_hooks
            setattr(self, hook, methods[0] if len(methods) == 1 else combine(methods))

    def disconnect(self, callback: Callback, hook: str) -> None:
        """Do not call ``hook`` of ``callback`` any more, which has nothing left to do in this run."""
        self._connected[hook] = [other for other in self._connected[hook] if other is not callback]
        self._connect(hook)

    def wrap_update(self, update: Callable[[Window], None]) -> Callable[[Window], None]:
        """Return ``update`` with what callbacks add to it."""
        for callback in self.active:
            update = callback.wrap_update(update)
        return update

    @contextlib.contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """Load the weights that evaluations use into the module: the average, if a callback computes one."""
        with contextlib.ExitStack() as stack:
            for callback in self.callbacks:
                if hasattr(callback, "averaged"):
                    stack.enter_context(callback.averaged())
            yield

    def place(self, callback: Callback) -> str:
        """Return ``callbacks[2]``, where the user passed ``callback``; for another one the name of its class."""
        places = (f"callbacks[{i}]" for i, given in enumerate(self._given) if given is callback)
        return next(places, type(callback).__name__)

    def has_user_callbacks(self) -> bool:
        """Return whether a callback runs code of the user."""
        return any(
            isinstance(callback, LambdaCallback) or not is_internal(type(callback)) for callback in self.callbacks
        )

    def fail(self, error: BaseException) -> None:
        """Run ``on_exception`` of every callback; a hook that fails too is a warning."""
        self._run_all("on_exception", error, error)

    def finish(self, error: BaseException | None, logs: Any) -> None:
        """Run ``on_train_end`` of every callback.

        A hook that fails or is interrupted does not keep the others from running.
        Its error is raised when all hooks have run; if there was an ``error`` already, it becomes a warning.

        Args:
            error: The error that ended training, or None.
            logs: The logs of the last epoch.
        """
        failures = self._run_all("on_train_end", logs, error)
        interrupts = [failure for failure in failures if not isinstance(failure, Exception)]
        if interrupts or (failures and error is None):
            raise (interrupts or failures)[0]

    def _run_all(self, hook: str, argument: Any, error: BaseException | None) -> list[BaseException]:
        """Run ``hook`` of every callback, and return the errors; with an earlier ``error`` they are warnings."""
        failures: list[BaseException] = []
        for callback in self.active:
            if not has_hook(callback, hook):
                continue
            try:
                _bind_hook(callback, hook)(argument)
            # Ctrl-C must not keep the best weights from being restored.
            except BaseException as failure:
                failures.append(failure)
                if error is not None and isinstance(failure, Exception):
                    warn(f"{type(callback).__name__}.{hook} also failed: {type(failure).__name__}: {failure}")
        return failures


def as_callback_list(callbacks: Any) -> list[Any]:
    """Return the callbacks that the user passed as a list.

    Raises:
        TypeError: If it is neither a callback nor iterable.
    """
    if isinstance(callbacks, (Callback, type, str)):
        return [callbacks]
    if callbacks is None or isinstance(callbacks, Iterable):
        return list(callbacks or ())
    raise TypeError(
        f"callbacks must be a list of callbacks, received {type(callbacks).__name__}. Pass callbacks=[...]."
    )


def check_callback(callback: Any) -> Callback:
    """Return ``callback``; raise a ``TypeError`` if it is not a callback."""
    if isinstance(callback, Callback):
        _check_is_initialized(callback)
        return callback
    if isinstance(callback, type):
        name = callback.__name__
        raise TypeError(f"callbacks must contain instances, received the class {name}. Create an instance: {name}().")
    raise TypeError(
        f"callbacks must contain callbacks, received {callback!r} ({describe(callback)}). Pass an instance of a subclass of "
        "easytorch.callbacks.Callback, or LambdaCallback(on_epoch_end=...)."
    )


def _check_is_initialized(callback: Callback) -> None:
    """Raise a ``TypeError`` if the ``__init__`` of a subclass did not call that of a callback of this package."""
    kind = type(callback)
    base = next(each for each in kind.__mro__ if is_internal(each))
    initialize: Any = inspect.getattr_static(base, "__init__")
    if base is kind or not inspect.isfunction(initialize):
        return
    instructions = dis.get_instructions(inspect.unwrap(initialize))
    attributes = [str(each.argval) for each in instructions if each.opname == "STORE_ATTR"]
    if attributes and not any(name in vars(callback) for name in attributes):
        raise TypeError(
            f"{kind.__name__}.__init__ does not call that of {base.__name__}, so the callback has no {attributes[0]!r}. Add "
            f"super().__init__(...) with the arguments of {base.__name__} as its first line."
        )


def has_hook(callback: Callback, hook: str) -> bool:
    """Return whether ``callback`` defines ``hook``."""
    return _overrides(callback, hook) or (hook in KERAS_ALIASES and hasattr(callback, KERAS_ALIASES[hook]))


def _overrides(callback: Callback, hook: str) -> bool:
    return hook in vars(callback) or getattr(type(callback), hook) is not getattr(Callback, hook)


def _bind_hook(callback: Callback, hook: str) -> Callable[..., Any]:
    """Return the method of ``callback`` to call for ``hook``; that of an optional callback never raises."""
    name = hook if _overrides(callback, hook) else KERAS_ALIASES[hook]
    method: Callable[..., Any] = getattr(callback, name)
    if not str(getattr(method, "__module__", "")).startswith("easytorch."):  # reading a signature takes 20 microseconds
        _check_arguments(callback, name, method, list(inspect.signature(getattr(Callback, hook)).parameters)[1:])
    if not callback.optional:
        return method

    def call_or_disable(*args: Any) -> None:
        if callback._is_disabled:
            return
        try:
            method(*args)
        # rich ends the process when its pipe is broken
        except (Exception, SystemExit) as error:
            # A wrong argument is an error before training.
            if hook == "on_train_begin" and isinstance(error, ValueError):
                raise
            callback._is_disabled = True
            callback.close_on_failure()
            name = type(callback).__name__
            warn(f"{name} failed and is disabled; training continues. {type(error).__name__}: {error}")

    return call_or_disable


def _combine_hooks(methods: list[Callable[..., Any]]) -> Callable[..., None]:
    def call_all(*args: Any) -> None:
        for method in methods:
            method(*args)

    return call_all


def _combine_batch_hooks(methods: list[Callable[..., Any]]) -> Callable[..., None]:
    # With *args each call would take twice as long.
    def call_all(batch: int, logs: Any = None) -> None:
        for method in methods:
            method(batch, logs)

    return call_all


def _check_arguments(callback: Callback, name: str, method: Callable[..., Any], names: list[str]) -> None:
    """Raise a ``TypeError`` if a hook cannot be called with the arguments ``names``."""
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # a built-in function may have no signature
        return
    try:
        signature.bind(*names)
    except TypeError:
        parameters = ", ".join("logs=None" if parameter == "logs" else parameter for parameter in names)
        is_function = name in vars(callback)
        fix = f"{name}=lambda {', '.join(names)}: ..." if is_function else f"def {name}(self, {parameters})"
        raise TypeError(
            f"{type(callback).__name__}.{name} takes {signature}, but is called with ({', '.join(names)}). Write {fix}."
        ) from None
