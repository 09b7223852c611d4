"""Random number generators: snapshots of global ones and of those that objects have."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from easytorch._utils.object_graph import walk

GENERATOR_TYPES = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator)

# NumPy's generators have integers of 128 bits. Files store them as text with this prefix.
INT_PREFIX = "int "


# Global generators


def get_rng_state() -> dict[str, Any]:
    """Return the states of the generators of Python, NumPy, torch and all accelerators, as tensors and plain values."""
    (version, internal, gauss), (name, keys, position, has_gauss, cached), torch_state = get_host_rng_state()
    states: dict[str, Any] = {
        "python": [version, torch.from_numpy(np.array(internal, dtype=np.int64)), gauss],  # faster than torch.tensor
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


# Generators that belong to objects


def private_generator(shuffle: bool | None) -> torch.Generator | None:
    """Return a generator for a loader without ``shuffle``.

    A ``DataLoader`` draws a number at the start of every epoch. Without shuffling it need not change the global generator.
    """
    return None if shuffle else torch.Generator()


def select_generators(objects: Mapping[str, Any]) -> dict[str, Any]:
    """Return the random number generators among ``objects``, without the global ones."""
    return {path: value for path, value in objects.items() if isinstance(value, GENERATOR_TYPES) and _is_private(value)}


def find_generators(roots: Mapping[str, Any]) -> dict[str, Any]:
    """Return the random number generators that can be reached from ``roots``, by their path; see ``walk`` for the limits."""
    return select_generators(walk(roots))


def _is_private(generator: Any) -> bool:
    """Return whether ``generator`` has a state that can be set."""
    if isinstance(generator, random.SystemRandom) or generator is torch.default_generator:
        return False
    # The functions of ``random`` and ``numpy.random`` are methods of hidden global generators.
    if generator is getattr(random.random, "__self__", None) or generator is getattr(np.random.rand, "__self__", None):
        return False
    return not any(generator is other for other in getattr(torch.cuda, "default_generators", ()))


def get_generator_states(generators: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of each generator, as tensors and plain values."""
    return {path: get_generator_state(generator) for path, generator in generators.items()}


def set_generator_states(generators: Mapping[str, Any], states: Mapping[str, Any]) -> list[str]:
    """Restore the states that ``get_generator_states`` returned; return the paths of states without a generator.

    A generator is found by its path. If paths changed, but neither the number nor the kinds of the generators, their order
    decides.
    """
    if generators.keys() != states.keys():
        kinds = [
            [_kind_of_state(get_generator_state(g)) for g in generators.values()],
            [*map(_kind_of_state, states.values())],
        ]
        if kinds[0] == kinds[1]:
            states = dict(zip(generators, states.values(), strict=True))
    missing = []
    for path, state in states.items():
        if path in generators and _kind_of_state(get_generator_state(generators[path])) == _kind_of_state(state):
            set_generator_state(generators[path], state)
        else:
            missing.append(path)
    return missing


@contextlib.contextmanager
def preserve_generators(source: Any) -> Iterator[None]:
    """Restore the generators of ``source``, any object or a list of objects, at the end of the block."""
    generators = find_generators({"source": source})
    states = get_generator_states(generators)
    try:
        yield
    finally:
        set_generator_states(generators, states)


def get_generator_state(generator: Any) -> Any:
    """Return the state of a generator, as tensors and plain values."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        version, internal, gauss = generator.getstate()
        return [version, torch.tensor(internal, dtype=torch.int64), gauss]
    if isinstance(generator, np.random.RandomState):
        return _encode(generator.get_state(legacy=False))
    return _encode(getattr(generator, "bit_generator", generator).state)


def set_generator_state(generator: Any, state: Any) -> None:
    """Restore a state that ``get_generator_state`` returned."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state.cpu())
    elif isinstance(generator, random.Random):
        generator.setstate((state[0], tuple(state[1].tolist()), state[2]))
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(_decode(state))
    else:
        getattr(generator, "bit_generator", generator).state = _decode(state)


def seed_generator(generator: Any, digest: bytes) -> None:
    """Seed ``generator`` with at least 16 bytes."""
    if isinstance(generator, torch.Generator):
        generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    elif isinstance(generator, random.Random):
        generator.seed(digest)
    elif isinstance(generator, np.random.RandomState):
        bits = getattr(np.random, generator.get_state(legacy=False)["bit_generator"])(_get_seed(digest))
        generator.set_state(np.random.RandomState(bits).get_state(legacy=False))
    else:
        bits = getattr(generator, "bit_generator", generator)
        bits.state = type(bits)(_get_seed(digest)).state


def _get_seed(digest: bytes) -> int:
    return int.from_bytes(digest[:16], "little")


def _kind_of_state(state: Any) -> Any:
    """Return what distinguishes states of different kinds of generators."""
    if isinstance(state, Mapping):
        return state.get("bit_generator")
    return ("torch", state.numel()) if isinstance(state, torch.Tensor) else "python"


def _encode(state: Any) -> Any:
    """Return a state of NumPy with integers as text and arrays as tensors, which files can store."""
    if isinstance(state, Mapping):
        return {key: _encode(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        # Files have no unsigned integers of 64 bits.
        return torch.from_numpy(state.astype(np.uint64).view(np.int64))
    return f"{INT_PREFIX}{state}" if isinstance(state, int) and not isinstance(state, bool) else state


def _decode(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {key: _decode(value) for key, value in state.items()}
    if isinstance(state, torch.Tensor):
        return state.cpu().numpy().view(np.uint64)
    return int(state.removeprefix(INT_PREFIX)) if isinstance(state, str) and state.startswith(INT_PREFIX) else state
