"""The search for random number generators."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from easytorch._utils.object_graph import MAX_ITEMS, MAX_OBJECTS, walk
from easytorch._utils.rng import find_generators, get_generator_state, seed_generator, set_generator_state
from tests.common_resume import ROWS
from tests.common_sources import DATASETS


class Node:
    """Has what it is given, and refers to itself."""

    def __init__(self, **attributes):
        vars(self).update(attributes, myself=self)


@pytest.mark.parametrize("place", DATASETS)
def test_generators_have_the_same_paths_in_each_program(place):
    first, second = (find_generators({"dataset": DATASETS[place]()}) for _ in range(2))
    assert first
    assert list(first) == list(second)


def test_paths_do_not_depend_on_the_order_of_attributes():
    rngs = {name: random.Random(0) for name in "abc"}
    shuffled = dict(reversed(rngs.items()))
    assert list(find_generators({"x": Node(**rngs)})) == list(find_generators({"x": Node(**shuffled)}))


def test_global_generators_are_not_found():
    sources = [random.shuffle, np.random.shuffle, torch.default_generator, random.SystemRandom()]
    assert find_generators({"x": sources, "loader": DataLoader(ROWS, 8, shuffle=True)}) == {}


def test_a_walk_is_bounded_and_fast():
    rows = list(range(1_000_000))
    deep = [[Node(rows=rows, pair=(i, str(i))) for i in range(900)] for _ in range(30)]
    start = time.process_time()
    assert len(walk({"deep": deep})) == MAX_OBJECTS
    assert time.process_time() - start < 5
    late = [0] * MAX_ITEMS + [random.Random(0)]
    assert find_generators({"late": late}) == {}


def test_a_large_module_is_walked_without_its_tensors():
    module = nn.Sequential(*[nn.Linear(1, 1) for _ in range(500)])
    module.rng = torch.Generator()
    found = walk({"module": module})
    assert len(found) < 1_100
    assert find_generators({"module": module}) == {"module.rng": module.rng}


class Forwarding:
    """Answers every attribute with that of another object, which does not exist yet."""

    __slots__ = ("target",)

    def __getattr__(self, name):
        return getattr(self.target, name)


def test_an_object_that_forwards_attributes_is_walked():
    value = Forwarding()
    assert list(walk({"x": value}, exclude=[Forwarding, object])) == ["x"]
    value.target = random.Random(0)
    assert list(find_generators({"x": value})) == ["x.target"]


KINDS = [
    torch.Generator,
    random.Random,
    np.random.default_rng,
    np.random.RandomState,
    lambda: np.random.RandomState(np.random.SFC64(1)),
    lambda: np.random.Generator(np.random.Philox(1)),
    lambda: np.random.PCG64(1),
]


def draw(generator):
    if isinstance(generator, torch.Generator):
        return float(torch.rand((), generator=generator))
    return generator.random() if hasattr(generator, "random") else generator.random_raw()


@pytest.mark.parametrize("make", KINDS)
def test_generators_are_seeded_and_restored(make):
    generator = make()
    state = get_generator_state(generator)
    first = draw(generator)
    seed_generator(generator, b"0123456789abcdef0123456789abcdef")
    seeded = draw(generator)
    seed_generator(generator, b"0123456789abcdef0123456789abcdef")
    assert draw(generator) == seeded != first
    set_generator_state(generator, state)
    assert draw(generator) == first
