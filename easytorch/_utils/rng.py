"""Random number generators: snapshots of the global ones and of a loader's."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch


def order_sources(loader: Any) -> list[Any]:
    """Return what of ``loader`` may draw random numbers for the order: a resumed pass draws them again."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    inner = getattr(batch_sampler, "sampler", getattr(loader, "sampler", None))  # an array has no truth value
    return [part for part in (loader, batch_sampler, inner) if part is not None]


def sample_sources(loader: Any) -> list[Any]:
    """Return what of ``loader`` may draw random numbers for the samples: datasets within datasets, their transforms, be they
    listed or within each other, and the collation.
    """
    return _parts_of([getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)])


def _parts_of(source: Any) -> list[Any]:
    parts: list[Any] = []
    waiting = [source]
    while waiting:
        part = waiting.pop()
        if isinstance(part, (list, tuple, Mapping)):
            waiting += part.values() if isinstance(part, Mapping) else part
        elif hasattr(part, "__dict__") and not isinstance(part, torch.Tensor) and all(part is not one for one in parts):
            parts.append(part)
            waiting += [vars(part).get(name) for name in INSIDE]
    return parts


INSIDE = ("collate", "dataset", "datasets", "transform", "target_transform", "transforms", "_modules")
KINDS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


def find_generators(*parts: Any) -> list[Any]:
    """Return the random generators among the attributes of ``parts``, each once."""
    found: list[Any] = []
    for part in parts:
        for value in getattr(part, "__dict__", {}).values():
            has_state = isinstance(value, KINDS) and not isinstance(value, random.SystemRandom)
            if has_state and all(value is not one for one in found):
                found.append(value)
    return found


def get_generator_states(generators: list[Any]) -> list[Any]:
    """Return the state of each generator, as tensors and plain values."""
    states: list[Any] = []
    for generator in generators:
        if isinstance(generator, torch.Generator):
            states.append(generator.get_state())
        elif isinstance(generator, random.Random):
            version, internal, gauss = generator.getstate()
            states.append([version, list(internal), gauss])
        elif isinstance(generator, np.random.RandomState):
            states.append(_as_text(generator.get_state(legacy=False)))
        else:
            states.append(_as_text(generator.bit_generator.state))
    return states


def set_generator_states(generators: list[Any], states: Iterable[Any]) -> None:
    """Put each generator back to its state."""
    for generator, state in zip(generators, states, strict=True):
        if isinstance(generator, torch.Generator):
            generator.set_state(state.cpu())
        elif isinstance(generator, random.Random):
            generator.setstate((state[0], tuple(state[1]), state[2]))
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(_from_text(state))
        else:
            generator.bit_generator.state = _from_text(state)


@contextlib.contextmanager
def preserve_generators(source: Any) -> Iterator[None]:
    """Put the generators that ``source``, one or several, has of its own back in the end, as if nothing had been loaded."""
    generators = find_generators(*_parts_of(source))
    states = get_generator_states(generators)
    try:
        yield
    finally:
        set_generator_states(generators, states)


def _as_text(state: Any) -> Any:
    """NumPy's generators have integers of 128 bits, which files of tensors and plain values cannot hold."""
    if isinstance(state, Mapping):
        return {key: _as_text(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        return [_as_text(value) for value in state.tolist()]
    return f"int {state}" if isinstance(state, int) and not isinstance(state, bool) else state


def _from_text(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {key: _from_text(value) for key, value in state.items()}
    if isinstance(state, list):  # of words of up to 64 bits, which fit in no int64
        return np.asarray([_from_text(value) for value in state], dtype=np.uint64)
    return int(state[4:]) if isinstance(state, str) and state.startswith("int ") else state


def get_rng_state() -> dict[str, Any]:
    """Return the states of the generators of Python, NumPy, torch and each accelerator, as tensors and plain values."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    states: dict[str, Any] = {
        "python": [version, torch.tensor(internal, dtype=torch.int64), gauss],
        "numpy": [
            name,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.accelerator.is_available():
        kind = torch.get_device_module()
        states["accelerators"] = [kind.get_rng_state(i) for i in range(torch.accelerator.device_count())]
    return states


def set_rng_state(states: Mapping[str, Any]) -> None:
    """Put every generator back to where ``random_states`` found it."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"].cpu())
    if torch.accelerator.is_available():
        kind = torch.get_device_module()
        for i, state in enumerate(states.get("accelerators", [])[: torch.accelerator.device_count()]):
            kind.set_rng_state(state.cpu(), i)


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


@contextlib.contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Put every generator back in the end, so that what happens inside leaves no trace."""
    states = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(states)


def private_generator(shuffle: bool | None) -> torch.Generator | None:
    """A loader draws a number whenever it begins; one without an order to draw need not change anybody else's numbers."""
    return None if shuffle else torch.Generator()
