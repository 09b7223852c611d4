"""Objects that can be reached from data, transforms and modules."""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import itertools
import numbers
import site
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

# Objects that one walk visits, nearest first.
MAX_OBJECTS = 20_000
# Items of a list, tuple, deque or dict that are visited, the first ones.
MAX_ITEMS = 1_000

# Objects without other objects of interest.
LEAVES = (
    numbers.Number, str, bytes, bytearray, memoryview, type(None), range, slice, torch.Tensor, np.ndarray, np.generic,
    torch.dtype, torch.device, types.BuiltinFunctionType, types.CodeType, types.FrameType, types.GeneratorType,
)  # fmt: skip
LIBRARIES = frozenset({"torch", "numpy", "easytorch"})
# Libraries of tables and images: large graphs without generators.
LIBRARIES_OF_LEAVES = frozenset({"pyarrow", "pandas", "polars", "PIL"})
CONTAINERS_OF_STDLIB = frozenset({"builtins", "collections", "functools"})
# Attributes of torch that hold no objects of the user: hooks and tensors of a module, running workers of a loader.
MODULE_ATTRIBUTES = frozenset(vars(nn.Module())) - {"_modules"}
LOADER_ATTRIBUTES = frozenset({"_iterator"})


def walk(roots: Mapping[str, Any], exclude: Iterable[Any] = ()) -> dict[str, Any]:
    """Return the objects that can be reached from ``roots``, each once, by their path.

    The walk follows items of lists, tuples, deques and dicts, attributes and slots, bound methods, partials, closures,
    defaults, classes, and the globals that functions of the user name. It does not enter tensors, arrays, sets, modules,
    tables, images, nor objects of the standard library. It goes from near to far, in an order that only depends on the program,
    and stops after ``MAX_OBJECTS`` objects; of a container it visits the first ``MAX_ITEMS`` items.

    Args:
        roots: Objects by name.
        exclude: Objects that are not visited.

    Examples:
        >>> walk({"dataset": dataset})
        {'dataset': <Noisy>, 'dataset.transform': <Shift>, 'dataset.transform.rng': Generator(PCG64)}
    """
    seen = {id(value) for value in exclude}
    queue = collections.deque((path, value) for path, value in roots.items() if not isinstance(value, LEAVES))
    found: dict[str, Any] = {}  # it also holds a reference to each object, so that no id is used twice
    while queue and len(found) < MAX_OBJECTS:
        path, value = queue.popleft()
        if id(value) in seen or path in found:
            continue
        seen.add(id(value))
        found[path] = value
        queue.extend(
            (path + step, child)
            for step, child in children(value)
            if not isinstance(child, LEAVES) and id(child) not in seen
        )
    return found


def is_user_class(kind: type) -> bool:
    """Return whether ``kind`` is a class of the program, not of an installed package."""
    return _origin(kind.__module__) == "user"


@functools.cache
def _origin(name: str) -> str:
    """Return whether a Python module belongs to the ``"stdlib"``, to an installed ``"library"`` or to the ``"user"``."""
    root = name.partition(".")[0]
    file = getattr(sys.modules.get(name), "__file__", None)
    if root in LIBRARIES or root in LIBRARIES_OF_LEAVES:
        return "library"
    if root != "__main__" and root in sys.stdlib_module_names and (file is None or file.startswith(_STDLIB)):
        return "stdlib"
    return "library" if file is not None and file.startswith(_SITE_PACKAGES) else "user"


def _package_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = {paths["purelib"], paths["platlib"], site.getusersitepackages(), *site.getsitepackages()}
    return tuple(sorted(folders))


_STDLIB = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib"))
_SITE_PACKAGES = _package_folders()


def children(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the objects that ``value`` refers to, with the end of their path."""
    if isinstance(value, types.FunctionType):
        yield from _function_children(value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif isinstance(value, functools.partial):
        yield ".func", value.func
        yield from _items(".args", value.args)
        yield from _items("", value.keywords)
    elif isinstance(value, (staticmethod, classmethod)):
        yield ".__func__", value.__func__
    elif isinstance(value, property):
        yield ".fget", value.fget
    elif isinstance(value, type):
        yield from _class_children(value)
    elif hasattr(type(value), "_generator_sources"):  # a Model, which refers to everything
        yield from ((f".{name}", source) for name, source in value._generator_sources().items())
    elif not isinstance(value, types.ModuleType) and _may_enter(value):
        yield from _items("", value)
        yield from ((f".{name}", attribute) for name, attribute in sorted(get_attributes(value).items()))
        yield ".__class__", type(value)


def _may_enter(value: Any) -> bool:
    kind = type(value)
    if _origin(kind.__module__) == "stdlib":
        is_namespace = isinstance(value, (types.SimpleNamespace, argparse.Namespace, types.MappingProxyType))
        return is_namespace or kind.__module__ in CONTAINERS_OF_STDLIB
    return kind.__module__.partition(".")[0] not in LIBRARIES_OF_LEAVES


def _items(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the first items of a container of Python; nothing for other objects."""
    if isinstance(value, (dict, types.MappingProxyType)):
        for position, (key, item) in enumerate(itertools.islice(value.items(), MAX_ITEMS)):
            # The text of another key may contain its address.
            yield f"{path}[{key!r}]" if isinstance(key, (str, int)) else f"{path}[#{position}]", item
    elif isinstance(value, (list, tuple, collections.deque)):
        for position, item in enumerate(itertools.islice(value, MAX_ITEMS)):
            yield f"{path}[{position}]", item


def get_attributes(value: Any) -> dict[str, Any]:
    """Return the attributes and slots of an object, without those that its class computes."""
    # A proxy may answer __getattr__("__dict__") with the attributes of another object.
    has_dict = any("__dict__" in vars(kind) for kind in type(value).__mro__)
    attributes = dict(object.__getattribute__(value, "__dict__")) if has_dict else {}
    for kind in type(value).__mro__:
        for name, member in vars(kind).items():
            if isinstance(member, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):  # a slot without a value
                    attributes.setdefault(name, member.__get__(value, kind))
    skipped: frozenset[str] = frozenset()
    if isinstance(value, nn.Module):
        skipped = MODULE_ATTRIBUTES
    elif isinstance(value, DataLoader):
        skipped = LOADER_ATTRIBUTES
    return {name: attribute for name, attribute in attributes.items() if isinstance(name, str) and name not in skipped}


def _class_children(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield what a class of the user defines, and its bases."""
    if not is_user_class(kind):
        return
    for name, member in sorted(vars(kind).items()):
        if not isinstance(member, types.MemberDescriptorType):
            yield f".{name}", member
    for base in kind.__bases__:
        yield f".{base.__name__}", base


def _function_children(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the closure, the defaults and the attributes of a function, and the globals that it names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f".{name}", cell.cell_contents
        except ValueError:  # a variable without a value
            continue
    yield from _items(".__defaults__", function.__defaults__)
    yield from _items("", function.__kwdefaults__)
    yield from _items("", vars(function))
    if _origin(str(function.__globals__.get("__name__"))) != "user":
        return
    names = _global_names(function.__code__)
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        if not isinstance(value, types.ModuleType):
            yield f".{name}", value
        elif _origin(value.__name__) == "user":  # utils.rng
            yield from ((f".{name}.{key}", vars(value)[key]) for key in sorted(names & vars(value).keys()))


@functools.lru_cache(maxsize=4096)
def _global_names(code: types.CodeType) -> frozenset[str]:
    """Return the names of globals and attributes in ``code`` and in the functions that it defines."""
    inner = (_global_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return frozenset(code.co_names).union(*inner)
