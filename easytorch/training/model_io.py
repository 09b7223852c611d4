"""Saving, loading and resuming of a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from easytorch._utils.warnings import warn
from easytorch.callbacks.base import Callback, CallbackList
from easytorch.callbacks.lr_schedulers import LRScheduler
from easytorch.checkpoint import files, rotation, state_dicts
from easytorch.data.epoch_iterator import EpochIterator
from easytorch.errors import ResumeError
from easytorch.losses.criterion import Criterion
from easytorch.metrics.collection import MetricCollection
from easytorch.strategies.base import Strategy
from easytorch.strategies.device import precision_here
from easytorch.training.results import History
from easytorch.training.state import TrainState

if TYPE_CHECKING:
    from typing_extensions import Self


def environment(device: torch.device, precision: str, jit_compile: bool, processes: int = 1) -> dict[str, Any]:
    """Return what, beside the state, decides about the last bits of every number."""
    return {
        "torch": torch.__version__.split("+")[0],
        "threads": torch.get_num_threads(),
        "device": device.type,
        "precision": precision,
        "jit_compile": jit_compile,
        "processes": processes,
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each difference between two environments."""
    return [
        f"{name} was {before.get(name)}, now it is {value}" for name, value in now.items() if before.get(name) != value
    ]


RESTORED_FROM_CHECKPOINT = (
    "lr",
)  # of what compile was given: in the state of the optimizer, which a resumed run takes over


class Saving:
    """The part of ``Model`` that writes and reads files."""

    module: nn.Module
    device: torch.device
    optimizer: torch.optim.Optimizer | None
    strategy: Strategy
    state: TrainState
    loss: Criterion
    metrics: MetricCollection
    callbacks: CallbackList
    feed: EpochIterator | None
    stop_training: bool
    schedules: list[LRScheduler]
    _history: History
    _compiled: dict[str, Any] | None  # what compile() was given
    lacks_compile = False  # whether a file was loaded whose model was compiled with what no file holds

    def compile(self, *args: Any, **kwargs: Any) -> Self:
        """Choose how to train; see ``Model.compile``."""
        raise NotImplementedError(f"{type(self).__name__} must define compile()")

    def __repr__(self) -> str:
        how = "not compiled" if self._compiled is None else f"{type(self.optimizer).__name__} on {self.loss!r}"
        epochs = f"{self.state.epoch} epoch{'s' * (self.state.epoch != 1)}"
        return f"{type(self).__name__}({type(self.module).__name__} on {self.device}, {how}, {epochs})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle or a copy holds: no data, and nothing that is there only while ``fit`` runs."""
        recipe = None if self._compiled is None else files.to_serializable_or_none(self._compiled) or {}
        silent = CallbackList([], self, {})  # type: ignore[arg-type]  # which is a Model
        return vars(self) | {"callbacks": silent, "feed": None, "last_fit": {}, "_compiled": recipe}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.optimizer is not None:  # which comes back without its hooks
            for schedule in self.schedules:
                schedule.watch(self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that ``save`` writes: tensors and plain values, the module's under its own names."""
        return self._state(self.strategy.gather_full)

    def _state(self, form: Callable[[Any], Any]) -> dict[str, Any]:
        parts = {name: form(part.state_dict()) for name, part in self._parts().items()}
        parts["optimizer_kind"] = None if self.optimizer is None else type(self.optimizer).__name__
        parts["schedules"] = [schedule.state_dict() for schedule in self.schedules]
        parts["precision"] = self.strategy.precision
        return parts | {
            "module": form(state_dicts.unwrapped_state_dict(self.module)),
            "compiled": files.to_serializable_or_none(self._compiled),
        }

    def save(self, path: str | os.PathLike[str] = "model.pt") -> Path:
        """Write weights, optimizer, history and what ``compile`` was given by name, and return the path.

        ``torch.load(path, weights_only=True)["module"]`` is the module's state dict. The file is whole or absent. Of many
        processes all call this, and process 0 writes.

        Raises:
            OSError: If it cannot be written; a file that was there is unchanged then.
            ValueError: If the name ends in ``.safetensors``, which holds weights alone.
        """
        files.check_ending(path)
        return self._write(files.write, path, {"format": files.FORMAT, "version": files.VERSION, **self.state_dict()})

    def _write(self, write: Callable[..., Path], path: str | os.PathLike[str], content: dict[str, Any]) -> Path:
        if os.fspath(path).endswith(("/", os.sep)):
            raise ValueError(
                f"{os.fspath(path)!r} is the name of a folder. Name the file, {os.path.join(path, 'model.pt')!r}."
            )
        return write(path, content) if self.strategy.group.is_main else Path(path)

    def load(self, path: str | os.PathLike[str]) -> Self:
        """Take everything back from a file that ``save`` wrote, or the newest whole one of a folder; return the model.

        A model that is not compiled yet is compiled as the saved one was, if that was by names alone (but for a scheduler, which
        is left out where it has none); in its precision, where the device has it.

        Raises:
            FileNotFoundError: If there is no such file.
            FileError: If it is not such a file, is damaged, or belongs to another module; nothing has changed then.
        """
        self.strategy.group.barrier()  # for a file that process 0 may be writing
        if Path(path).is_dir():
            path, content = rotation.read_newest(path, self.device)
        else:
            content = files.read_model(path, self.device)
        before = dict(vars(self))
        try:
            with files.as_file_error(path):
                self._take(content, path)
        except BaseException:
            vars(self).update(before)
            raise
        return self

    def _take(self, content: dict[str, Any], path: str | os.PathLike[str]) -> None:
        """Take over ``content``, or raise before anything has changed but attributes."""
        content = self._joined(content, path)
        weights = state_dicts.match_state_dict(content["module"], self.module, path)
        if self._compiled is None and content.get("compiled"):
            self.compile(**content["compiled"], **precision_here(self.device, content.get("precision")))
        self.lacks_compile = self._compiled is None and bool(content.get("optimizer"))
        state_dicts.check_optimizer(content, self.optimizer, path)
        self._check(content)
        schedules = list(zip(self.schedules, content["schedules"], strict=False))
        for schedule, state in schedules:
            schedule.check_state(state)
        self._take_parts(content, weights)
        for schedule, state in schedules:
            schedule.load_state_dict(state)

    def _joined(self, content: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return ``content`` with the tensors that lie in parts beside ``path``, where it has some."""
        if content.get("shards") is None:
            return dict(content)
        from easytorch.checkpoint import dcp

        return dcp.read_shards(content, Path(path), self.strategy.empty)

    def save_weights(self, path: str | os.PathLike[str]) -> Path:
        """Write the module's state dict, as safetensors where the name ends in ``.safetensors``, and return the path."""
        write = files.write_safetensors if Path(path).suffix == ".safetensors" else files.write
        return self._write(write, path, self.strategy.gather_full(state_dicts.unwrapped_state_dict(self.module)))

    def load_weights(self, path: str | os.PathLike[str]) -> Self:
        """Take the weights from a file of ``save``, ``save_weights`` or ``torch.save(net.state_dict(), ...)``.

        Raises:
            FileNotFoundError: If there is no such file.
            FileError: If it holds no weights, is damaged, or belongs to another module; nothing has changed then.
        """
        self.strategy.group.barrier()  # for a file that process 0 may be writing
        with files.as_file_error(path):
            content = files.read(path, self.device)
            weights = files.extract_weights(self._joined(content, path) if files.is_model(content) else content)
        self.strategy.load_weights(state_dicts.match_state_dict(weights, self.module, path))
        return self

    def training_state(self) -> dict[str, Any]:
        """Return everything that a run needs to go on exactly here; only while ``fit`` runs."""
        assert self.feed is not None
        return self._state(self.strategy.to_checkpoint) | {
            "format": files.FORMAT,
            "version": files.VERSION,
            "callbacks": [
                [type(one).__name__, self.strategy.to_checkpoint(one.state_dict())] for one in self._stateful()
            ],
            "environment": self._environment(),
            **self._own_state(),
        }

    def _own_state(self) -> dict[str, Any]:
        """Return what each process has of its own: totals, random states and its place in the data."""
        assert self.feed is not None
        own = {"metrics": self.metrics.state_dict(), "feed": self.feed.state_dict(self.state.epoch_step)}
        states = self.strategy.group.gather(own)
        return states[0] if len(states) == 1 else {**states[0], "processes": states}

    def _environment(self) -> dict[str, Any]:
        strategy = self.strategy
        return environment(self.device, strategy.precision, strategy.jit_compile, strategy.group.world_size)

    def load_training_state(self, content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
        """Go on exactly where ``training_state`` was taken; only while ``fit`` begins.

        Raises:
            ResumeError: If the data, the callbacks, the metrics or the optimizer are not those of the run.
            FileError: If the file belongs to another module.
        """
        if "feed" not in content:
            raise ResumeError(
                f"{str(path)!r} was written by save(), which keeps no place in the data. Use load() and fit()."
            )
        with files.as_file_error(path):
            content = self._joined(content, path)
            weights = state_dicts.match_state_dict(content["module"], self.module, path)
            self._check_run(content, path)
            self._tell_changes(content)
            self._take_run(content, weights)

    def _check_run(self, content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
        """Raise an error unless the run in ``content`` had the callbacks, the metrics and the optimizer of this one."""
        callbacks = [type(one).__name__ for one in self._stateful()]
        names = [(recipe or {}).get("scheduler") for recipe in (content["compiled"], self._compiled)]
        for what, before, now in (
            ("scheduler", *(names if all(names) else [None, None])),  # an object has no name, but a state
            ("callbacks with a state", [name for name, _ in content["callbacks"]], callbacks),
            ("metrics", content["metrics"]["names"], self.metrics.names),
        ):
            if before != now:
                raise ResumeError(
                    f"The run in {str(path)!r} had the {what} {before}; now it has {now}. Pass the same in the same order, or "
                    "begin anew in another folder."
                )
        state_dicts.check_optimizer(dict(content), self.optimizer, path, ResumeError)
        self._check(content)

    def _tell_changes(self, content: Mapping[str, Any]) -> None:
        """Warn of what is another now than in the run in ``content``, and need not be the same."""
        for line in changes({"processes": 1, **content["environment"]}, self._environment()):
            warn(f"{line}: the run goes on, but not with the same bits.")
        before, now = content["compiled"], files.to_serializable_or_none(self._compiled)
        if not before or not now:  # an object is among them, which no file holds
            return
        for line in changes(
            before, {name: value for name, value in now.items() if name not in RESTORED_FROM_CHECKPOINT}
        ):
            warn(f"{line}: the run goes on with the new one, so its numbers are others from here on.")
        for line in changes(before, {name: now.get(name) for name in RESTORED_FROM_CHECKPOINT}):
            warn(f"{line}: the run keeps its own. For the new one, load() the checkpoint and fit() without resume.")
        self._compiled = now | {name: before.get(name) for name in RESTORED_FROM_CHECKPOINT}

    def _take_run(self, content: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
        """Go on with the run in ``content``, for as many epochs as were planned."""
        assert self.feed is not None
        group, planned = self.strategy.group, self.state.last - self.state.first
        states = content.get("processes", [content])
        own = states[group.rank] if len(states) == group.world_size else states[0]
        self.feed.load_state_dict(own["feed"])
        self._take_parts(content, weights)
        self.state.last = self.state.first + planned
        if len(states) == group.world_size:
            self.metrics.load_state_dict(own["metrics"])
        elif group.is_main:  # what all of them have measured goes on in one
            self.metrics.load_state_dict(self.metrics.merged([state["metrics"] for state in states]).state_dict())
        self.stop_training = False
        for one, (_, state) in zip(self._stateful(), content["callbacks"], strict=True):
            if one.all_ranks or group.is_main:
                one.load_state_dict(state)
        if self.stop_training:  # a run that stopped early has come to its end
            self.state.last = self.state.epoch

    def _take_parts(self, content: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
        """Take over the weights and every part; the optimizer first, which may still refuse."""
        if self.optimizer is not None and content.get("optimizer"):
            self.strategy.load_optimizer_state(self.optimizer, content["optimizer"])
        self.strategy.load_weights(weights)
        for name, part in self._parts().items():
            if name != "optimizer":
                part.load_state_dict(content[name])

    def _check(self, content: Mapping[str, Any]) -> None:
        """Raise an error if a part of ``content`` could not be taken over."""
        had = content.get("optimizer_kind", "") is not None  # a model without an optimizer has none to take
        if self.optimizer is not None and had and "optimizer" not in content:
            raise KeyError("optimizer")
        TrainState().load_state_dict(content["state"])
        History().load_state_dict(content["history"])
        self.strategy.check_state(content["strategy"])

    def _stateful(self) -> list[Callback]:
        return [one for one in self.callbacks.callbacks if type(one).state_dict is not Callback.state_dict]

    def _parts(self) -> dict[str, Any]:
        parts = {"optimizer": self.optimizer, "strategy": self.strategy, "state": self.state, "history": self._history}
        return {name: part for name, part in parts.items() if part is not None}
