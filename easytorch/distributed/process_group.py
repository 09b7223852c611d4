"""The ranks of a run and their collectives."""

from __future__ import annotations

import atexit
import datetime
import hashlib
import os
import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from easytorch._utils.pytree import map_leaves

LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)  # what torchrun tells each process that it starts


def is_launched() -> bool:
    """Whether ``torchrun``, ``easytorch.launch`` or another launcher has started this process as one of many."""
    return all(name in os.environ for name in LAUNCHER_VARIABLES)


def local_rank() -> int:
    """Return the number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")))


class SingleProcess:
    """One process, which hears but itself: what it is told to share comes back as it was.

    Attributes:
        rank: The number of this process, from 0.
        size: How many there are.
        splits: Whether the data is the same in every process and is to be split, or each brings its own.
        foreseen: Of the window that comes, the indices of samples in each batch of this process, and of all processes together;
            None where it comes from nowhere.
        sure: Whether as many indices are as many samples.
        idle: Whether the batch that runs counts nothing: it is there because others have one.
    """

    rank = 0
    world_size = 1
    splits_data = True
    foreseen: tuple[list[int], int] | None = None
    sure = idle = False

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and shows what happens."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return the ``value`` of each process, in order, in every process; tensors come on the CPU."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """Return the ``value`` of process 0."""
        return value

    def all_reduce_sum(self, value: float) -> float:
        """Return the sum of ``value`` over all processes."""
        return value

    def all_reduce_sum_on_device(self, value: Any, device: torch.device) -> Any:
        """Return the sum of ``value`` over all processes where the device needs it: nobody waits for it."""
        return value

    def all_reduce_max(self, value: float) -> float:
        """Return the largest ``value`` of all processes."""
        return value

    def any_rank(self, value: bool) -> bool:
        """Whether ``value`` is true in any process."""
        return value

    def barrier(self) -> None:
        """Wait until every process is here."""

    def broadcast_tensors(self, tensors: list[Tensor]) -> None:
        """Overwrite ``tensors`` with those of process 0."""

    def seed_per_rank(self) -> None:
        """Let each process draw random numbers of its own, from here on."""


class ProcessGroup(SingleProcess):
    """The processes of a launcher, as ``torch.distributed`` connects them.

    Args:
        device: Where this process computes; it decides about the backend: NCCL, XCCL, Gloo.
        timeout: Seconds after which a process that hears nothing of the others gives up.
        splits: See ``Alone``.

    Raises:
        RuntimeError: If no launcher has started this process.
    """

    def __init__(self, device: torch.device, timeout: float = 600.0, splits: bool = True) -> None:
        if not dist.is_initialized():
            if not is_launched():
                raise RuntimeError(
                    "Many processes need a launcher, and this process was started alone. Start the program by 'torchrun "
                    "--nproc-per-node=2 train.py', or call easytorch.launch(function, processes=2)."
                )
            _connect(device, datetime.timedelta(seconds=timeout))
        self.rank, self.world_size, self.splits_data = dist.get_rank(), dist.get_world_size(), splits
        # Numbers that the host needs travel between the hosts, so that nobody waits for an accelerator.
        speaks = torch.device("cpu") in distributed_c10d._get_default_group()._device_types
        self.device = torch.device("cpu") if speaks else device

    def gather(self, value: Any) -> list[Any]:
        """Return the ``value`` of each process, in order, in every process; tensors come on the CPU."""
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, map_leaves(_on_cpu, value))
        return found

    def broadcast(self, value: Any) -> Any:
        """Return the ``value`` of process 0."""
        box = [value if self.is_main else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def all_reduce_sum(self, value: float) -> float:
        """Return the sum of ``value`` over all processes."""
        return self._reduced(value, dist.ReduceOp.SUM)

    def all_reduce_sum_on_device(self, value: Any, device: torch.device) -> Any:
        """Return the sum of ``value`` over all processes where the device needs it: nobody waits for it."""
        box = torch.as_tensor(value, dtype=torch.float64).to(device).clone()
        dist.all_reduce(box)
        return box

    def all_reduce_max(self, value: float) -> float:
        """Return the largest ``value`` of all processes."""
        return self._reduced(value, dist.ReduceOp.MAX)

    def any_rank(self, value: bool) -> bool:
        """Whether ``value`` is true in any process."""
        return self.all_reduce_max(float(value)) > 0

    def _reduced(self, value: float, how: Any) -> float:
        box = torch.tensor(float(value), dtype=torch.float64, device=self.device)
        dist.all_reduce(box, how)
        return float(box)

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.all_reduce_sum(0.0)

    def broadcast_tensors(self, tensors: list[Tensor]) -> None:
        """Overwrite ``tensors`` with those of process 0."""
        if tensors:
            engine: Any = dist  # whose stubs leave this out
            group = distributed_c10d._get_default_group()
            engine._broadcast_coalesced(group, [tensor.detach() for tensor in tensors], 250 * 1024 * 1024, 0)

    def seed_per_rank(self) -> None:
        """Let each process draw random numbers of its own, from here on; process 0 draws as it would alone."""
        if not self.is_main:
            digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes() + str(self.rank).encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            random.seed(digest)
            np.random.seed(int.from_bytes(digest[:4], "little"))


def _connect(device: torch.device, timeout: datetime.timedelta) -> None:
    backend = "gloo"
    if device.type != "cpu":
        backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(backend, store=_store(rank, size, timeout), rank=rank, world_size=size, timeout=timeout)
    atexit.register(_disconnect)


def _store(rank: int, size: int, timeout: datetime.timedelta) -> Any:
    """Return the place where the processes find each other, without what an earlier attempt of theirs has left there.

    Processes that a launcher starts again get the same store, and would call at addresses where nobody is any more: see
    https://github.com/pytorch/pytorch/issues/135712. Only on one machine does everybody count the same attempts.
    """
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(  # type: ignore[attr-defined]  # not in torch's stubs
        address, port, is_master=serves, timeout=timeout, wait_for_workers=False, multi_tenant=True
    )
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(size)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if one_machine else "any"
    return dist.PrefixStore(  # type: ignore[attr-defined]  # nor this
        f"easytorch/attempt-{attempt}", store
    )


def _disconnect() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _on_cpu(leaf: Any) -> Any:
    return leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf
