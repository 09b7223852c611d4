"""Jobs of SLURM that continue in the next run of the job."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

from easytorch._utils.registry import quote_list
from easytorch._utils.warnings import warn
from easytorch.callbacks.backup import BackupAndRestore
from easytorch.callbacks.base import Callback
from easytorch.distributed import slurm

SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGTERM")
# Seconds for an answer of the controller of SLURM.
TIMEOUT = 60.0


class SlurmRequeue(Callback):
    """Requeue a job of SLURM when its time ends or it is preempted; the next run of the job continues exactly.

    Submit the job with ``#SBATCH --signal=USR1@120`` and ``#SBATCH --requeue``, and start the program with ``srun``. Two minutes
    before the time limit, SLURM sends SIGUSR1. ``fit`` then leaves after the current update on all ranks and saves a checkpoint,
    callbacks finish, and rank 0 calls ``scontrol requeue``. SLURM starts the same batch script again.

    A job that SLURM preempts gets SIGTERM, and is requeued in the same way: SLURM itself requeues only jobs that still run when
    their grace time is over. ``scancel`` sends SIGTERM as well. Rank 0 asks SLURM whether the job is preempted, so that a job
    that a user cancels is not requeued. ``fit`` saves a checkpoint in each case.

    Outside of SLURM this callback does nothing.

    Args:
        signal: The signal of ``#SBATCH --signal``: ``"SIGUSR1"``, ``"SIGUSR2"``, or ``"SIGTERM"``, after which ``scancel``
            requeues the job, too.

    Attributes:
        requeued: Whether the job was requeued in the last ``fit``.

    Raises:
        ValueError: If ``signal`` is another one; in ``fit``, if the run is not saved, so that it would start again from its
            first epoch.

    Examples:
        >>> model.fit(loader, epochs=100, resume="run/", callbacks=[SlurmRequeue()])
    """

    # The last of on_interrupt and on_train_end: checkpoints and logs are complete.
    priority = 200
    optional = True

    def __init__(self, signal: str = "SIGUSR1") -> None:
        name = str(signal).upper()
        name = name if name.startswith("SIG") else f"SIG{name}"
        if name not in SIGNALS:
            raise ValueError(
                f"signal must be one of {quote_list(SIGNALS)}, received {signal!r}. Use the signal of #SBATCH --signal, such as "
                "SlurmRequeue(signal='SIGUSR1')."
            )
        self.signal, self.requeued = name, False
        self._is_due, self._is_active = False, True

    def on_train_begin(self, logs: Any = None) -> None:
        """Check that the next run of the job will find a checkpoint."""
        self.requeued = self._is_due = False
        if not any(isinstance(callback, BackupAndRestore) for callback in self.model.callbacks.callbacks):
            raise ValueError(
                "SlurmRequeue needs a saved run. Without it, each run of the job would start from the first epoch. Pass "
                "fit(..., resume='run/')."
            )

    def redirect(self, folder: Path) -> None:
        """Requeue nothing."""
        self._is_active = False

    def on_interrupt(self) -> None:
        """Request to requeue the job, now that the checkpoint is saved."""
        is_in_job = self._is_active and slurm.is_job(os.environ)
        self._is_due = is_in_job and self.model.history.stop_reason in (self.signal, "SIGTERM")

    def on_train_end(self, logs: Any = None) -> None:
        """Requeue the job, if its time ends."""
        if not self._is_due:
            return
        self._is_due = False
        # SLURM ends all processes of a job that it requeues; this one is about to end by itself.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        result = self._requeue(slurm.job_name(os.environ)) if self.model.strategy.group.is_main else None
        self.requeued = self.model.strategy.group.broadcast(result)

    def _requeue(self, job: str) -> bool:
        """Requeue ``job``, unless a user has canceled it; return whether that succeeded."""
        reason = self.model.history.stop_reason
        try:
            if reason != self.signal and not _is_preempted(_call("scontrol", "show", "job", job)):
                return False
            self.print_message(f"{reason}: the run is saved after update {self.model.state.step}; requeueing job {job}")
            _call("scontrol", "requeue", job)
        except (OSError, subprocess.SubprocessError) as error:
            message = str(getattr(error, "stderr", None) or error)
            fix = " Submit it with '#SBATCH --requeue'." * ("disabled" in message)
            warn(
                f"Job {job} was not requeued: {' '.join(message.split())!r}.{fix} The run is saved; submit the job again to "
                "continue it."
            )
            return False
        return True


def _is_preempted(job: str) -> bool:
    """Return whether SLURM is about to preempt a job, by the output of ``scontrol show job``."""
    fields = dict(field.split("=", 1) for field in job.split() if "=" in field)
    return fields.get("JobState") == "RUNNING" and fields.get("PreemptTime", "None") not in ("None", "Unknown")


def _call(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout
