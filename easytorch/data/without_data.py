"""Steps of a model that makes its data itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from easytorch.distributed.process_group import SingleProcess


class WithoutData(list[None]):
    """A number of batches, each of which is None, for a ``train_step`` that makes its data itself.

    Args:
        count: The number of batches of a pass.
    """

    def __init__(self, count: int) -> None:
        super().__init__([None] * count)


class RankSteps(Iterable[None]):
    """The steps of one rank, which draws other random numbers than the other ranks.

    Args:
        count: The number of steps of this rank.
        group: The ranks that train together.

    Attributes:
        rounds: For each step, the count of this rank and of all ranks.
        offset: Not used: all steps are alike.
    """

    counts_exact = True
    offset = 0

    def __init__(self, count: int, group: SingleProcess) -> None:
        self.count, self.group = count, group
        self.rounds = [(1, group.world_size)] * count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[None]:
        self.group.seed_per_rank()
        yield from itertools.repeat(None, self.count)


def shard_steps(steps: WithoutData, group: SingleProcess, training: bool) -> RankSteps:
    """Return the steps of this rank: in training as many as each other rank, in evaluation its share."""
    count = len(steps)
    return RankSteps(count if training else -(-(count - group.rank) // group.world_size), group)
