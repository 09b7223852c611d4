"""How a strategy gathers, writes and loads the state of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from easytorch.checkpoint import files
from easytorch.checkpoint.background import BackgroundWriter, Job
from easytorch.checkpoint.storage import Location

if TYPE_CHECKING:
    from easytorch.strategies.base import Strategy


class Checkpoints:
    """Checkpoints in one file, written by the main rank; each rank holds the complete weights.

    Args:
        strategy: Knows the module, the device and the ranks.

    Attributes:
        always_in_background: Whether ``write`` returns before the checkpoint is complete, whatever its arguments.
    """

    always_in_background = False

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.background = BackgroundWriter()
        self._job: Job | None = None

    @property
    def is_collective(self) -> bool:
        """Whether ``gather`` needs all ranks, because each has only a part of the tensors."""
        return type(self).gather is not Checkpoints.gather

    def gather(self, tree: Any) -> Any:
        """Return ``tree`` with complete tensors; all ranks must call this."""
        return tree

    def prepare(self, tree: Any) -> Any:
        """Return ``tree`` in the form in which ``write`` takes it."""
        return self.gather(tree)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which writes nothing."""
        return vars(self) | {"_job": None}

    def write(self, path: Location, content: Mapping[str, Any], *, in_background: bool = False) -> None:
        """Start to write a checkpoint, which is complete after ``wait``; all ranks must call this.

        Args:
            path: The file.
            content: Tensors and plain values.
            in_background: Copy the content and return, in one process. A sharded checkpoint is always written in this way.

        Raises:
            OSError: On all ranks, if the file cannot be written.
        """
        if in_background:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._job = self.background.start(files.write, path, content)
            return
        # The content may name files that are still written.
        self.background.finish()
        error: OSError | None = None
        if self.strategy.group.is_main:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write(path, content)
            except OSError as caught:
                error = caught
        error = self.strategy.group.broadcast(error)
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            OSError: On all ranks, if it cannot be written.
        """
        job = self._job
        if job is None:
            return
        try:
            job.wait()
        finally:
            # An interrupted wait leaves it running.
            if job.has_ended:
                self._job = None

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return an uninitialized tensor to read into; only this rank's shard of it if weights are sharded."""
        return torch.empty(shape, dtype=dtype, device=self.strategy.device)

    def load_weights(self, weights: Mapping[str, Any]) -> None:
        """Load complete ``weights`` into the module."""
        self.strategy.module.load_state_dict(weights)

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Load a complete state dict into ``optimizer``."""
        optimizer.load_state_dict(dict(state))
