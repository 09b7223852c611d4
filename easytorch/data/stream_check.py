"""Check of a stream that is read again to resume a run."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from easytorch._utils.pytree import leaves
from easytorch._utils.warnings import warn

# Values of each array that are compared.
MAX_VALUES = 256


class StreamCheck:
    """The checksum of the last batch that was taken from a stream, which a resumed run finds again at the same place.

    Attributes:
        checksum: That of the last batch; None before the first one.
        expected: The checksum that a stopped run has saved; None if it is unknown.
    """

    def __init__(self) -> None:
        self.checksum: int | None = None
        self.expected: int | None = None

    def watch(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield ``batches`` unchanged. Their steps may change them in place, so the checksum is computed before."""
        for batch in batches:
            self.checksum = _get_checksum(batch)
            yield batch

    def compare(self, batch: Any, name: str, count: int) -> None:
        """Warn if ``batch``, the last one that was discarded, is not the one that the stopped run used.

        Args:
            batch: Batch ``count`` of this pass.
            name: The name of the class of the stream.
            count: Batches of this pass that the run had used.
        """
        self.checksum, expected, self.expected = _get_checksum(batch), self.expected, None
        if expected is None or self.checksum is None or self.checksum == expected:
            return
        warn(
            f"Results will differ from an uninterrupted run: {name} yields other batches than before the run was stopped (batch "
            f"{count} differs), so this pass repeats some samples and omits others. Seed what shuffles the stream. WebDataset "
            "needs shuffle(1000, rng=random.Random(0)) and WebDataset(urls, shardshuffle=100, seed=0)."
        )


def _get_checksum(batch: Any) -> int | None:
    """Return a checksum of the first values of each array of a batch; None if it has no array on the CPU."""
    checksum, count = 0, 0
    for leaf in leaves(batch):
        if isinstance(leaf, Tensor) and leaf.device.type == "cpu" and leaf.layout == torch.strided and leaf.numel():
            content: Any = leaf.detach().reshape(-1)[:MAX_VALUES].contiguous().view(torch.uint8).numpy()
        elif isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc" and leaf.size:
            content = np.ascontiguousarray(leaf.reshape(-1)[:MAX_VALUES]).data
        else:
            continue
        checksum, count = zlib.crc32(content, checksum), count + 1
    return checksum if count else None
