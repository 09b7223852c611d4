"""Data whose generators and counters are in unusual places."""

from __future__ import annotations

import functools
import random
import types
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, default_collate

from easytorch.data.seeded import seeded
from tests.common_resume import ROWS, Shift, X, Y

MODULE_RNG = np.random.default_rng(5)
HELPERS = types.SimpleNamespace(rng=random.Random(6))


def restart():
    """Give the generators of this module the states that a new process gives them."""
    global MODULE_RNG
    MODULE_RNG = np.random.default_rng(5)
    HELPERS.rng = random.Random(6)


class Transformed(Dataset):
    """Keeps what it calls under the attribute ``name``."""

    def __init__(self, name, value, call):
        setattr(self, name, value)
        self.call = call

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return X[index] + 0.1 * float(self.call(self)), Y[index]


class Slotted:
    __slots__ = ("rng",)

    def __init__(self):
        self.rng = np.random.default_rng(3)

    def draw(self):
        return self.rng.random()


class Wrapped(Dataset):
    """A wrapper around a dataset, under any name."""

    def __init__(self, base):
        self.base = base

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return self.base[index]


class ModuleLevel(Dataset):
    """Draws from the generators of its module, partly in a function."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return X[index] + 0.1 * draw_from_module(), Y[index]


def draw_from_module():
    return float(MODULE_RNG.random()) + HELPERS.rng.random()


class ClassLevel(Dataset):
    """Has a generator in the class."""

    rng: Any

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return X[index] + 0.1 * float(self.rng.random()), Y[index]


def make_class_level():
    return type("OwnClass", (ClassLevel,), {"rng": np.random.default_rng(3), "__module__": __name__})()


def make_closure():
    rng = np.random.default_rng(3)
    return lambda: rng.random()


def draw(rng):
    return rng.random()


def make_noise(rng, samples):
    x, y = default_collate(samples)
    return x + 0.1 * rng.normal(), y


class BoundCollate:
    def __init__(self):
        self.settings = {"rng": random.Random(3)}

    def collate(self, samples):
        x, y = default_collate(samples)
        return x + 0.1 * self.settings["rng"].random(), y


def rng():
    return np.random.default_rng(3)


DATASETS = {
    "attribute of any name": lambda: Transformed("augment", Shift(), lambda self: self.augment(0)),
    "list": lambda: Transformed("rngs", [rng(), random.Random(3)], lambda self: sum(r.random() for r in self.rngs)),
    "dict": lambda: Transformed("rngs", {"noise": {"x": rng()}}, lambda self: self.rngs["noise"]["x"].random()),
    "partial": lambda: Transformed("noise", functools.partial(draw, rng=rng()), lambda self: self.noise()),
    "closure": lambda: Transformed("noise", make_closure(), lambda self: self.noise()),
    "bound method": lambda: Transformed("noise", Slotted().draw, lambda self: self.noise()),
    "slots": lambda: Transformed("noise", Slotted(), lambda self: self.noise.draw()),
    "wrapper": lambda: Wrapped(Wrapped(Transformed("rng", rng(), lambda self: self.rng.random()))),
    "module": ModuleLevel,
    "class": make_class_level,
    "bit generator": lambda: Transformed("bits", np.random.PCG64(3), lambda self: (self.bits.random_raw() % 97) / 97),
    "namespace": lambda: Transformed("config", types.SimpleNamespace(rng=rng()), lambda self: self.config.rng.random()),
    "seeded": lambda: seeded(Transformed("rng", rng(), lambda self: self.rng.random())),
}


class SamplerAround(Sampler):
    """Keeps a sampler under the attribute ``base``."""

    def __init__(self):
        self.base = RandomSampler(ROWS, generator=torch.Generator().manual_seed(4))

    def __len__(self):
        return 50

    def __iter__(self):
        return iter(list(self.base))


class CountingBatchSampler:
    """Counts its epochs by itself."""

    epoch: Any = 0

    def __len__(self):
        return 7

    def __iter__(self):
        self.epoch += 1
        order = list(range(50))
        random.Random(self.epoch).shuffle(order)
        return iter([order[i : i + 8] for i in range(0, 50, 8)])


class ShuffledInPlace(Sampler):
    """Shuffles one list again and again."""

    def __init__(self):
        self.indices = list(range(50))

    def __len__(self):
        return 50

    def __iter__(self):
        random.shuffle(self.indices)
        return iter(list(self.indices))


class BucketsInPlace:
    """Shuffles batches of different sizes in place."""

    def __init__(self):
        self.batches = [list(range(i, min(i + 8, 50))) for i in range(0, 50, 8)]

    def __len__(self):
        return 7

    def __iter__(self):
        random.shuffle(self.batches)
        yield from [list(batch) for batch in self.batches]


class ArrayInPlace(Sampler):
    """Has an order and weights as arrays, which are None at first."""

    def __init__(self):
        self.order, self.weights = None, torch.zeros(50)

    def __len__(self):
        return 50

    def __iter__(self):
        self.order = np.arange(50) if self.order is None else self.order[::-1].copy()
        np.random.shuffle(self.order)
        self.weights += torch.rand(50)
        return iter([self.order[i] for i in self.weights.argsort().tolist()])


class HiddenCounter(Sampler):
    """Counts in a closure, which no checkpoint has."""

    def __init__(self):
        count = 0

        def next_seed():
            nonlocal count
            count += 1
            return count

        self.next_seed = next_seed

    def __len__(self):
        return 50

    def __iter__(self):
        order = list(range(50))
        random.Random(self.next_seed()).shuffle(order)
        return iter(order)


class LazyOwnSampler(Sampler):
    """Draws each index when it is needed, from its own generator."""

    def __init__(self):
        self.rngs = [random.Random(3)]

    def __len__(self):
        return 50

    def __iter__(self):
        return (self.rngs[0].randrange(50) for _ in range(50))


class SharedGenerator(Dataset):
    """Draws from the generator that the sampler draws from, too."""

    def __init__(self, generator):
        self.generator = generator

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return X[index] + 0.1 * torch.randn(8, generator=self.generator), Y[index]


def make_shared():
    generator = torch.Generator().manual_seed(8)
    dataset = SharedGenerator(generator)
    return DataLoader(dataset, 8, sampler=RandomSampler(dataset, generator=generator))


SAMPLERS = {
    "sampler around a sampler": lambda: DataLoader(ROWS, 8, sampler=SamplerAround()),
    "batch sampler that counts": lambda: DataLoader(ROWS, batch_sampler=CountingBatchSampler()),
    "list in place": lambda: DataLoader(ROWS, 8, sampler=ShuffledInPlace()),
    "batches in place": lambda: DataLoader(ROWS, batch_sampler=BucketsInPlace()),
    "arrays in place": lambda: DataLoader(ROWS, batch_sampler=BatchSampler(ArrayInPlace(), 8, False)),
    "hidden counter": lambda: DataLoader(ROWS, 8, sampler=HiddenCounter()),
    "lazy sampler with its own generator": lambda: DataLoader(ROWS, 8, sampler=LazyOwnSampler()),
    "generator of sampler and dataset": make_shared,
    "collate partial": lambda: DataLoader(ROWS, 8, shuffle=True, collate_fn=functools.partial(make_noise, rng())),
    "bound collate": lambda: DataLoader(ROWS, 8, collate_fn=BoundCollate().collate),
}


class OwnStream(IterableDataset):
    """Shuffles with its own generator."""

    def __init__(self):
        self.rng = random.Random(4)

    def __iter__(self):
        order = list(range(50))
        self.rng.shuffle(order)
        for index in order:
            yield X[index] + 0.1 * self.rng.random(), Y[index]


class CountingStream(IterableDataset):
    """Shuffles by the number of the pass, which it counts."""

    def __init__(self):
        self.epoch = 0

    def __iter__(self):
        order = list(range(50))
        random.Random(self.epoch).shuffle(order)
        self.epoch += 1
        yield from ((X[index], Y[index]) for index in order)


class GlobalBuffer(IterableDataset):
    """Shuffles a buffer of another stream with the global generators."""

    def __init__(self):
        self.source = OwnStream()

    def __iter__(self):
        buffer = []
        for sample in self.source:
            buffer.append(sample)
            if len(buffer) == 8:
                yield buffer.pop(random.randrange(8))
        random.shuffle(buffer)
        yield from buffer


class OwnLoader:
    """A loader that is no DataLoader, with a counter and a generator."""

    def __init__(self):
        self.passes, self.rngs = 0, (np.random.default_rng(3),)

    def __len__(self):
        return 7

    def __iter__(self):
        self.passes += 1
        order = self.rngs[0].permutation(50)
        for i in range(0, 50, 8):
            yield X[order[i : i + 8]] + 0.1 * self.passes, Y[order[i : i + 8]]


def make_function():
    generator = np.random.default_rng(3)

    def batches():
        order = generator.permutation(50)
        for i in range(0, 50, 8):
            yield X[order[i : i + 8]] + float(generator.random()), Y[order[i : i + 8]]

    return batches


STREAMS = {
    "stream with a generator": lambda: DataLoader(OwnStream(), 8),
    "stream that counts": lambda: DataLoader(CountingStream(), 8),
    "buffer of a stream": lambda: DataLoader(GlobalBuffer(), 8),
    "own loader": OwnLoader,
    "function with a generator in its closure": make_function,
    "stream in a worker": lambda: DataLoader(OwnStream(), 8, num_workers=1),
}


class StandIn:
    """A loader that saves itself as those of torchdata do: the state of the end of a pass starts the next pass."""

    def __init__(self):
        self._position = self._pass = 0

    def __iter__(self):
        if self._position >= 7:
            self._position, self._pass = 0, self._pass + 1
        order = list(range(50))
        random.Random(self._pass).shuffle(order)
        while self._position < 7:
            rows = order[8 * self._position : 8 * self._position + 8]
            self._position += 1
            yield X[rows], Y[rows]

    def state_dict(self):
        return {"position": self._position, "pass": self._pass}

    def load_state_dict(self, state):
        self._position, self._pass = state["position"], state["pass"]


class StandInWithLength(StandIn):
    def __len__(self):
        return 7
