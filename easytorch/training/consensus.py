"""What all ranks must have in common during a run: arguments, logs, learning rates and weights."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from easytorch._utils.internal import is_internal
from easytorch._utils.pytree import map_leaves
from easytorch._utils.warnings import warn
from easytorch.callbacks.backup import BackupAndRestore
from easytorch.callbacks.base import Callback
from easytorch.data.data_sets import by_name
from easytorch.data.sharding import describe_size
from easytorch.distributed.agreement import as_reported
from easytorch.errors import RankError

if TYPE_CHECKING:
    from easytorch.data.epoch_iterator import EpochIterator
    from easytorch.distributed.process_group import SingleProcess
    from easytorch.model import Model
    from easytorch.training.state import TrainState

# Values larger than this are named in an error by their checksum.
LONGEST_VALUE = 60
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


# Arguments


def fit_arguments(
    model: Model, train_data: EpochIterator, val_data: Any, callbacks: Iterable[Callback], state: TrainState
) -> dict[str, Any]:
    """Return what must be the same on all ranks when ``fit`` starts, as plain values."""
    group = model.strategy.group
    if group.world_size == 1:
        return {}
    callbacks = list(callbacks)
    return {
        **describe_size(train_data.loader, group),
        "epochs": state.last - state.first,
        "initial_epoch": state.first,
        "steps_per_epoch": train_data.steps,
        "validation": val_data is not None,
        "validation_sets": list(filter(None, by_name(val_data))),
        **_validation_sizes(val_data, group),
        "resume": any(isinstance(callback, BackupAndRestore) for callback in callbacks),
        "callbacks": [type(callback).__name__ for callback in callbacks if callback.all_ranks],
        **_compile_arguments(model),
        **_describe_optimizer(model),
    }


def _validation_sizes(val_data: Any, group: SingleProcess) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    for name, loader in by_name(val_data).items():
        sizes |= describe_size(loader, group, f"validation_{name}_" if name else "validation_")
    return sizes


def _compile_arguments(model: Model) -> dict[str, Any]:
    return {
        "metrics": list(model.metrics.names),
        "gradient_accumulation_steps": model.gradient_accumulation_steps,
        "clip_grad_norm": model.clip_grad_norm,
        "clip_grad_value": model.clip_grad_value,
        "precision": model.strategy.precision,
        "strategy": type(model.strategy).__name__,
    }


def _describe_optimizer(model: Model) -> dict[str, Any]:
    """Return the class and the hyperparameters of the optimizer, a list by parameter group if there are several."""
    optimizer = model.require_optimizer("fit")
    return {"optimizer": type(optimizer).__name__, **_hyperparameters(optimizer)}


def _hyperparameters(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    groups = [
        {name: value for name, value in map(_as_plain, group.items()) if value is not None}
        for group in optimizer.param_groups
    ]
    names = dict.fromkeys(name for group in groups for name in group)
    if len(groups) == 1:
        return groups[0]
    return {name: _shorten([group.get(name) for group in groups]) for name in names}


def _as_plain(item: tuple[str, Any]) -> tuple[str, Any]:
    """Return a hyperparameter as numbers; None for what is not a number."""
    name, value = item
    if name == "params":
        return name, None
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else None
    if isinstance(value, (tuple, list)):
        value = [_as_plain(("", part))[1] for part in value]
    return name, value if isinstance(value, (bool, int, float, list)) else None


def _shorten(value: Any) -> Any:
    """Return ``value``, or its checksum if it is long."""
    text = repr(value)
    return value if len(text) <= LONGEST_VALUE else f"{text[:30]}... ({hashlib.sha256(text.encode()).hexdigest()[:8]})"


# Logs


class SharedLogs(Callback):
    """Gives all ranks the logs of rank 0, so that callbacks which decide by a value decide alike.

    Metrics are merged over the ranks, but a callback may add a value that each rank has measured for itself.
    """

    def __init__(self, priority: int = 2) -> None:  # before EarlyStopping and the other monitors
        self.priority = priority

    @classmethod
    def after(cls, callbacks: Iterable[Callback]) -> list[Callback]:
        """Return one for the callbacks with the usual priority, and one for each later priority of the user's callbacks."""
        late = {callback.priority for callback in callbacks if callback.all_ranks and not is_internal(type(callback))}
        return [cls(priority) for priority in sorted({cls().priority, *(p for p in late if p > cls().priority)})]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Replace the values in ``logs`` by those of rank 0; values that cannot be sent stay as they are."""
        self._share(logs)

    def on_validation_end(self, logs: Any = None) -> None:
        """Replace the values in ``logs`` by those of rank 0; values that cannot be sent stay as they are."""
        self._share(logs)

    def _share(self, logs: dict[str, Any]) -> None:
        group = self.model.strategy.group
        shared, local = group.broadcast(_split_logs(logs) if group.is_main else None)
        local_values = {name: logs[name] for name in local if name in logs}
        logs.clear()
        logs.update(shared, **local_values)


def _split_logs(logs: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the values that can be sent to other ranks, and the names of those that cannot."""
    shared: dict[str, Any] = {}
    for name, value in logs.items():
        value = map_leaves(lambda leaf: leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf, value)
        try:
            pickle.dumps(value)
        except Exception:  # anything may go wrong in the code of the value
            continue
        shared[name] = value
    return shared, [name for name in logs if name not in shared]


# Replicas


class ReplicaCheck(Callback):
    """Compares learning rates and weights of all ranks in each epoch, and raises an error when replicas drift apart."""

    priority = 4  # after the callbacks of the user, and before a checkpoint is written

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Compare the settings that a callback may have changed."""
        check_replicas(self.model, f"before epoch {epoch + 1}", weights=False)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Compare settings and weights."""
        check_replicas(self.model, f"after epoch {epoch + 1}")


def check_replicas(model: Model, when: str, *, weights: bool = True) -> None:
    """Raise a ``RankError`` on all ranks if their learning rates, other hyperparameters, frozen layers or weights differ.

    Args:
        model: The model.
        when: The time, for the message.
        weights: Whether to compare the weights, bit by bit. Under FSDP each rank has another shard, which is left out.
    """
    group = model.strategy.group
    if group.world_size == 1:
        return
    settings = {} if model.optimizer is None else _hyperparameters(model.optimizer)
    frozen = [name for name, parameter in model.module.named_parameters() if not parameter.requires_grad]
    parameters = _replicated_parameters(model) if weights else {}
    checksums = _checksums(list(parameters.values()))
    # Most times all are the same, so only their digests travel.
    digests = group.gather((_digest((settings, frozen)), _digest(checksums)))
    if len({settings_digest for settings_digest, _ in digests}) > 1:
        _raise_different_settings(group.gather((settings, frozen)), when)
    if len({weights_digest for _, weights_digest in digests}) > 1:
        _compare_weights(model, parameters, group.gather(checksums), when)


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _replicated_parameters(model: Model) -> dict[str, Tensor]:
    return {
        name: parameter.detach()
        for name, parameter in model.module.named_parameters()
        if not hasattr(parameter, "full_tensor") and parameter.layout is torch.strided and not parameter.is_quantized
    }


def _raise_different_settings(ranks: list[tuple[dict[str, Any], list[str]]], when: str) -> None:
    """Raise the error for hyperparameters and frozen parameters that differ."""
    first, *others = ranks
    rank, (theirs, their_frozen) = next((i, other) for i, other in enumerate(others, 1) if other != first)
    settings, frozen = first
    names = [name for name in {**settings, **theirs} if settings.get(name) != theirs.get(name)]
    if names:
        sides = [", ".join(f"{name}={values.get(name)}" for name in names) for values in (settings, theirs)]
        change = f"{sides[0]} on rank 0, and {sides[1]} on rank {rank}"
    else:
        one_sided = sorted(set(frozen) ^ set(their_frozen))
        sides = ["frozen" if one_sided[0] in names else "trained" for names in (frozen, their_frozen)]
        change = f"parameter {one_sided[0]!r} is {sides[0]} on rank 0, and {sides[1]} on rank {rank}"
    raise as_reported(
        RankError(
            f"The ranks train differently {when}: {change}. A callback or the program changed it on one rank only, or computed "
            "it from values that differ. Make the same change on all ranks."
        )
    )


def _compare_weights(model: Model, parameters: dict[str, Tensor], ranks: list[list[int]], when: str) -> None:
    """Raise the error for weights that differ, unless they were only rounded differently."""
    first, *others = ranks
    rank = next(i for i, other in enumerate(others, 1) if other != first)
    different = [name for i, name in enumerate(parameters) if any(other[i] != first[i] for other in others)]
    distances = {name: _distance_to_rank_0(model, parameters[name]) for name in different}
    drifted = [name for name in different if not distances[name][1] <= _rounding(parameters[name].dtype)]
    if not drifted:
        _accept_rounding(model, [parameters[name] for name in different])
        return
    more = f" and {len(drifted) - 1} more" if len(drifted) > 1 else ""
    raise as_reported(
        RankError(
            f"The weights of rank 0 and rank {rank} differ {when}: {drifted[0]!r}{more}, by up to "
            f"{max(distances[name][0] for name in drifted):.3g}. Every rank must make the same updates. A callback or a step "
            "changed weights on one rank only, or each rank read another file. Make the same change on all ranks."
        )
    )


def _checksums(tensors: list[Tensor]) -> list[int]:
    """Return the sum of the bits of each tensor, read as integers: the same in any order of addition."""
    sums = [_as_integers(tensor).sum(dtype=torch.int64) for tensor in tensors]
    # One copy from each device, not one for each tensor.
    by_device: dict[torch.device, list[int]] = {}
    for i, value in enumerate(sums):
        by_device.setdefault(value.device, []).append(i)
    values = dict[int, int]()
    for indices in by_device.values():
        values.update(zip(indices, torch.stack([sums[i] for i in indices]).tolist(), strict=True))
    return [values[i] for i in range(len(sums))]


def _as_integers(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.view(INTEGERS[tensor.element_size()])


def _distance_to_rank_0(model: Model, parameter: Tensor) -> tuple[float, float]:
    """Return the largest difference from the values of rank 0, on any rank: absolute, and relative to the largest value."""
    group = model.strategy.group
    reference = parameter.clone()
    group.broadcast_tensors([reference])
    wide = torch.complex128 if parameter.is_complex() else torch.float64
    reference, current = reference.to(wide), parameter.to(wide)
    difference = (reference - current).abs().max().nan_to_num(float("inf"))
    scale = reference.abs().max().nan_to_num(float("inf"))
    relative = torch.where(difference == 0, difference, difference / scale).nan_to_num(
        float("inf")
    )  # 0 and -0 are equal
    results = group.gather_numbers(difference.item(), relative.item())
    return max(absolute for absolute, _ in results), max(relative for _, relative in results)


def _rounding(dtype: torch.dtype) -> float:
    """Return the relative difference below which weights of an epoch were only rounded differently."""
    if not (dtype.is_floating_point or dtype.is_complex):
        return 0.0
    unit = torch.finfo(dtype).eps
    return max(4 * unit, min(1000 * unit, 1e-4))


def _accept_rounding(model: Model, parameters: list[Tensor]) -> None:
    """Give all ranks the weights of rank 0 after they were rounded differently."""
    model.strategy.group.broadcast_tensors(parameters)
    if model.strategy.group.is_main:
        warn(
            "The weights of the ranks differ in the last bits, so the run is not reproducible to the bit. Processors of "
            "different kinds round differently: use one kind. The ranks continue with the weights of rank 0."
        )
