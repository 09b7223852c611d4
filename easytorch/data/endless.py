"""Iterators that never end."""

from __future__ import annotations

import itertools
import operator
from typing import Any


def check_has_end(iterator: Any, name: str, steps: int | None) -> None:
    """Raise a ``ValueError`` for an iterator that never ends, without a number of steps.

    Args:
        iterator: The batches.
        name: The argument that limits them.
        steps: Its value.
    """
    if steps is None and (source := find_endless(iterator)) is not None:
        raise ValueError(f"The data, {_describe(source)}, never ends. Pass the number of batches to use: {name}=1000.")


def find_endless(iterator: Any) -> Any:
    """Return the part of ``iterator`` because of which it never ends; None if it may end.

    Iterators of itertools, ``map``, ``zip``, ``enumerate``, ``filter`` and generator expressions are examined, without reading
    from them. A generator function may do anything, and is not.
    """
    if isinstance(iterator, (itertools.cycle, itertools.count)):
        return iterator
    if isinstance(iterator, itertools.repeat):
        return iterator if operator.length_hint(iterator, -1) < 0 else None
    sources = [find_endless(source) for source in _list_sources(iterator)]
    # The shortest source of zip and map ends them.
    return None if None in sources or not sources else sources[0]


def _list_sources(iterator: Any) -> list[Any]:
    """Return the iterators that ``iterator`` reads in lockstep, if they are known."""
    if isinstance(iterator, (map, filter)):
        return list(_arguments_of(iterator)[1:])
    if isinstance(iterator, zip):
        return list(_arguments_of(iterator))
    if isinstance(iterator, enumerate):
        return [_arguments_of(iterator)[0]]
    frame = getattr(iterator, "gi_frame", None)
    if frame is not None and iterator.gi_code.co_name == "<genexpr>":
        return [frame.f_locals.get(".0")]
    return []


def _arguments_of(iterator: Any) -> tuple[Any, ...]:
    """Return the arguments of the call that creates an iterator like this built-in one."""
    arguments: tuple[Any, ...] = iterator.__reduce__()[1]
    return arguments


def _describe(source: Any) -> str:
    return f"itertools.{type(source).__name__}"
