"""Random number generators: snapshots of global ones and of a loader's."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

GENERATOR_TYPES = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)

# Attributes in which datasets, transforms and collate functions have others.
NESTED_ATTRIBUTES = ("collate", "dataset", "datasets", "transform", "target_transform", "transforms", "_modules")

# NumPy's generators have integers of 128 bits. Files store them as text with this prefix.
INT_PREFIX = "int "


# Global generators


def get_rng_state() -> dict[str, Any]:
    """Return the states of the generators of Python, NumPy, torch and all accelerators, as tensors and plain values."""
    (version, internal, gauss), (name, keys, position, has_gauss, cached), torch_state = get_host_rng_state()
    states: dict[str, Any] = {
        "python": [version, torch.tensor(internal, dtype=torch.int64), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch_state,
    }
    if torch.accelerator.is_available():
        backend = torch.get_device_module()
        states["accelerators"] = [backend.get_rng_state(i) for i in range(torch.accelerator.device_count())]
    return states


def set_rng_state(states: Mapping[str, Any]) -> None:
    """Restore the states that ``get_rng_state`` returned; states of missing accelerators are ignored."""
    version, internal, gauss = states["python"]
    name, keys, *rest = states["numpy"]
    python_state = (version, tuple(internal.tolist()), gauss)
    numpy_state = (name, keys.cpu().numpy().astype(np.uint32), *rest)
    set_host_rng_state((python_state, numpy_state, states["torch"].cpu()))
    if torch.accelerator.is_available():
        backend = torch.get_device_module()
        for i, state in enumerate(states.get("accelerators", [])[: torch.accelerator.device_count()]):
            backend.set_rng_state(state.cpu(), i)


@contextlib.contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Restore the states of all global generators at the end of the block."""
    states = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(states)


def get_host_rng_state() -> tuple[Any, Any, torch.Tensor]:
    """Return the states of Python's, NumPy's and torch's CPU generator, in the types of these libraries.

    This takes a few microseconds, so that it can run for every sample.
    """
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_host_rng_state(states: tuple[Any, Any, torch.Tensor]) -> None:
    """Restore the states that ``get_host_rng_state`` returned."""
    python_state, numpy_state, torch_state = states
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    torch.set_rng_state(torch_state)


def get_torch_rng_state(device: torch.device) -> list[torch.Tensor]:
    """Return the states of torch's generators alone: that of the CPU and, on an accelerator, that of ``device``."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def set_torch_rng_state(states: list[torch.Tensor], device: torch.device) -> None:
    """Restore the states that ``get_torch_rng_state`` returned."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module(device).set_rng_state(state, device)


# Generators of a loader and of its dataset


def private_generator(shuffle: bool | None) -> torch.Generator | None:
    """Return a generator for a loader without ``shuffle``.

    A ``DataLoader`` draws a number at the start of every epoch. Without shuffling it need not change the global generator.
    """
    return None if shuffle else torch.Generator()


def order_sources(loader: Any) -> list[Any]:
    """Return the loader and its samplers, whose generators decide about the order of samples.

    Their states are restored to the start of an epoch when a run resumes in its middle.
    """
    batch_sampler = getattr(loader, "batch_sampler", None)
    sampler = getattr(batch_sampler, "sampler", getattr(loader, "sampler", None))
    # An array as a sampler has no truth value.
    return [source for source in (loader, batch_sampler, sampler) if source is not None]


def sample_sources(loader: Any) -> list[Any]:
    """Return the objects whose generators decide about the samples: nested datasets, transforms and the collate function."""
    return _find_nested([getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)])


def find_generators(*sources: Any) -> list[Any]:
    """Return the random number generators among the attributes of ``sources``, each once."""
    generators: list[Any] = []
    for source in sources:
        for value in getattr(source, "__dict__", {}).values():
            has_state = isinstance(value, GENERATOR_TYPES) and not isinstance(value, random.SystemRandom)
            if has_state and all(value is not generator for generator in generators):
                generators.append(value)
    return generators


def get_generator_states(generators: list[Any]) -> list[Any]:
    """Return the state of each generator, as tensors and plain values."""
    return [_get_state(generator) for generator in generators]


def set_generator_states(generators: list[Any], states: Iterable[Any]) -> None:
    """Restore the states that ``get_generator_states`` returned."""
    for generator, state in zip(generators, states, strict=True):
        _set_state(generator, state)


@contextlib.contextmanager
def preserve_generators(source: Any) -> Iterator[None]:
    """Restore the generators of ``source``, an object or a list of objects, at the end of the block."""
    generators = find_generators(*_find_nested(source))
    states = get_generator_states(generators)
    try:
        yield
    finally:
        set_generator_states(generators, states)


def _find_nested(source: Any) -> list[Any]:
    """Return ``source`` and the objects nested in it, each once."""
    objects: list[Any] = []
    queue = [source]
    while queue:
        value = queue.pop()
        if isinstance(value, Mapping):
            queue += value.values()
        elif isinstance(value, (list, tuple)):
            queue += value
        elif (
            hasattr(value, "__dict__") and not isinstance(value, torch.Tensor) and all(value is not o for o in objects)
        ):
            objects.append(value)
            queue += [vars(value).get(name) for name in NESTED_ATTRIBUTES]
    return objects


def _get_state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        version, internal, gauss = generator.getstate()
        return [version, list(internal), gauss]
    if isinstance(generator, np.random.RandomState):
        return _encode(generator.get_state(legacy=False))
    return _encode(generator.bit_generator.state)


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state.cpu())
    elif isinstance(generator, random.Random):
        generator.setstate((state[0], tuple(state[1]), state[2]))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(_decode(state))
    else:
        generator.bit_generator.state = _decode(state)


def _encode(state: Any) -> Any:
    """Return a state of NumPy with integers as text, which files can store."""
    if isinstance(state, Mapping):
        return {key: _encode(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        return [_encode(value) for value in state.tolist()]
    return f"{INT_PREFIX}{state}" if isinstance(state, int) and not isinstance(state, bool) else state


def _decode(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {key: _decode(value) for key, value in state.items()}
    if isinstance(state, list):
        # The words have up to 64 bits, too many for an int64.
        return np.asarray([_decode(value) for value in state], dtype=np.uint64)
    return int(state.removeprefix(INT_PREFIX)) if isinstance(state, str) and state.startswith(INT_PREFIX) else state
