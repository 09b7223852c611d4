"""Trial: training that leaves no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from easytorch._utils.rng import preserve_rng_state
from easytorch._utils.snapshot import Snapshot
from easytorch.callbacks.base import Callback
from easytorch.data.batch import is_single_pass
from easytorch.data.random_sources import RandomSources

if TYPE_CHECKING:
    from easytorch.model import Model

# Larger tensors and arrays of the data are not copied: reading does not change them.
MAX_DATA_VALUES = 2**20


@contextlib.contextmanager
def trial(model: Model, *data: Any, callbacks: Sequence[Callback] = (), purpose: str = "The trial") -> Iterator[None]:
    """Restore everything that training inside changes, also after an error.

    Restored are weights, buffers, ``requires_grad``, modes, optimizers, schedules, the loss scale, random states, the model's
    state, history and settings, the strategy that ``compile`` has chosen, and what the user has added as attributes. Files are
    not: pass no callback that writes them.

    Args:
        model: The model.
        data: All data that is read inside. Generators and counters of loaders, samplers and datasets are restored.
        callbacks: Callbacks of the user that are called inside.
        purpose: What is restored, for messages.

    Raises:
        RuntimeError: If ``fit`` is running.
        ValueError: If data can be read only once, or an iterator of the user cannot be restored.

    Examples:
        >>> with trial(model, x, y):
        ...     model.fit(x, y, epochs=1, verbose=0)
    """
    if model.train_data is not None:
        raise RuntimeError(
            f"{purpose} would change the weights that fit() trains. Call it when fit() has ended, or on a copy: "
            "copy.deepcopy(model)."
        )
    for source in data:
        if is_single_pass(source):
            raise ValueError(single_pass_message(purpose, "data", "later calls"))
    restore = record(model, [RandomSources(source) for source in data], callbacks, purpose=purpose)
    try:
        with preserve_rng_state():
            yield
    finally:
        restore()


@contextlib.contextmanager
def restored_data(data: Any) -> Iterator[bool]:
    """Restore what reading ``data`` inside changes: counters, generators and other values of datasets and functions.

    Yields:
        Whether ``data`` can be read without a trace. It cannot if it has an iterator, whose position cannot be restored.
    """
    sources = RandomSources(data)
    state = Snapshot(list(sources.objects().values()), max_values=MAX_DATA_VALUES)
    generators = sources.get_state()
    try:
        with preserve_rng_state():
            yield not state.iterators
    finally:
        state.restore()
        sources.set_state(generators)


def record(
    model: Model,
    sources: Sequence[RandomSources],
    callbacks: Sequence[Callback] = (),
    *,
    exclude: Iterable[Any] = (),
    purpose: str,
) -> Callable[[], None]:
    """Record all that a fit may change; return the function that restores it.

    Args:
        model: The model.
        sources: What draws random numbers for the data, and what they draw from.
        callbacks: The callbacks of the fit.
        exclude: Objects that are not entered.
        purpose: What is restored, for messages.

    Raises:
        ValueError: If there is an iterator, whose position cannot be restored.
    """
    model.strategy.release_weights()
    sources = sources or [RandomSources(())]
    for source in sources:
        source.others = {"model": model, "callbacks": list(callbacks)}
    generators = [source.get_state() for source in sources]
    strategy = model.strategy
    is_sharded = any(hasattr(parameter, "to_local") for parameter in model.module.parameters())
    restore_values = model.attribute_state.snapshot(list(callbacks))
    data = [value for source in sources for value in source.objects().values()]
    roots = [model, strategy.scaler, strategy.loss_modules, *callbacks]
    # A fit replaces the data of the last fit, and does not change it.
    last_data = list(model.last_fit.values())
    state = Snapshot(roots, exclude=[*exclude, *last_data], keeps_modules=is_sharded)
    last_ids = set(map(id, last_data))
    known = [value for value in state.objects if id(value) not in last_ids]
    of_data = Snapshot(data, exclude=known, max_values=MAX_DATA_VALUES)
    _check_iterators(state.iterators | of_data.iterators, purpose)
    counts = {name: vars(strategy)[name] for name in ("clip_count", "_count", "_watchers", "losses")}

    def restore() -> None:
        model.strategy.release_weights()
        restore_values()
        state.restore()
        of_data.restore()
        vars(strategy).update(counts)
        for source, content in zip(sources, generators, strict=True):
            source.set_state(content)

    return restore


def single_pass_message(purpose: str, name: str, reader: str) -> str:
    """Return why a generator that can be read only once is refused."""
    return (
        f"{purpose} would use up the first batches of {name}, a generator that can be read only once, and {reader} would miss "
        "them. Pass the function that creates it (not its result), a list of batches or a DataLoader."
    )


def _check_iterators(iterators: dict[str, str], purpose: str) -> None:
    """Raise a ``ValueError`` if there are iterators, whose positions cannot be restored."""
    if iterators:
        place, kind = next(iter(iterators.items()))
        raise ValueError(
            f"{purpose} cannot restore {place}, of type {kind}: the run would start after what was read from it. "
            "Create the iterator where it is used, for example in __iter__, or use an index."
        )
