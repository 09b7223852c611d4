"""Content of objects, recorded and restored in place."""

from __future__ import annotations

import argparse
import collections
import functools
import io
import itertools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset

from easytorch._utils.internal import is_internal
from easytorch._utils.object_graph import children, get_attributes, is_user_class
from easytorch._utils.rng import GENERATOR_TYPES, get_generator_state, set_generator_state

CONTAINERS = (list, dict, set, collections.deque)
FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)
# Classes of libraries whose attributes are the state of a training run.
KNOWN_CLASSES = (
    nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, torch.amp.GradScaler, types.SimpleNamespace,
    argparse.Namespace,
)  # fmt: skip
# A function may use larger tensors and arrays, such as a data set, which are not copied.
MAX_VALUES = 2**22
# Items of a list or dict of the data whose content is recorded.
MAX_ITEMS = 1000
ATOMS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, types.BuiltinFunctionType)


class Snapshot:
    """The content of all objects that can be reached from some objects.

    Tensors, arrays, random generators, containers, closures, and the attributes of modules, optimizers, schedulers and
    objects of the program or of this package are recorded. Data is not: a ``Dataset`` and a ``DataLoader`` are not entered,
    unless they are among the roots. Neither is an object whose class has ``in_snapshots = False``.

    ``restore`` writes the content back into the same objects, so that everything that refers to them sees it.

    Args:
        roots: Where the search starts.
        exclude: Objects that are not entered.
        max_values: Tensors and arrays with more values are not recorded; None records all.
        keeps_modules: Whether the attributes of modules stay as they are, because they belong to a strategy.

    Attributes:
        iterators: The type of each iterator whose position cannot be restored, by its place.
    """

    def __init__(
        self,
        roots: Iterable[Any],
        *,
        exclude: Iterable[Any] = (),
        max_values: int | None = None,
        keeps_modules: bool = False,
    ) -> None:
        self._max_values, self._keeps_modules = max_values, keeps_modules
        # It holds each object, so that no id is used twice.
        self._seen: dict[int, Any] = {id(value): value for value in exclude}
        self._restorers: list[Callable[[], None]] = []
        self._roots = {id(root) for root in roots}
        self.iterators: dict[str, str] = {}
        queue = collections.deque(roots)
        while queue:
            value = queue.popleft()
            if isinstance(value, ATOMS) or id(value) in self._seen or self._is_other_data(value):
                continue
            self._seen[id(value)] = value
            queue.extend(self._record(value))

    @property
    def objects(self) -> list[Any]:
        """The objects that were recorded, and those that were excluded."""
        return list(self._seen.values())

    def restore(self) -> None:
        """Write the content back."""
        for restore in self._restorers:
            restore()

    def _record(self, value: Any) -> Iterable[Any]:
        """Record ``value``, and return the objects to which it refers."""
        if isinstance(value, Tensor):
            self._record_tensor(value)
        elif isinstance(value, np.ndarray):
            self._record_array(value)
        elif isinstance(value, GENERATOR_TYPES):
            self._restorers.append(functools.partial(set_generator_state, value, get_generator_state(value)))
        elif isinstance(value, (tuple, frozenset)):
            return value
        elif isinstance(value, FUNCTIONS):
            return self._record_function(value)
        elif isinstance(value, CONTAINERS):
            content = value.copy()
            self._restorers.append(functools.partial(_refill, value, content))
            items = [*content.values(), *_attributes_of(value)] if isinstance(content, dict) else content
            return items if self._max_values is None else itertools.islice(items, MAX_ITEMS)
        elif self._may_enter(value):
            return self._record_attributes(value)
        return ()

    def _is_other_data(self, value: Any) -> bool:
        return isinstance(value, (DataLoader, Dataset)) and id(value) not in self._roots

    def _may_enter(self, value: Any) -> bool:
        if isinstance(value, (type, types.ModuleType)):
            return False
        if not getattr(type(value), "in_snapshots", True):
            return False
        return (
            isinstance(value, (*KNOWN_CLASSES, DataLoader, Dataset))
            or is_internal(type(value))
            or is_user_class(type(value))
        )

    def _record_attributes(self, value: Any) -> Iterator[Any]:
        attributes = dict(vars(value)) if hasattr(value, "__dict__") else {}
        slots = {name: content for name, content in get_attributes(value).items() if name not in attributes}
        slots = {name: content for name, content in slots.items() if not isinstance(value, (nn.Module, DataLoader))}
        if not isinstance(value, DataLoader):  # whose iterator draws nothing between two passes
            for name, content in {**attributes, **slots}.items():
                self._check_iterator(content, f"{type(value).__name__}.{name}")
        if not (self._keeps_modules and isinstance(value, nn.Module)):
            self._restorers.append(functools.partial(_restore_attributes, value, attributes, slots))
        classes = [kind for kind in type(value).__mro__ if not is_internal(kind) and is_user_class(kind)]
        methods = [member for kind in classes for member in vars(kind).values() if isinstance(member, FUNCTIONS)]
        return iter([*attributes.values(), *slots.values(), *methods])

    def _record_function(self, function: Any) -> Iterator[Any]:
        """Record the variables of a closure; return the objects that the function uses, small ones only."""
        if isinstance(function, types.FunctionType):
            for cell in function.__closure__ or ():
                self._record_cell(cell, function.__name__)
        for _, value in children(function):
            is_large = (isinstance(value, Tensor) and value.numel() > MAX_VALUES) or (
                isinstance(value, np.ndarray) and value.size > MAX_VALUES
            )
            if not is_large:
                yield value

    def _record_cell(self, cell: types.CellType, name: str) -> None:
        try:
            self._restorers.append(functools.partial(setattr, cell, "cell_contents", cell.cell_contents))
        except ValueError:  # it has no value yet
            return
        self._check_iterator(cell.cell_contents, f"a variable of {name}()")

    def _check_iterator(self, value: Any, place: str) -> None:
        """Record an iterator whose position cannot be restored; one of the program has attributes that can."""
        if isinstance(value, Iterator) and not isinstance(value, io.IOBase) and not self._may_enter(value):
            self.iterators[place] = type(value).__name__

    def _record_tensor(self, tensor: Tensor) -> None:
        if tensor.layout != torch.strided or is_lazy(tensor) or tensor.is_meta or tensor.is_inference():
            return
        is_expanded = any(not step and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))
        is_too_large = self._max_values is not None and tensor.numel() > self._max_values
        if is_expanded or is_too_large:
            return
        gradient = tensor.grad if tensor.is_leaf else None
        self._restorers.append(
            functools.partial(
                _restore_tensor, tensor, tensor.detach().clone(), tensor.stride(), tensor.requires_grad, gradient
            )
        )

    def _record_array(self, array: np.ndarray) -> None:
        is_small = self._max_values is None or array.size <= self._max_values
        if is_small and array.flags.writeable:
            self._restorers.append(functools.partial(np.copyto, array, array.copy()))


def _restore_tensor(
    tensor: Tensor, value: Tensor, stride: tuple[int, ...], requires_grad: bool, gradient: Tensor | None
) -> None:
    with torch.no_grad():
        if tensor.shape == value.shape and tensor.stride() == stride:  # channels_last changes the strides
            tensor.detach().copy_(value)
        else:
            tensor.data = value
    if tensor.is_leaf:
        tensor.grad = gradient
        if tensor.requires_grad != requires_grad:
            tensor.requires_grad_(requires_grad)


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
    elif isinstance(container, collections.deque):
        container.clear()
        container.extend(content)
    else:
        container.clear()
        container.update(content)


def _attributes_of(container: Any) -> list[Any]:
    """Return the function that makes missing values of a ``defaultdict``."""
    factory = getattr(container, "default_factory", None)
    return [] if factory is None else [factory]


def _restore_attributes(value: Any, attributes: dict[str, Any], slots: dict[str, Any]) -> None:
    if hasattr(value, "__dict__"):
        current = vars(value)
        for name in current.keys() - attributes.keys():
            del current[name]
        current.update(attributes)
    for name, content in slots.items():
        object.__setattr__(value, name, content)
