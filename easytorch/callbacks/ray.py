"""Reports and checkpoints for Ray Tune and Ray Train."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from easytorch._utils.integers import boolean
from easytorch._utils.pytree import describe
from easytorch.callbacks.backup import BackupAndRestore
from easytorch.callbacks.early_stopping import check_log_name
from easytorch.checkpoint import rotation


class RayReport(BackupAndRestore):
    """Report the logs of each epoch to Ray Tune or Ray Train, with a checkpoint from which Ray resumes the run exactly.

    In a function of ``ray.tune.Tuner``, schedulers such as ASHA stop bad trials by these reports. A trial that Ray starts again,
    after an error or by ``Tuner.restore``, continues after its last report. In a function of ``ray.train.torch.TorchTrainer``,
    each worker is a rank, as under ``torchrun``; workers that Ray starts again after an error continue after the last report.

    The checkpoint has the complete state of the run, as that of ``fit(resume=...)``. Ray copies it to its storage, and reads it
    from there on any machine. ``Model.load`` reads ``result.checkpoint.path``, too.

    Args:
        metrics: Names of the values to report, or a mapping from the names for Ray to those of the logs; None for all. An epoch
            that lacks one of them, as one without validation, is not reported.
        checkpoint: Whether reports have a checkpoint. Without one, a trial that starts again trains from its first epoch.

    Raises:
        ImportError: If Ray is not installed.
        TypeError: If ``metrics`` is neither names nor a mapping.
        ValueError: In ``fit``, if the logs will not contain a value; with a checkpoint also if the weights are sharded, or if
            another callback resumes the run.
        RuntimeError: In ``fit``, outside of a function that Ray runs.

    Examples:
        >>> def train(config):  # doctest: +SKIP
        ...     model = Model(net()).compile("adam", "cross_entropy", ["accuracy"], lr=config["lr"])
        ...     model.fit(x, y, epochs=10, validation_split=0.2, callbacks=[RayReport()])
        >>> tuner = ray.tune.Tuner(train, param_space={"lr": ray.tune.loguniform(1e-4, 0.1)})  # doctest: +SKIP
        >>> results = tuner.fit()  # doctest: +SKIP
    """

    def __init__(
        self, metrics: str | Sequence[str] | Mapping[str, str] | None = None, *, checkpoint: bool = True
    ) -> None:
        checkpoint = boolean("checkpoint", checkpoint)
        _import_ray()
        super().__init__(Path(tempfile.gettempdir()) / "easytorch-ray", minutes=None, keep=1, delete_checkpoint=False)
        self.metrics = _as_names(metrics)
        self.checkpoint = checkpoint
        self._ray: Any = None  # ray.train or ray.tune
        self._is_silent = False

    @property
    def saved(self) -> Path | None:
        """None: Ray has the checkpoints."""
        return None

    def on_train_begin(self, logs: Any = None) -> None:
        """Check the names, and that no other callback resumes the run."""
        for name in (self.metrics or {}).values():
            check_log_name(name, "RayReport reports", self.model)
        if self.checkpoint and any(
            isinstance(callback, BackupAndRestore) and callback is not self
            for callback in self.model.callbacks.callbacks
        ):
            raise ValueError(
                "RayReport and resume= (or BackupAndRestore) both resume the run. Remove resume=, or pass "
                "RayReport(checkpoint=False)."
            )
        if self.checkpoint and self.model.strategy.checkpoints.always_in_background:
            raise ValueError(
                "RayReport cannot report sharded checkpoints. Pass strategy=easytorch.FullySharded(sharded_checkpoints=False), "
                "or RayReport(checkpoint=False) and fit(resume=...) with a folder on a shared disk."
            )
        if self.checkpoint:
            super().on_train_begin(logs)

    def redirect(self, folder: Path) -> None:
        """Report nothing."""
        self._is_silent, self._ray = True, None
        super().redirect(folder)

    def on_restore(self) -> None:
        """Get the checkpoint of the run from Ray, and resume from it, if there is one."""
        if not self._is_silent:
            self._ray = _find_session()
            self._download()
        if self.checkpoint:
            super().on_restore()

    def _download(self) -> None:
        # The path is the same on all machines, so that each rank finds the checkpoint that rank 0 chooses.
        group = self.model.strategy.group
        folder = group.broadcast(tempfile.mkdtemp(prefix="easytorch-ray-") if group.is_main else "")
        self._shown = self.source = self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint = self._ray.get_checkpoint() if self.checkpoint else None
        if checkpoint is not None:
            checkpoint.to_directory(folder)
        group.barrier()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Do nothing: a report belongs to an epoch."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Report the logs, and the state after this epoch."""
        values = self._select({name: float(value) for name, value in (logs or {}).items() if isinstance(value, Real)})
        if values is None or self._ray is None:
            return
        values["epoch"] = epoch + 1
        if not self.checkpoint or self.model.callbacks.diverged:
            self._ray.report(values)
            return
        self.save(final=True)
        # All ranks report, and one checkpoint is stored.
        if not self.model.strategy.group.is_main:
            self._ray.report(values)
            return
        path = rotation.step_path(self.folder, self.model.state.step)
        with tempfile.TemporaryDirectory(prefix="easytorch-ray-") as folder:
            os.replace(path, Path(folder) / path.name)
            self._ray.report(values, checkpoint=self._ray.Checkpoint.from_directory(folder))

    def _select(self, logs: Mapping[str, float]) -> dict[str, float] | None:
        """Return the values to report; None in an epoch that lacks one."""
        if self.metrics is None:
            return dict(logs)
        if any(name not in logs for name in self.metrics.values()):
            return None
        return {key: logs[name] for key, name in self.metrics.items()}

    def on_interrupt(self) -> None:
        """Do nothing: Ray has the checkpoint of the last epoch."""

    def on_exception(self, error: BaseException) -> None:
        """Do nothing: Ray has the checkpoint of the last epoch."""

    def on_train_end(self, logs: Any = None) -> None:
        """Remove the local files."""
        self._release_lock()
        if self.model.strategy.group.is_main and self._ray is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _as_names(metrics: Any) -> dict[str, str] | None:
    if metrics is None:
        return None
    if isinstance(metrics, str):
        metrics = [metrics]
    names = dict(metrics) if isinstance(metrics, Mapping) else {name: name for name in metrics}
    if not all(isinstance(name, str) for pair in names.items() for name in pair):
        raise TypeError(
            f"metrics must be names of values in the logs, received {describe(metrics)}. Pass RayReport(['val_loss'])."
        )
    return names


def _import_ray() -> Any:
    try:
        import ray.train
        import ray.tune
    except ImportError as error:
        raise ImportError('RayReport needs Ray: pip install "easytorch-fit[ray]"') from error
    return ray


def _find_session() -> Any:
    """Return ``ray.train`` or ``ray.tune``, whichever runs this function."""
    ray = _import_ray()
    try:
        if ray.train.get_context().get_world_size() is not None:
            return ray.train
    except (RuntimeError, DeprecationWarning):  # not in a worker of Ray Train; in a function of Ray Tune
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray warns outside of a session
        if ray.tune.get_context().get_trial_id() is not None:
            return ray.tune
    raise RuntimeError(
        "RayReport found no session of Ray. Use it in a function that ray.tune.Tuner or ray.train.torch.TorchTrainer runs, and "
        "without Ray pass fit(..., resume='run/')."
    )
