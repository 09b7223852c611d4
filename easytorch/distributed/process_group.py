"""The ranks of a run and their collectives."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import hashlib
import importlib
import os
import random
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from easytorch._utils import torch_private
from easytorch._utils.pytree import map_leaves
from easytorch._utils.terminal import print_message
from easytorch.distributed import agreement, slurm
from easytorch.errors import RankError

# torchrun sets these variables in each process that it starts.
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# Seconds that a rank waits for the others to connect before it names those that are missing.
CONNECT_SECONDS = 30.0

# Seconds that a rank waits at its exit for the other ranks, and for its own last collectives.
EXIT_SECONDS = 5.0

# Seconds without the GIL at the exit, in which threads of groups that others hold can finish.
GRACE_SECONDS = 0.1


def launcher_variables() -> Mapping[str, str]:
    """Return the variables of this process, together with those that ``torchrun`` would set if ``srun`` has started it."""
    # torchrun and other launchers may run inside srun.
    if all(name in os.environ for name in LAUNCHER_VARIABLES):
        return os.environ
    return {**os.environ, **slurm.launcher_variables(os.environ)}


def is_launched() -> bool:
    """Return whether ``torchrun``, ``srun``, ``easytorch.launch`` or another launcher started this process as one of several."""
    variables = launcher_variables()
    return all(name in variables for name in LAUNCHER_VARIABLES)


def local_rank() -> int:
    """Return the rank of this process among those of its machine."""
    variables = launcher_variables()
    return int(variables.get("LOCAL_RANK", variables.get("RANK", "0")))


class GroupHolder:
    """Base class of objects with a group of ``torch.distributed`` as an attribute, which is removed at the exit."""


class SingleProcess:
    """A stand-in for ``ProcessGroup`` with one process: every collective returns its input.

    Attributes:
        rank: The rank of this process, from 0.
        world_size: The number of processes.
        splits_data: Whether all ranks have the same data and split it. Otherwise each rank has separate data.
    """

    rank = 0
    world_size = 1
    splits_data = True
    in_snapshots = False  # of a dry run: what other ranks have received cannot be set back

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and shows progress."""
        return self.rank == 0

    @contextlib.contextmanager
    def call(self, name: str, **arguments: Any) -> Iterator[None]:
        """Make a call that all ranks must make, and let the others know if it fails.

        Args:
            name: The name of the method.
            arguments: Plain values that must be the same on all ranks.

        Raises:
            RankError: On all ranks, if they make different calls, or if one has failed or ended.
        """
        yield

    def report(self, error: BaseException) -> BaseException:
        """Report an error that ends a call; return it, or the error of another rank that has caused it."""
        return error

    def saved(self, path: str) -> None:
        """Note that this rank has called ``save``; rank 0 must have done so too."""

    def add_replica(self, replica: Any) -> None:
        """Remember a DDP wrapper, which must be released before the connections can be closed."""

    def gather(self, value: Any) -> list[Any]:
        """Return the ``value`` of each rank in rank order, on every rank; tensors are copied to the CPU."""
        return [value]

    def gather_numbers(self, *values: float) -> list[tuple[float, ...]]:
        """Return ``values`` of each rank in rank order, as float64. Fast enough for each update."""
        return [values]

    def broadcast(self, value: Any) -> Any:
        """Return the ``value`` of rank 0."""
        return value

    def all_reduce_sum(self, value: float) -> float:
        """Return the sum of ``value`` over all ranks."""
        return value

    def all_reduce_sum_on_device(self, value: Any, device: torch.device) -> Any:
        """Return the sum of ``value`` over all ranks as a tensor on ``device``, without synchronization of the host."""
        return value

    def all_reduce_tensor(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by its sum over all ranks, in place and without synchronization of the host."""

    def all_reduce_max(self, value: float) -> float:
        """Return the maximum of ``value`` over all ranks."""
        return value

    def any_rank(self, value: bool) -> bool:
        """Return whether ``value`` is true on any rank."""
        return value

    def barrier(self) -> None:
        """Wait until every rank has called this method."""

    def broadcast_tensors(self, tensors: list[Tensor]) -> None:
        """Overwrite ``tensors`` with those of rank 0."""

    def seed_per_rank(self) -> None:
        """Seed the random number generators of each rank differently."""


class ProcessGroup(SingleProcess):
    """The processes of a launcher, connected by ``torch.distributed``.

    Args:
        device: The device of this rank. It decides about the backend: NCCL, XCCL or Gloo.
        timeout: The seconds after which a collective fails if another rank does not take part; 600 by default.
        splits: See ``splits_data`` of ``SingleProcess``.

    Raises:
        RuntimeError: If no launcher started this process.
    """

    def __init__(self, device: torch.device, timeout: float = 600.0, splits: bool = True) -> None:
        agreement.check_open()
        if not dist.is_initialized():
            if not is_launched():
                raise RuntimeError(
                    "Distributed training needs a launcher, but this process was started without one. Start the program with "
                    "'torchrun --nproc-per-node=2 train.py', in a job of SLURM with 'srun python train.py', or call "
                    "easytorch.launch(function, processes=2)."
                )
            _connect(device, datetime.timedelta(seconds=timeout))
        self.rank, self.world_size, self.splits_data = dist.get_rank(), dist.get_world_size(), splits
        self.timeout = timeout
        self._agreement()  # made now, while a store is there
        # Values for the host are exchanged between hosts, so that no host waits for its accelerator.
        has_cpu_backend = "cpu:" in dist.get_backend_config()
        self.device = torch.device("cpu") if has_cpu_backend else device

    @contextlib.contextmanager
    def call(self, name: str, **arguments: Any) -> Iterator[None]:
        """Make a call that all ranks must make; see ``SingleProcess.call``."""
        self._agreement().enter(name, arguments, self.timeout)
        try:
            yield
        except BaseException as error:
            reported = self.report(error)
            if reported is error:
                raise
            raise reported from error
        finally:
            self._agreement().stack.pop()

    def report(self, error: BaseException) -> BaseException:
        """Report an error that ends a call; return it, or the error of another rank that has caused it."""
        return self._agreement().report(error)

    def saved(self, path: str) -> None:
        """Note that this rank has called ``save``; rank 0 must have done so too."""
        self._agreement().files.append(path)

    def add_replica(self, replica: Any) -> None:
        """Remember a DDP wrapper, which must be released before the connections can be closed."""
        self._agreement().add_replica(replica)

    def gather(self, value: Any) -> list[Any]:
        """Return the ``value`` of each rank in rank order, on every rank; tensors are copied to the CPU."""
        self._enter("gather")
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, map_leaves(_to_cpu, value))
        return values

    def gather_numbers(self, *values: float) -> list[tuple[float, ...]]:
        """Return ``values`` of each rank in rank order, as float64. Fast enough for each update."""
        numbers = torch.zeros(self.world_size, len(values), dtype=torch.float64)
        numbers[self.rank] = torch.tensor(values, dtype=torch.float64)
        numbers = numbers.to(self.device)
        dist.all_reduce(numbers)
        return [tuple(row) for row in numbers.tolist()]

    def broadcast(self, value: Any) -> Any:
        """Return the ``value`` of rank 0."""
        self._enter("broadcast")
        values = [value if self.is_main else None]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def all_reduce_sum(self, value: float) -> float:
        """Return the sum of ``value`` over all ranks."""
        return self._all_reduce(value, dist.ReduceOp.SUM)

    def all_reduce_sum_on_device(self, value: Any, device: torch.device) -> Any:
        """Return the sum of ``value`` over all ranks as a tensor on ``device``, without synchronization of the host."""
        total = torch.as_tensor(value, dtype=torch.float64).to(device).clone()
        dist.all_reduce(total)
        return total

    def all_reduce_tensor(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by its sum over all ranks, in place and without synchronization of the host."""
        dist.all_reduce(tensor)

    def all_reduce_max(self, value: float) -> float:
        """Return the maximum of ``value`` over all ranks."""
        self._enter("all_reduce_max")
        return self._all_reduce(value, dist.ReduceOp.MAX)

    def any_rank(self, value: bool) -> bool:
        """Return whether ``value`` is true on any rank."""
        return self.all_reduce_max(float(value)) > 0

    def barrier(self) -> None:
        """Wait until every rank has called this method."""
        self._enter("barrier")
        self.all_reduce_sum(0.0)

    def broadcast_tensors(self, tensors: list[Tensor]) -> None:
        """Overwrite ``tensors`` with those of rank 0."""
        if tensors:
            self._enter(f"broadcast of {len(tensors)} tensors")
            torch_private.broadcast_coalesced([tensor.detach() for tensor in tensors])

    def seed_per_rank(self) -> None:
        """Seed the random number generators of each rank differently; those of rank 0 stay as they are."""
        if self.is_main:
            return
        digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes() + str(self.rank).encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        random.seed(digest)
        np.random.seed(int.from_bytes(digest[:4], "little"))

    def _agreement(self) -> agreement.Agreement:
        # Not an attribute, since a store cannot be pickled or copied.
        return agreement.current(torch_private.default_store, self.rank, self.world_size)

    def _enter(self, collective: str) -> None:
        """Raise a ``RankError`` unless all ranks are at the same collective: gloo would abort the process."""
        self._agreement().enter_collective(collective, self.timeout)

    def _all_reduce(self, value: float, op: Any) -> float:
        result = torch.tensor(float(value), dtype=torch.float64, device=self.device)
        dist.all_reduce(result, op)
        return float(result)


def _connect(device: torch.device, timeout: datetime.timedelta) -> None:
    """Create the default process group, and destroy it at the exit of this process."""
    # Its functions have the default group as a default argument. Imported later, they would hold the group for ever.
    importlib.import_module("torch.distributed.nn")

    backend = "gloo"
    if device.type != "cpu":
        backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
    variables = launcher_variables()
    if variables is not os.environ:
        slurm.check_address(variables["MASTER_ADDR"])
    # Set for torch and for the program, which may read them, too.
    os.environ.update(variables)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = _create_store(rank, world_size, timeout)
    _wait_for_ranks(store, rank, world_size, timeout.total_seconds())
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    _Exit(store, rank, world_size)


def _wait_for_ranks(store: Any, rank: int, world_size: int, timeout: float) -> None:
    """Wait until all ranks are ready to connect; print a line if that takes long.

    Raises:
        RankError: If a rank is missing after ``timeout`` seconds.
    """
    store.set(f"ready-{rank}", "")
    missing, deadline, seconds = list(range(world_size)), time.monotonic() + timeout, min(CONNECT_SECONDS, timeout)
    while missing:
        with contextlib.suppress(RuntimeError):  # the keys were not set in time
            store.wait([f"ready-{other}" for other in missing], datetime.timedelta(seconds=seconds))
        missing = [other for other in missing if not store.check([f"ready-{other}"])]
        if not missing:
            return
        fix = "All ranks must make this call: do not put compile() below 'if rank == 0:'."
        if slurm.step_name(os.environ):
            fix += " If each task of srun is to train alone, pass strategy='one'."
        names = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
        if time.monotonic() >= deadline:
            raise RankError(f"Rank {rank} has waited {timeout:.0f} s for {names} in compile(). {fix}")
        print_message(f"Rank {rank} waits for {names} in compile(). {fix}", sys.stderr)
        seconds = max(deadline - time.monotonic(), 0.001)


def _create_store(rank: int, world_size: int, timeout: datetime.timedelta) -> Any:
    """Return the store through which the ranks find each other, without the entries of an earlier attempt.

    A launcher gives restarted processes the same store, with the addresses of processes that have ended: see
    https://github.com/pytorch/pytorch/issues/135712. The ranks of several machines may count different attempts, so that the
    attempt is part of the prefix on one machine only. A step of SLURM has a name, which keeps it apart from other steps and jobs
    with the same port.

    Raises:
        RankError: If another program uses the port.
    """
    is_server = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = torch_private.stores.TCPStore(
            address, port, is_master=is_server, timeout=timeout, wait_for_workers=False, multi_tenant=True
        )
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise RankError(
            f"Rank 0 cannot listen on port {port} of this machine, which another program uses. Set MASTER_PORT to a free port, "
            "the same for all ranks."
        ) from error
    on_one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(world_size)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if on_one_machine else "any"
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun inside srun restarts processes without a new step
        attempt = slurm.step_name(os.environ) or attempt
    prefix = f"easytorch/attempt-{attempt}"
    return torch_private.stores.PrefixStore(prefix, store)


class _Exit:
    """Ends the communication of this process before the interpreter finalizes.

    A thread of Gloo frees the tensors of a collective, for which it needs the GIL. In an interpreter that finalizes, that ends
    the process with SIGABRT ("terminate called without an active exception"). The threads end with the last reference to their
    group, so that nothing may hold it: neither the wrappers of DDP and FSDP, nor torch itself.

    Args:
        store: The store of the ranks.
        rank: The rank of this process.
        world_size: The number of processes.
    """

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size
        self.process_id = os.getpid()
        # The thread is started now, because an interpreter that exits starts no threads.
        self._is_due = threading.Event()
        self._thread = threading.Thread(target=self._destroy_groups, name="easytorch-exit", daemon=True)
        self._thread.start()
        atexit.register(self)

    def __call__(self) -> None:
        """Wait for the other ranks, and destroy all groups; neither takes longer than ``EXIT_SECONDS``."""
        if os.getpid() != self.process_id:  # a copy of the process
            return
        has_failed = getattr(sys, "last_value", None) is not None  # by an exception, which the other ranks must notice
        if not has_failed and dist.is_initialized():
            self._wait_for_ranks()
        self._is_due.set()
        # It does not end if another rank has left a collective that this rank has started.
        self._thread.join(EXIT_SECONDS)
        if self._thread.is_alive() and has_failed:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
        time.sleep(GRACE_SECONDS)

    def _wait_for_ranks(self) -> None:
        """Wait until all ranks have got here, since one may still read what this rank has sent last."""
        deadline = time.monotonic() + EXIT_SECONDS
        keys = [f"exit-{rank}" for rank in range(self.world_size)]
        # The process of the store may have ended.
        with contextlib.suppress(RuntimeError):
            self.store.set(keys[self.rank], "")
            while not self.store.check(keys) and time.monotonic() < deadline:
                time.sleep(0.01)

    def _destroy_groups(self) -> None:
        self._is_due.wait()
        torch_private.release_process_groups(GroupHolder)
        if dist.is_initialized():
            dist.destroy_process_group()


def _to_cpu(leaf: Any) -> Any:
    return leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf
