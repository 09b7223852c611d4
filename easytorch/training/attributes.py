"""State among the attributes that a user adds to a model, its module, its optimizer and its callbacks.

A second optimizer, a teacher network, a replay buffer, a hidden state or a counter is part of the run as the weights are. They
are found by a walk over the attributes: what has ``state_dict`` and ``load_state_dict``, tensors, random generators, containers,
numbers and text, also inside other objects of the user.
"""

from __future__ import annotations

import array
import contextlib
import copy
import enum
import functools
import io
import pathlib
import queue
import re
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSequence, MutableSet
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from easytorch._utils import torch_private
from easytorch._utils.internal import is_internal
from easytorch._utils.object_graph import is_user_class, walk
from easytorch._utils.pytree import leaves
from easytorch._utils.rng import GENERATOR_TYPES, get_generator_state, set_generator_state
from easytorch._utils.warnings import warn
from easytorch.callbacks.base import Callback
from easytorch.checkpoint import serialization, state_dicts
from easytorch.checkpoint.encoding import EncodingError, decode, encode
from easytorch.optimizer_group import members_of

if TYPE_CHECKING:
    from easytorch.model import Model

MAX_SLOTS = 20_000
MAX_DEPTH = 6
# A container with more items is stored without a comparison with its content at the start of the fit.
MAX_COMPARED = 1_000
SCALARS = (bool, int, float, complex, str, bytes, type(None))
# Settings of a model that a callback may change in a fit.
CHANGEABLE_SETTINGS = frozenset({"clip_grad_norm", "clip_grad_value"})
CONSTANTS = (
    type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, functools.partial, torch.device,
    torch.dtype, torch.Size, pathlib.PurePath, re.Pattern, enum.Enum, io.IOBase, DataLoader, Dataset, Sampler, Callback,
)  # fmt: skip
# Objects whose content changes, but which have no state that can be read.
UNREADABLE = (Iterator, queue.Queue, queue.SimpleQueue, array.array)
CONTAINERS = (tuple, MutableSequence, MutableMapping, MutableSet, frozenset)
LIBRARIES = frozenset(
    {*sys.stdlib_module_names, "torch", "torchvision", "numpy", "pandas", "rich", "PIL", "matplotlib"}
)
MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
# Attributes that torch gives to modules and loaders.
LIBRARY_ATTRIBUTES = MODULE_ATTRIBUTES | vars(DataLoader(TensorDataset())).keys()
CALLBACK_ATTRIBUTES = frozenset({"model", "params", "_is_disabled"})
# Path of an attribute of a callback, such as "Counter[0].seen".
OF_CALLBACK = re.compile(r"\w+\[\d+\]\.")
ERRORS = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, StopIteration)


@functools.cache  # The first optimizer of a process imports the compiler of torch, which takes seconds.
def optimizer_attributes() -> frozenset[str]:
    """Return the names of the attributes that torch gives to optimizers."""
    return frozenset(vars(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)))


class Slot(NamedTuple):
    """A value of the user that is part of the state.

    Attributes:
        path: Where it is, such as ``"pool.images"``.
        owner: The object or container that holds it.
        name: The name of the attribute, or the key in the container.
        value: The value.
        kind: ``"stateful"``, ``"generator"``, ``"tensor"`` or ``"data"``.
        is_compared: Whether it is stored only if it has changed since the fit started.
    """

    path: str
    owner: Any
    name: Any
    value: Any
    kind: str
    is_compared: bool


class AttributeState:
    """The state of all attributes that the user added, found whenever it is read.

    Numbers, text and containers of these are stored if they have changed since a fit started, so that the settings of a program
    are not restored. Everything else is always stored.

    Args:
        model: The model.
        internal_names: The attributes of the model that are not the user's.
    """

    def __init__(self, model: Model, internal_names: frozenset[str]) -> None:
        self.model, self.internal_names = model, (internal_names | {"attribute_state"}) - CHANGEABLE_SETTINGS
        self._baseline: dict[str, Any] = {}  # of the values that are stored only if they change
        self._latest: dict[str, Any] = {}  # of all values, when the fit started or was resumed
        self._changed: set[str] = set()
        self._has_optimizers = False

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or a pickle, without what belongs to a fit."""
        return {**vars(self), "_baseline": {}, "_latest": {}}

    def start_fit(self, callbacks: list[Callback]) -> None:
        """Move modules and tensors to the device, give all ranks the values of rank 0, and record what may change."""
        self._place(self._walk(callbacks).slots)
        self.start(callbacks)

    def start(self, callbacks: list[Callback] | None = None) -> None:
        """Record the values that are stored only if they change from now on."""
        slots = self._walk(callbacks).slots
        self._baseline = {slot.path: _fingerprint(slot) for slot in slots if slot.is_compared}
        self._latest = {slot.path: _fingerprint_or_none(slot) for slot in slots}
        self._has_optimizers = any(isinstance(slot.value, torch.optim.Optimizer) for slot in slots)

    def end_fit(self, callbacks: list[Callback]) -> None:
        """Record what the fit has changed, which is stored from now on."""
        self._note_changes(self._walk(callbacks).slots)

    def has_changed(self, callbacks: list[Callback]) -> bool:
        """Return whether anything but random generators may have changed since the fit started or was resumed."""
        slots = [slot for slot in self._walk(callbacks).slots if slot.kind != "generator"]
        return any(slot.path not in self._latest or _has_changed(slot, self._latest[slot.path]) for slot in slots)

    def snapshot(self, callbacks: list[Callback]) -> Callable[[], None]:
        """Copy what is small: numbers, text, tensors, and containers of these; return a function that restores it."""
        slots = [
            slot for slot in self._walk(callbacks).slots if slot.kind in ("data", "tensor") and _is_flat(slot.value)
        ]
        before = {slot.path: (_fingerprint(slot), copy.deepcopy(_read(slot)), slot) for slot in slots}

        def restore() -> None:
            now = {slot.path: slot for slot in self._walk(callbacks).slots}
            for path, (fingerprint, value, slot) in before.items():
                if path in now and _fingerprint(now[path]) != fingerprint:
                    self._write(slot, {"kind": slot.kind, "value": value})

        return restore

    def has_optimizers(self) -> bool:
        """Return whether the user has added an optimizer; known after ``start``."""
        return self._has_optimizers

    def unreadable(self, callbacks: list[Callback]) -> dict[str, str]:
        """Return the type of each attribute whose content cannot be stored, by its path."""
        return self._walk(callbacks).unreadable

    def state_dict(self, callbacks: list[Callback] | None = None) -> dict[str, dict[str, Any]]:
        """Return ``{path: {"kind": kind, "value": value}}``, with the attributes of ``callbacks`` if there are any."""
        slots = self._walk(callbacks).slots
        self._note_changes(slots)
        stored = (slot for slot in slots if not slot.is_compared or slot.path in self._changed)
        return {slot.path: {"kind": slot.kind, "value": _read(slot)} for slot in stored}

    def load_state_dict(
        self, state: Mapping[str, Mapping[str, Any]], callbacks: list[Callback] | None = None, *, strict: bool = False
    ) -> None:
        """Restore what ``state_dict`` returned, in the objects that the program has created.

        Args:
            state: The state.
            callbacks: The callbacks of the fit.
            strict: Whether each value must have its place in this program.

        Raises:
            ValueError: If a value cannot be restored.
        """
        walk = self._walk(callbacks)
        slots = {slot.path: slot for slot in walk.slots}
        for path, entry in state.items():
            try:
                slot = slots.get(path) or walk.new_slot(path, entry["kind"])
                if slot is not None:
                    self._write(slot, entry)
                elif strict and not OF_CALLBACK.match(path):  # a callback may be left out
                    raise ValueError("this program has no such attribute before training; create it in __init__")
            except ERRORS as error:
                reason = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
                raise ValueError(f"{path} cannot be restored: {reason}") from error
        self._changed |= {path for path in state if path not in slots or slots[path].is_compared}
        self._latest = {slot.path: _fingerprint_or_none(slot) for slot in self._walk(callbacks).slots}

    def _walk(self, callbacks: list[Callback] | None) -> Walk:
        return Walk(self.model, self.internal_names, callbacks or [])

    def _note_changes(self, slots: list[Slot]) -> None:
        compared = (slot for slot in slots if slot.is_compared and slot.path not in self._changed)
        self._changed |= {slot.path for slot in compared if _fingerprint(slot) != self._baseline.get(slot.path)}

    def _place(self, slots: list[Slot]) -> None:
        """Bring modules and tensors to the device, the same on all ranks."""
        device, tensors = self.model.device, list[Tensor]()
        for slot in slots:
            if isinstance(slot.value, nn.Module):
                slot.value.to(device)
                tensors += [*slot.value.parameters(), *slot.value.buffers()]
            elif slot.kind == "tensor" and not slot.is_compared:
                placed = slot.value if slot.value.device.type == device.type else slot.value.detach().to(device)
                if placed is not slot.value:
                    _assign(slot, placed.requires_grad_(slot.value.requires_grad))
                tensors.append(placed)
        if self.model.strategy.group.world_size > 1:
            self.model.strategy.group.broadcast_tensors(tensors)

    def _write(self, slot: Slot, entry: Mapping[str, Any]) -> None:
        if slot.kind != entry["kind"] and not {slot.kind, entry["kind"]} <= {"tensor", "data"}:
            raise ValueError(f"expected {entry['kind']}, received {type(slot.value).__name__}")
        value = entry["value"]
        if entry["kind"] == "stateful":
            self._load_stateful(slot.value, value)
        elif entry["kind"] == "generator":
            set_generator_state(slot.value, value)
        elif entry["kind"] == "tensor":
            _write_tensor(slot, value, self.model.device)
        else:
            _write_data(slot, decode(value))

    def _load_stateful(self, target: Any, entry: Mapping[str, Any]) -> None:
        state = decode(entry["encoded"]) if "encoded" in entry else entry["plain"]
        if isinstance(target, torch.optim.Optimizer):
            torch_private.mark_as_stepped(target)
            groups = target.param_groups
            load = functools.partial(self.model.strategy.checkpoints.load_optimizer, target)
            if not state_dicts.has_own_state_format(target) and not state_dicts.fits_optimizer(state, target):
                raise ValueError("it is the state of an optimizer of other parameters")
            (target.load_state_dict if state_dicts.has_own_state_format(target) else load)(state)
            if len(groups) == len(target.param_groups):  # another optimizer may share the groups
                for group, loaded in zip(groups, target.param_groups, strict=True):
                    group.update(loaded)
                target.param_groups = groups
        else:
            target.load_state_dict(state)


class Walk:
    """One pass over the attributes of the user.

    Args:
        model: The model.
        internal_names: The attributes of the model that are not the user's.
        callbacks: The callbacks of the fit, whose own ``state_dict`` takes precedence.

    Attributes:
        slots: What is part of the state.
        views: Tensors that share memory with a parameter or a buffer, by their path.
        unreadable: The type of what would be part of it, but cannot be read, by its path.
    """

    def __init__(self, model: Model, internal_names: frozenset[str], callbacks: list[Callback]) -> None:
        self.slots: list[Slot] = []
        self.views: dict[str, Slot] = {}
        self.unreadable: dict[str, str] = {}
        modules = list(model.module.modules())
        members = {} if model.optimizer is None else members_of(model.optimizer)
        # What is stored already, and what was visited.
        owned: list[Any] = [model, *modules, model.optimizer, model.loss, model.metrics, *model.schedules, *callbacks]
        owned += [*members.values(), *model.module.parameters(), *model.module.buffers()]
        self._seen: dict[int, Any] = {id(value): value for value in owned}
        self._memory = {_memory(tensor) for tensor in [*model.module.parameters(), *model.module.buffers()]} - {None}
        self._roots: dict[str, Any] = {"": model}
        self._visit_attributes("", model, internal_names)
        for name, member in members.items():
            self._visit_optimizer(f"optimizer[{name!r}]." if name else "optimizer.", member)
        if not any(hasattr(parameter, "to_local") for parameter in model.module.parameters()):
            self._visit_modules(model.module)
        self._visit_callbacks(callbacks)
        self._visit_sources(walk({f"loss[{i}]": function for i, function in enumerate(model.loss.functions())}))
        if model.train_data is not None:
            self._visit_sources({f"data.{path}": value for path, value in model.train_data.sample_sources().items()})

    def new_slot(self, path: str, kind: str) -> Slot | None:
        """Return a slot for an attribute that the program creates while it trains, None if its owner is missing too."""
        if path in self.views:  # replaced, since a write would change the parameter
            return self.views[path]._replace(value=None)
        prefix, _, name = path.rpartition(".")
        owner = self._roots.get(f"{prefix}." if prefix else "")
        if owner is None or kind in ("stateful", "generator") or not name.isidentifier():
            return None
        return Slot(path, owner, name, None, kind, True)

    def _visit_optimizer(self, prefix: str, optimizer: torch.optim.Optimizer) -> None:
        """Visit the attributes of an optimizer that wraps another one, which its state dict may leave out."""
        if not (type(optimizer).__module__.startswith("torch.") or is_internal(type(optimizer))):
            self._roots[prefix] = optimizer
            self._visit_attributes(prefix, optimizer, optimizer_attributes())

    def _visit_modules(self, module: nn.Module) -> None:
        """Visit attributes of submodules, and buffers that are not in the state dict; both are stored if they change."""
        for name, submodule in module.named_modules():
            prefix = ".".join(["module", *(key for key in name.split(".") if key not in ("", "_orig_mod"))]) + "."
            self._roots[prefix] = submodule
            self._visit_attributes(prefix, submodule, MODULE_ATTRIBUTES, is_compared=True)
            for key in sorted(submodule._non_persistent_buffers_set):
                buffer = submodule._buffers.get(key)
                if buffer is not None:
                    self.slots.append(Slot(f"{prefix}{key}", submodule, key, buffer, "tensor", True))

    def _visit_callbacks(self, callbacks: list[Callback]) -> None:
        counts: dict[str, int] = {}
        for callback in callbacks:
            kind = type(callback)
            if is_internal(kind) or kind.state_dict is not Callback.state_dict:
                continue
            count = counts[kind.__name__] = counts.get(kind.__name__, -1) + 1
            prefix = f"{kind.__name__}[{count}]."
            self._roots[prefix] = callback
            self._visit_attributes(prefix, callback, CALLBACK_ATTRIBUTES)

    def _visit_attributes(
        self, prefix: str, owner: Any, excluded: frozenset[str], depth: int = 0, is_compared: bool = False
    ) -> None:
        for name, value in list(_attributes(owner).items()):
            if name not in excluded:
                self._visit(f"{prefix}{name}", owner, name, value, depth, is_compared)
        for cls in type(owner).__mro__:
            if not is_internal(cls) and is_user_class(cls):
                self._visit_class(f"{prefix}__class__", cls, owner)

    def _visit_class(self, path: str, cls: type, owner: Any) -> None:
        """Visit the numbers of a class that no instance hides, such as a counter of all instances."""
        for name, value in vars(cls).items():
            is_number = type(value) in (int, float) and _is_encodable(value)
            if is_number and not name.startswith("__") and name not in getattr(owner, "__dict__", {}):
                self.slots.append(Slot(f"{path}.{name}", cls, name, value, "data", True))

    def _visit_sources(self, sources: Mapping[str, Any]) -> None:
        """Visit the small values of objects that make samples or the loss, which are stored if they change."""
        for path, source in sources.items():
            if id(source) in self._seen:
                continue
            if isinstance(source, types.FunctionType) and is_user_class(source):  # type: ignore[arg-type]  # it reads the module only
                for name, cell in zip(source.__code__.co_freevars, source.__closure__ or (), strict=True):
                    self._visit_cell(f"{path}.{name}", cell)
            elif type(source) in (list, dict, set, deque) and _is_flat(source) and _is_encodable(source):
                self.slots.append(Slot(path, None, None, source, "data", True))
            elif not isinstance(source, (type, Sampler)) and is_user_class(type(source)):
                self._roots[f"{path}."] = source
                for name, value in _attributes(source).items():
                    if name not in LIBRARY_ATTRIBUTES and _is_flat(value) and _is_encodable(value):
                        kind = "tensor" if isinstance(value, Tensor) else "data"
                        self.slots.append(Slot(f"{path}.{name}", source, name, value, kind, True))

    def _visit_cell(self, path: str, cell: types.CellType) -> None:
        """Visit a number or text that a function declares as nonlocal."""
        with contextlib.suppress(ValueError):  # it has no value yet
            if type(cell.cell_contents) in SCALARS and _is_encodable(cell.cell_contents):
                self.slots.append(Slot(path, cell, "cell_contents", cell.cell_contents, "data", True))

    def _visit(self, path: str, owner: Any, name: Any, value: Any, depth: int, is_compared: bool) -> None:
        kind = _kind(value)
        if kind is None or (kind != "data" and id(value) in self._seen):
            return
        is_encodable = kind != "data" or _is_encodable(value)
        is_container = isinstance(value, CONTAINERS)
        is_too_large = is_container and not is_encodable and len(value) > MAX_COMPARED
        if len(self.slots) >= MAX_SLOTS or depth > MAX_DEPTH or kind == "unreadable" or is_too_large:
            self.unreadable[path] = type(value).__name__
            return
        if kind != "data":
            self._seen[id(value)] = value
        if kind == "object":
            self._visit_attributes(f"{path}.", value, frozenset(), depth + 1, is_compared)
        elif not is_encodable and is_container:
            self._visit_items(path, value, depth, is_compared)
        elif not is_encodable:
            self.unreadable[path] = type(value).__name__
        elif kind == "tensor" and _memory(value) in self._memory:  # a view of a parameter, which is stored elsewhere
            self.views[path] = Slot(path, owner, name, value, kind, is_compared)
        elif kind != "data" or not (isinstance(owner, (tuple, set, frozenset)) or self._is_owned(value)):
            is_plain = kind == "data" and _is_small(value) and not _has_tensor(value)
            self.slots.append(Slot(path, owner, name, value, kind, is_plain or (is_compared and kind == "tensor")))
        if isinstance(value, torch.optim.Optimizer):
            self._visit_optimizer(f"{path}.", value)

    def _is_owned(self, value: Any) -> bool:
        """Return whether ``value`` is a container of parameters that are stored elsewhere, such as the weights of an LSTM."""
        tensors = [leaf for leaf in leaves(_iterable(value)) if isinstance(leaf, Tensor)]
        return bool(tensors) and all(id(tensor) in self._seen or _memory(tensor) in self._memory for tensor in tensors)

    def _visit_items(self, path: str, container: Any, depth: int, is_compared: bool) -> None:
        """Visit the items of a container with optimizers, modules or other objects."""
        if isinstance(container, Mapping):
            items = [(f"{path}[{key!r}]", key, value) for key, value in container.items()]
        else:
            items = [(f"{path}[{i}]", i, value) for i, value in enumerate(container)]
        for item_path, key, value in items:
            self._visit(item_path, container, key, value, depth + 1, is_compared)


def warn_of_unreadable(unreadable: Mapping[str, str]) -> None:
    """Warn once of attributes that a resumed run does not restore."""
    if unreadable:
        shown = ", ".join(f"{path} ({kind})" for path, kind in list(unreadable.items())[:5])
        warn(
            f"A checkpoint cannot hold {shown}, so a resumed run starts with what the program creates. Define state_dict() and "
            "load_state_dict() in its class, or replace an iterator by an index."
        )


def _attributes(owner: Any) -> dict[str, Any]:
    """Return the attributes of an object, those in ``__slots__`` too."""
    slots = [name for cls in type(owner).__mro__ for name in _slot_names(cls)]
    return {**{name: getattr(owner, name) for name in slots if hasattr(owner, name)}, **getattr(owner, "__dict__", {})}


def _slot_names(cls: type) -> list[str]:
    names = vars(cls).get("__slots__", ())
    names = [names] if isinstance(names, str) else names
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _kind(value: Any) -> str | None:
    """Return what to do with a value; None for what does not change or is stored elsewhere."""
    if value is None or type(value) in (bool, int, float, str, complex, bytes) or isinstance(value, np.generic):
        return "data"
    if isinstance(value, Tensor):
        return "tensor"
    if isinstance(value, GENERATOR_TYPES):
        return "generator"
    if isinstance(value, CONSTANTS) or (is_internal(type(value)) and not hasattr(value, "state_dict")):
        return None
    if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
        return "stateful"
    if isinstance(value, (np.ndarray, *CONTAINERS)):
        return "data"
    if isinstance(value, UNREADABLE):
        return "unreadable"
    has_attributes = hasattr(value, "__dict__") or any(map(_slot_names, type(value).__mro__))
    if not has_attributes:
        return None
    if not _is_of_library(type(value)):
        return "object"
    holds_state = any(isinstance(v, (Tensor, np.ndarray, *GENERATOR_TYPES)) for v in _attributes(value).values())
    return "unreadable" if holds_state else None


def _is_of_library(cls: type) -> bool:
    """Return whether ``cls`` was installed, so that its attributes are not ours to restore."""
    if cls.__module__.partition(".")[0] in LIBRARIES:
        return True
    path = str(getattr(sys.modules.get(cls.__module__), "__file__", None) or "")
    return "site-packages" in path or "dist-packages" in path


def _plain(value: Any) -> Any:
    """Return a subclass of a container as the container that a file can hold."""
    for base in (list, dict, set, deque):
        if isinstance(value, base) and type(value).__module__.partition(".")[0] not in ("builtins", "collections"):
            return deque(value, value.maxlen) if isinstance(value, deque) else base(value)
    return value


def _is_encodable(value: Any) -> bool:
    """Return whether a file can hold a container; of a large one, only some items are tried."""
    plain = _plain(value)
    if isinstance(plain, (list, deque)) and len(plain) > MAX_COMPARED:
        plain = [plain[i] for i in range(0, len(plain), len(plain) // 100)]
    try:
        encode(plain)
    except (EncodingError, RuntimeError):
        return False
    return True


def _is_small(value: Any) -> bool:
    return not hasattr(value, "__len__") or len(value) <= MAX_COMPARED


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, (Tensor, np.ndarray)) for leaf in leaves(_iterable(value)))


def _iterable(value: Any) -> Any:
    return list(value) if isinstance(value, (deque, set, frozenset)) else value


def _is_flat(value: Any) -> bool:
    """Return whether ``value`` is small, and a number, text, tensor, array, or a container of numbers and text."""
    if isinstance(value, Tensor):
        return value.layout == torch.strided and value.numel() <= MAX_COMPARED
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufc" and value.size <= MAX_COMPARED
    if type(value) in (list, dict, set, deque):
        items = [*value, *value.values()] if isinstance(value, dict) else value
        return len(value) <= MAX_COMPARED and all(type(item) in SCALARS for item in items)
    return type(value) in SCALARS


def _memory(tensor: Tensor) -> int | None:
    """Return the address of the memory of ``tensor``; None if it has no memory."""
    if tensor.layout != torch.strided or tensor.is_meta or is_lazy(tensor) or hasattr(tensor, "to_local"):
        return None
    return tensor.untyped_storage().data_ptr() or None


def _fingerprint(slot: Slot) -> Any:
    """Return what differs when the value has changed."""
    if slot.kind == "tensor":
        return id(slot.value), torch_private.version(slot.value)
    return repr(encode(_plain(slot.value)))


def _fingerprint_or_none(slot: Slot) -> Any:
    """Return what differs when any value has changed; None if that would take long or is unknown."""
    if isinstance(slot.value, nn.Module):
        tensors = [*slot.value.parameters(), *slot.value.buffers()]
        return [(id(tensor), torch_private.version(tensor)) for tensor in tensors]
    return _fingerprint(slot) if slot.kind == "tensor" or slot.is_compared else None


def _has_changed(slot: Slot, before: Any) -> bool:
    now = _fingerprint_or_none(slot)
    return now is None or now != before


def _read(slot: Slot) -> Any:
    """Return the value as a file can hold it."""
    if slot.kind == "generator":
        return get_generator_state(slot.value)
    if slot.kind == "tensor":
        return slot.value.detach()
    if slot.kind == "data":
        return encode(_plain(slot.value))
    is_module = isinstance(slot.value, nn.Module)
    state = state_dicts.unwrapped_state_dict(slot.value) if is_module else slot.value.state_dict()
    try:
        serialization.to_serializable(state)
    except TypeError:
        return {"encoded": encode(state)}
    return {"plain": state}


def _write_tensor(slot: Slot, value: Tensor, device: torch.device) -> None:
    current = slot.value
    if isinstance(current, Tensor) and current.shape == value.shape and current.dtype == value.dtype:
        with torch.no_grad():
            current.copy_(value)
        return
    target = current.device if isinstance(current, Tensor) else device
    needs_grad = isinstance(current, Tensor) and current.requires_grad
    _assign(slot, value.detach().to(target).clone().requires_grad_(needs_grad))


def _write_data(slot: Slot, value: Any) -> None:
    """Replace the content of a container, which other objects may refer to, or the value."""
    current = slot.value
    if isinstance(current, np.ndarray) and isinstance(value, np.ndarray) and current.shape == value.shape:
        current[...] = value
    elif isinstance(current, list) and isinstance(value, list):
        current[:] = value
    elif isinstance(current, deque) and isinstance(value, deque) and current.maxlen == value.maxlen:
        current.clear()
        current.extend(value)
    elif isinstance(current, (dict, set)) and isinstance(value, (dict, set)):
        current.clear()
        current.update(value)
    else:
        _assign(slot, value)


def _assign(slot: Slot, value: Any) -> None:
    if isinstance(slot.owner, (MutableMapping, MutableSequence)):
        slot.owner[slot.name] = value
    else:
        setattr(slot.owner, slot.name, value)
