"""Base class of callbacks that write a run to an experiment tracker."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import inspect
import json
import numbers
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from easytorch._utils.api_hints import OPTION_HINTS
from easytorch._utils.images import figure_to_pixels, to_pixels
from easytorch._utils.integers import boolean
from easytorch._utils.paths import check_output_folder, to_absolute_path
from easytorch._utils.registry import did_you_mean
from easytorch._utils.rng import get_host_rng_state, set_host_rng_state
from easytorch._utils.warnings import warn
from easytorch.callbacks.base import Callback
from easytorch.callbacks.every import Every, as_every
from easytorch.callbacks.run_config import as_jsonable, describe_run, flatten, merge_config
from easytorch.optimizer_group import learning_rates

if TYPE_CHECKING:
    from easytorch.model import Model

# Prefix of the names of values of updates. Values of epochs have other steps, so they need other names.
UPDATE_PREFIX = "batch_"
# Seconds after a failure before the next attempt, so that a server that does not answer costs little.
RETRY_SECONDS = 60.0
# Points that wait for a server. The oldest are discarded first.
MAX_WAITING = 10_000
# Values that a checkpoint holds because the tracker may have lost them. W&B writes its file in blocks of 32 KiB.
MAX_RECENT_VALUES = 2_000
# Failures in a row after which a tracker is regarded as away.
FAILURES_IN_A_ROW = 2
# Attempts to write images before these are dropped. They are large, and they are in no checkpoint.
MAX_IMAGE_ATTEMPTS = 3
# Warnings of a fit about what a tracker refuses.
MAX_REFUSAL_WARNINGS = 5


@dataclasses.dataclass(eq=False)
class Point:
    """What is written at one step.

    Attributes:
        kind: ``"values"``, ``"text"`` or ``"image"``.
        content: Numbers, texts, or images as bytes, by name.
        axis: ``"epoch"`` or ``"step"``.
        step: The index of the epoch from 0, or the number of updates.
        call: The method of the user that wrote it; empty for values of training.
        attempts: The number of failed attempts to write it, of an image.
    """

    kind: str
    content: dict[str, Any]
    axis: str
    step: int
    call: str = ""
    attempts: int = 0


class Tracker(Callback, abc.ABC):
    """Base class of callbacks that write a run to an experiment tracker; override ``open_run``, ``write`` and ``close_run``.

    A run starts with the first epoch of a fit. It gets the hyperparameters, the values of each epoch under the names of the
    logs at the index of the epoch from 0, and with ``update_freq`` the means so far under ``batch_loss``, ... at the number of
    the update, as well as ``batch_lr``, what ``GradientStatistics`` measures, and validations between updates.

    A failure of a tracker is a warning, once in a fit, and training continues. What could not be written is stored, also in
    checkpoints. It is written a minute later, at the end of the fit, or by a resumed run. A value that a tracker refuses,
    although it accepts others, is dropped with a warning that names it. Images and files never delay numbers.

    A run that ``fit(resume=...)`` continues is the same run of the tracker. Points that it has are not written again.
    A second fit of the same model with the same object continues the run; a fit of another model starts a new one.
    On several processes, only rank 0 writes.

    Args:
        update_freq: ``"epoch"`` to write only the values of epochs. An integer, or an ``Every`` of updates or minutes, to also
            write values of updates after this many updates. Reading them waits for the device.
        config: Further hyperparameters by name; nested dicts become names with points, and lists with dicts JSON. One that
            differs from a hyperparameter of the fit, such as ``lr``, is written as ``config.lr``, with a warning.
        log_model: Whether to upload the model, as ``Model.save`` writes it, at the end of a fit that neither failed nor was
            interrupted.

    Attributes:
        run_id: The identifier of the run; None before the first epoch.

    Raises:
        ValueError: If ``update_freq`` is no such frequency; in ``fit``, if ``log_model`` and the module is sharded.

    Examples:
        >>> class PrintTracker(Tracker):
        ...     def open_run(self, run_id, config):
        ...         return run_id or "run-1"
        ...
        ...     def write(self, values, axis, step):
        ...         print(axis, step, values)
        >>> model.fit(x, y, epochs=3, callbacks=[PrintTracker(update_freq=100)])
    """

    optional = True
    all_ranks = False
    # After callbacks that add to the logs or change the weights, and before a checkpoint is written.
    priority = 6

    def __init__(
        self,
        *,
        update_freq: str | int | Every = "epoch",
        config: Mapping[str, object] | None = None,
        log_model: bool = False,
    ) -> None:
        self.update_freq = as_every("update_freq", update_freq, ("updates", "minutes"))
        if config is not None and not isinstance(config, Mapping):
            raise ValueError(
                f"config must be a dict of hyperparameters, received {type(config).__name__}. For a namespace of argparse, pass "
                "config=vars(args)."
            )
        self.config = dict(config or {})
        self.log_model = boolean("log_model", log_model)
        self.run_id: str | None = None
        self._owner: Model | None = None  # the model whose run it is
        self._written_at = time.perf_counter()
        self._is_dry = False
        self._reset()

    def _reset(self) -> None:
        """Forget the run."""
        self.run_id = self._fixed_run_id()
        self._is_open = False
        self._waiting: deque[Point] = deque(maxlen=MAX_WAITING)
        self._recent: deque[Point] = deque()
        self._recent_count = 0
        self._unsure: list[Point] = []  # points of the checkpoint that the tracker may have lost
        self._last_steps: Mapping[str, int] = {}  # the last step of each name before the run was continued
        self._is_resumed = self._has_warned = self._has_begun = self._was_open = False
        self._retry_at = self._retry_images_at = 0.0
        self._status = "finished"
        self._run_config: dict[str, Any] = flatten(self.config)
        self._notices: list[str] = []  # warnings to raise outside of calls of the tracker
        self._refused: set[str] = set()  # names of which the fit has warned
        self._failed: list[Point] = []  # points that have failed since the tracker has accepted one

    # What a subclass implements

    @abc.abstractmethod
    def open_run(self, run_id: str | None, config: Mapping[str, Any]) -> str | None:
        """Start a run, or continue one, and return its identifier.

        Args:
            run_id: The identifier of the run to continue; None for a new one.
            config: The hyperparameters by name: numbers, bools and text.
        """

    def read_last_steps(self) -> Mapping[str, int] | None:
        """Return the last step of each name that the continued run has; by default None, which is unknown.

        If it is unknown, a run that was killed and resumed has the points after its last checkpoint twice.
        """
        return None

    def format_name(self, name: str) -> str:
        """Return the name of a value as the tracker accepts it; by default unchanged.

        Args:
            name: The name in the logs, such as ``"val_loss"``.
        """
        return name

    @abc.abstractmethod
    def write(self, values: Mapping[str, float], axis: str, step: int) -> None:
        """Write numbers.

        Args:
            values: The numbers by name; they may be NaN or infinite.
            axis: ``"epoch"`` or ``"step"``.
            step: The index of the epoch from 0, or the number of updates.
        """

    def write_text(self, texts: Mapping[str, str], axis: str, step: int) -> None:
        """Write texts by name, also lists as JSON; by default nothing.

        Args:
            texts: The texts by name.
            axis: ``"epoch"`` or ``"step"``.
            step: The index of the epoch from 0, or the number of updates.
        """

    def write_image(self, name: str, pixels: np.ndarray[Any, np.dtype[np.uint8]], axis: str, step: int) -> None:
        """Write an image, ``[height, width, 1, 3 or 4]`` of bytes; by default nothing.

        Args:
            name: The name of the image.
            pixels: Bytes, ``[height, width, 1, 3 or 4]``.
            axis: ``"epoch"`` or ``"step"``.
            step: The index of the epoch from 0, or the number of updates.
        """

    def write_file(self, path: Path, name: str) -> None:
        """Upload the file ``path`` as ``name``; by default nothing.

        Args:
            path: The file.
            name: Its name in the tracker.
        """

    def close_run(self, status: str) -> None:
        """End the run, which a later fit may continue.

        Args:
            status: ``"finished"``, ``"failed"``, or ``"interrupted"`` by a signal or a limit.
        """

    def _fixed_run_id(self) -> str | None:
        """Return the identifier of the run that the user has passed."""
        return None

    # Methods for the user

    def log_values(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Write further numbers or texts at an update.

        Args:
            values: The values by name.
            step: The number of updates; by default the current one.

        Raises:
            RuntimeError: Before the first fit, as in all methods ``log_...``.
            TypeError: If ``values`` is no dict, or ``step`` no integer.

        Examples:
            >>> logger = TensorBoard("logs")
            >>> history = model.fit(x, y, callbacks=[logger], verbose=0)
            >>> logger.log_values({"test_accuracy": 0.9})
        """
        if not isinstance(values, Mapping):
            raise TypeError(
                f"log_values() takes a dict of values by name, received {type(values).__name__}. "
                'Call log_values({"score": 0.5}).'
            )
        self._record(values, "step", self._current_step("log_values", step), "log_values")
        self._close_after_fit()

    def log_image(self, name: str, image: object, step: int | None = None) -> None:
        """Write an image, in a hook or after a fit.

        Args:
            name: The name.
            image: A tensor or an array, ``[height, width]``, ``[channels, height, width]`` or ``[height, width, channels]``.
                Integers from 0 to 255 are bytes, also of another dtype than uint8 if one is above 1. Other numbers from 0 to 1
                are black to white; if some are outside of this range, the lowest is black and the highest white.
            step: The number of updates; by default the current one.

        Raises:
            TypeError: If ``name`` is no name, as in ``log_image(image, name)``.
            ValueError: If the shape is not that of an image.

        Examples:
            >>> logger = TensorBoard("logs")
            >>> history = model.fit(x, y, callbacks=[logger], verbose=0)
            >>> logger.log_image("noise", torch.rand(1, 28, 28))
        """
        name = check_name("log_image", name, "image")
        step = self._current_step("log_image", step)
        if self._is_writer():
            self._send_point(Point("image", {self.format_name(name): to_pixels(image)}, "step", step, "log_image"))

    def log_figure(self, name: str, figure: object, step: int | None = None) -> None:
        """Write a figure of matplotlib as an image.

        Args:
            name: The name.
            figure: The figure of matplotlib.
            step: The number of updates; by default the current one.

        Raises:
            TypeError: If it is no figure, or ``name`` no name, as in ``log_figure(figure, name)``.

        Examples:
            >>> logger = TensorBoard("logs")
            >>> history = model.fit(x, y, callbacks=[logger], verbose=0)
            >>> logger.log_figure("curves", history.plot(show=False))
        """
        name = check_name("log_figure", name, "figure")
        step = self._current_step("log_figure", step)
        if self._is_writer():
            pixels = figure_to_pixels(figure)
            self._send_point(Point("image", {self.format_name(name): pixels}, "step", step, "log_figure"))

    def log_report(self, report: object, name: str = "report", step: int | None = None) -> None:
        """Write the numbers and the picture of ``model.report(x, y)``.

        The numbers are ``report/accuracy`` and the ends of its 95% interval, ``report/accuracy_low`` and
        ``report/accuracy_high``. The picture needs matplotlib.

        Args:
            report: The report.
            name: The start of all names.
            step: The number of updates; by default the current one.

        Raises:
            TypeError: If it is no report.

        Examples:
            >>> logger = TensorBoard("logs")
            >>> history = model.fit(x, y, callbacks=[logger], verbose=0)
            >>> logger.log_report(model.report(x, y, verbose=0), "test")
        """
        step = self._current_step("log_report", step)
        if not hasattr(report, "summary") or not hasattr(report, "plot"):
            raise TypeError(f"report must be a report, received {type(report).__name__}. Pass model.report(x, y).")
        if not self._is_writer():
            return
        values: dict[str, float] = {}
        for entry, estimate in report.summary.items():
            values |= {f"{name}/{entry}": estimate.value, f"{name}/{entry}_low": estimate.low}
            values[f"{name}/{entry}_high"] = estimate.high
        self._record(values, "step", step, "log_report")
        self.log_figure(name, report.plot(show=False), step)

    def log_file(self, path: str | Path, name: str | None = None) -> None:
        """Upload a file, such as the best checkpoint.

        Args:
            path: The file.
            name: Its name in the tracker; by default that of the file.

        Raises:
            FileNotFoundError: If there is no such file.

        Examples:
            >>> logger = TensorBoard("logs")
            >>> history = model.fit(x, y, callbacks=[logger], verbose=0)
            >>> path = model.save("digits.pt")
            >>> logger.log_file("digits.pt")
        """
        self._current_step("log_file", None)
        source = to_absolute_path(path)
        if not self._is_writer():
            return
        if not source.is_file():
            raise FileNotFoundError(f"There is no file {str(source)!r} to upload. Pass the path of a file that exists.")
        if self._attempt(self._open, now=True):
            self._attempt(lambda: self.write_file(source, name or source.name), now=True, is_file=True)
        self._close_after_fit()

    def _current_step(self, method: str, step: int | None) -> int:
        if self._owner is None and not hasattr(self, "model"):
            raise RuntimeError(
                f"{method}() writes to the run of a fit, and there was none. Call fit(..., callbacks=[logger]) first."
            )
        if step is not None and (isinstance(step, bool) or not isinstance(step, numbers.Integral)):
            raise TypeError(
                f"step of {method}() must be an integer, received {step!r}. Leave it out to use the number of the last update."
            )
        return self.model.state.step if step is None else int(step)

    def _is_writer(self) -> bool:
        return not self._is_dry and self.model.strategy.group.is_main

    # Hooks

    def on_train_begin(self, logs: Any = None) -> None:
        """Check the arguments; the run starts with the first epoch, when a stopped run is restored."""
        if self._owner is not self.model:
            self._close("finished")
            self._reset()
        self._owner, self._is_dry, self._has_warned, self._status = self.model, False, False, "finished"
        self._is_resumed, self._has_begun, self._last_steps = False, False, {}
        self._retry_at = self._retry_images_at = 0.0
        self._refused = set()
        for argument, folder in self._local_folders().items():
            check_output_folder(folder, argument)
        is_sharded = any(hasattr(parameter, "to_local") for parameter in self.model.module.parameters())
        if self.log_model and is_sharded:
            raise ValueError(
                f"{type(self).__name__}(log_model=True) cannot save a sharded module, because only rank 0 writes. Remove it, use "
                "ModelCheckpoint, and call log_file(path) after fit()."
            )

    def _local_folders(self) -> Mapping[str, Path]:
        """Return the folders that the tracker writes to, by the arguments that name them; ``fit`` checks them first."""
        return {}

    def redirect(self, folder: Path) -> None:
        """Write nothing to the tracker."""
        self._is_dry = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the run, or continue it."""
        if self._is_dry:
            return
        self._has_begun = True
        if not self._is_open:
            self._attempt(self._open)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Write the values of the update, if it is due."""
        if self.update_freq.epochs is not None:
            return
        now, step = time.perf_counter(), self.model.state.step
        if self.update_freq.is_due_after_update(step, now - self._written_at):
            self._written_at = now
            rates = learning_rates(self.model.require_optimizer("fit"))
            self._record_update(dict((logs or {}).items()) | rates, step)

    def on_log(self, values: Mapping[str, float], step: int) -> None:
        """Write what another callback has measured in an update."""
        self._record_update(values, step)

    def on_validation_end(self, logs: Any = None) -> None:
        """Write the values of a validation that follows an update."""
        if self.params.get("validates_between_updates"):
            self._record_update(logs or {}, self.model.state.step)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write the values of the epoch."""
        self._record(logs or {}, "epoch", epoch)

    def on_interrupt(self) -> None:
        """Record that a signal or a limit ended training."""
        self._status = "interrupted"

    def on_exception(self, error: BaseException) -> None:
        """Record that training failed."""
        self._status = "failed" if isinstance(error, Exception) else "interrupted"

    def on_train_end(self, logs: Any = None) -> None:
        """Upload the model, if wanted, and end the run with its status."""
        if self._is_dry or not self._has_begun:
            self._is_dry = False
            return
        if self.model.callbacks.diverged:
            self._status = "failed"
        self._flush(now=True)
        if self.log_model and self._status == "finished":
            self._attempt(self._upload_model, now=True, is_file=True)
        if len(self._refused) > MAX_REFUSAL_WARNINGS:
            warn(
                f"{type(self).__name__} has refused values of {len(self._refused)} names in all; they are dropped. The warnings "
                "about the first names state the reasons."
            )
        if self._waiting:
            warn(
                f"{type(self).__name__} could not write {len(self._waiting)} points. Run fit(..., resume=folder) again: it "
                "writes the points before the last checkpoint."
            )
        self._close(self._status)
        self._has_begun = False

    def close_on_failure(self) -> None:
        """End the run."""
        self._close("failed")

    def state_dict(self) -> dict[str, Any]:
        """Return the identifier of the run, and the points that the tracker may not have yet."""
        return {"run_id": self.run_id, "recent": _to_json(self._recent), "waiting": _to_json(self._waiting)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the run of the checkpoint."""
        if self._is_resumed:
            return  # the second time, in the middle of an epoch
        if self._fixed_run_id() is None and self.run_id != state["run_id"]:
            self._close("finished")
            self._reset()
            self.run_id = state["run_id"]
        self._is_resumed = True
        self._unsure = _from_json(state["recent"])
        self._waiting.extend(_from_json(state["waiting"]))

    # Writing

    def _record_update(self, values: Mapping[str, Any], step: int) -> None:
        self._record({f"{UPDATE_PREFIX}{name}": value for name, value in values.items()}, "step", step)

    def _record(self, values: Mapping[str, Any], axis: str, step: int, call: str = "") -> None:
        """Write numbers and texts, now or when the tracker works again."""
        if not self._is_writer():
            return
        numbers_by_name, texts = split_values({self.format_name(str(name)): value for name, value in values.items()})
        if numbers_by_name:
            self._waiting.append(Point("values", numbers_by_name, axis, step, call))
        if texts:
            self._waiting.append(Point("text", texts, axis, step, call))
        self._flush()

    def _send_point(self, point: Point) -> None:
        self._waiting.append(point)
        self._flush()
        self._close_after_fit()

    def _flush(self, now: bool = False) -> None:
        """Write the points that wait, the oldest first, and images last.

        Args:
            now: Also soon after a failure.
        """
        has_numbers = any(point.kind != "image" for point in self._waiting)
        if has_numbers and not self._attempt(self._write_numbers, now=now):
            return
        # A store of images may be away while the numbers can be written, and must not delay them.
        if self._waiting and (now or time.monotonic() >= self._retry_images_at):
            self._attempt(self._write_images, now=now)

    def _write_numbers(self) -> None:
        self._open()
        error = self._find_error([point for point in self._waiting if point.kind != "image"])
        if error is not None:
            raise error

    def _write_images(self) -> None:
        self._open()
        images = [point for point in self._waiting if point.kind == "image"]
        error = self._find_error(images)
        if error is None:
            return
        self._retry_images_at = time.monotonic() + RETRY_SECONDS
        self._report_failure(error)
        for point in images:
            point.attempts += 1
            if point.attempts >= MAX_IMAGE_ATTEMPTS and point in self._waiting:
                self._refuse(point, error)

    def _find_error(self, points: list[Point]) -> BaseException | None:
        """Write ``points``, and return the error of those that failed and wait.

        A point that fails is written again after another one has succeeded. If it fails then too, the tracker refuses it, and
        it is dropped. After a failure the oldest point with another name is next, so that the points of a name stay in order.
        After failures in a row without such a point, or if that fails too, the tracker is away.
        """
        queue, failed, in_a_row = deque(filter(self._keep_new, points)), list[Point](), 0
        refused: set[str] = set()
        first_error: BaseException | None = None
        while queue:
            suspects = set[str]().union(*(other.content for other in [*failed, *self._failed]))
            suspects |= self._refused if failed else set()
            point = _first_with_other_names(queue, suspects)
            if in_a_row > FAILURES_IN_A_ROW or (in_a_row == FAILURES_IN_A_ROW and point is None):
                break
            point = point or queue[0]
            queue.remove(point)
            error = self._try_point(point)
            if error is not None and refused.issuperset(point.content):
                self._refuse(point, error)
                continue
            has_parts = error is not None and len(point.content) > 1
            if error is None or (has_parts and self._try_parts(point, suspects)):
                # The tracker is not away, so that it refuses what fails now.
                in_a_row, first_error = 0, None
                again = [*failed, *(other for other in self._failed if other in queue)]
                self._failed = []
                for other in again:
                    if other in queue:
                        queue.remove(other)
                    other_error = self._try_point(other)
                    if other_error is not None and len(other.content) > 1:
                        self._try_parts(other, accepts=True)
                    elif other_error is not None:
                        refused |= other.content.keys()
                        self._refuse(other, other_error)
                failed.clear()
            elif has_parts:
                in_a_row += 1
            if error is not None and point in self._waiting:
                failed.append(point)
                first_error, in_a_row = first_error or error, in_a_row + 1
        # The next attempt starts with other names, because what the tracker refuses may be first. It starts again after all.
        self._failed = [point for point in self._failed if point in self._waiting and point not in failed] + failed
        suspects = {name for point in self._failed for name in point.content}
        if suspects.issuperset(name for point in points if point in self._waiting for name in point.content):
            self._failed = []
        return first_error

    def _keep_new(self, point: Point) -> bool:
        """Discard the values of a point that the run has already, and return whether there are others."""
        last = self._last_steps
        point.content = {name: value for name, value in point.content.items() if last.get(name, -1) < point.step}
        if not point.content:
            self._discard(point)
        return bool(point.content)

    def _try_point(self, point: Point) -> BaseException | None:
        """Write a point and remove it from those that wait, or return the error."""
        try:
            if point.kind == "values":
                self.write(point.content, point.axis, point.step)
            elif point.kind == "text":
                self.write_text(point.content, point.axis, point.step)
            else:
                for name, pixels in point.content.items():
                    self.write_image(name, pixels, point.axis, point.step)
        except (Exception, SystemExit) as error:
            return error
        self._remember(point)
        self._discard(point)
        return None

    def _try_parts(self, point: Point, suspects: Collection[str] = (), accepts: bool = False) -> bool:
        """Write the values of a point that failed one by one, and return whether the tracker accepts some.

        Those that it does not accept are dropped after another attempt. The point waits, with the values that are left, if the
        tracker is away.

        Args:
            point: The point.
            suspects: Names of points that have failed, which are last.
            accepts: Whether the tracker has just accepted another point, so that it is not away.
        """
        # Long names are a frequent reason.
        names = sorted(point.content, key=lambda name: (name in suspects or name in self._refused, len(name)))
        failed: list[Point] = []
        in_a_row = 0 if accepts else FAILURES_IN_A_ROW - 1
        for name in names:
            part = dataclasses.replace(point, content={name: point.content[name]})
            if self._try_point(part) is None:
                point.content = {other: value for other, value in point.content.items() if other != name}
                in_a_row = 0
                continue
            failed.append(part)
            in_a_row += name not in self._refused or len(failed) == len(names)
            if not accepts and in_a_row >= FAILURES_IN_A_ROW:
                return len(point.content) < len(names)
        self._discard(point)
        for part in failed:
            error = self._try_point(part)
            if error is not None:
                self._refuse(part, error)
        return True

    def _refuse(self, point: Point, error: BaseException) -> None:
        """Drop a point, with a warning that names it."""
        self._discard(point)
        new = [name for name in point.content if name not in self._refused]
        self._refused.update(new)
        if new and len(self._refused) <= MAX_REFUSAL_WARNINGS:
            names = ", ".join(repr(name if len(name) <= 40 else f"{name[:40]}\N{HORIZONTAL ELLIPSIS}") for name in new)
            what = f"{point.call}({names})" if point.call else f"The value {names}"
            self._notices.append(
                f"{what} was refused by {type(self).__name__}, and is not written: "
                f"{type(error).__name__}: {_one_line(error)}"
            )

    def _discard(self, point: Point) -> None:
        if point in self._waiting:  # unlike a part of a point
            self._waiting.remove(point)

    def _close_after_fit(self) -> None:
        """End a run that a method has opened outside of a fit."""
        if not self._has_begun and self._is_writer():
            self._close(self._status)

    def _remember(self, point: Point) -> None:
        if point.kind == "image":
            return
        self._recent.append(point)
        self._recent_count += len(point.content)
        while self._recent_count > MAX_RECENT_VALUES and len(self._recent) > 1:
            self._recent_count -= len(self._recent.popleft().content)

    def _open(self) -> None:
        """Open the run, unless it is open."""
        if self._is_open:
            return
        continues = self.run_id is not None
        if self.model.train_data is not None:  # within a fit
            self._run_config, warning = merge_config(describe_run(self.model, self.params), flatten(self.config))
            if warning and not self._was_open:
                self._notices.append(f"{type(self).__name__}: {warning}")
        self.run_id = self.open_run(self.run_id, self._run_config)
        if continues and (self._is_resumed or not self._was_open):
            last_steps = self.read_last_steps()
            if last_steps is not None:
                self._last_steps = last_steps
                self._waiting.extendleft(reversed(self._unsure))
            self._unsure = []
            self._warn_of_existing_points()
        self._is_open = self._was_open = True

    def _warn_of_existing_points(self) -> None:
        """Warn if the user has passed a run that has points, and does not resume it."""
        state, last = self.model.state, self._last_steps
        is_repeated = last.get("loss", -1) >= state.first or last.get(f"{UPDATE_PREFIX}loss", -1) > state.step
        if not self._is_resumed and is_repeated:
            warn(
                f"The run {self.run_id!r} of {type(self).__name__} has points already, and points up to these are not written "
                "again. Use another run, or fit(resume=...) to continue the training of this one."
            )

    def _upload_model(self) -> None:
        self._open()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.pt"
            self.model.save(path)
            self.write_file(path, "model.pt")

    def _close(self, status: str) -> None:
        if self._is_open:
            self._is_open = False
            self._attempt(lambda: self.close_run(status), now=True)

    def _attempt(self, action: Callable[[], None], now: bool = False, is_file: bool = False) -> bool:
        """Call ``action``, and return whether it succeeded; a failure is a warning, once in a fit.

        Args:
            action: What to do with the tracker.
            now: Also soon after a failure.
            is_file: Whether a failure does not delay what is written next.
        """
        if not now and time.monotonic() < self._retry_at:
            return False
        # Names and delays of trackers are random numbers, which must not change those of training.
        states = get_host_rng_state()
        failure: BaseException | None = None
        try:
            with self.quiet(), warnings.catch_warnings():
                # What libraries use among themselves. As an error it would stop the tracker.
                for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning):
                    warnings.simplefilter("ignore", category)
                action()
        except (Exception, SystemExit) as error:
            failure = error
            if not is_file:
                self._retry_at = time.monotonic() + RETRY_SECONDS
        finally:
            set_host_rng_state(states)
        if failure is not None:
            self._report_failure(failure, is_file)
        notices, self._notices = self._notices, []
        for notice in notices:
            warn(notice)
        return failure is None

    def _report_failure(self, error: BaseException, is_file: bool = False) -> None:
        """Warn of a failure, once in a fit."""
        if not self._has_warned:
            self._has_warned = True
            later = "this file is not written" if is_file else "what it could not write is written later"
            self._notices.insert(
                0,
                f"{type(self).__name__} failed; training continues, and {later}. {type(error).__name__}: {_one_line(error)}",
            )

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Call the library of the tracker inside, without output that would disturb the progress bar."""
        yield


def _first_with_other_names(points: Iterable[Point], names: Collection[str]) -> Point | None:
    """Return the first point without ``names``, or else the first with some other name, or None."""
    others = [point for point in points if any(name not in names for name in point.content)] if names else points
    return next(
        (point for point in others if not any(name in names for name in point.content)), next(iter(others), None)
    )


def check_options(cls: type, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise a ``TypeError`` if ``function``, which starts the run much later, does not take ``options``."""
    known = list(inspect.signature(function).parameters)
    for name in options:
        if name not in known:
            hint = OPTION_HINTS.get(f"{cls.__name__}.{name}")
            fix = f" Use {hint}." if hint else did_you_mean(name, [*inspect.signature(cls).parameters, *known])
            raise TypeError(f"{cls.__name__} has no argument {name!r}.{fix}")


def check_name(method: str, name: object, content: str) -> str:
    """Return ``name`` as text; raise a ``TypeError`` that shows the call if it is no name."""
    if not isinstance(name, (str, numbers.Real)):
        raise TypeError(
            f"{method}() takes a name and then the {content}, received {type(name).__name__} as the name. "
            f'Call {method}("name", {content}).'
        )
    return str(name)


def split_values(values: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """Return the numbers among ``values``, and the others, but None, as text; lists are JSON."""
    found: dict[str, float] = {}
    texts: dict[str, str] = {}
    for name, value in values.items():
        is_scalar = isinstance(value, (Tensor, np.ndarray)) and _size(value) == 1
        if isinstance(value, (numbers.Real, np.bool_)) or is_scalar:
            found[name] = float(value)
        elif isinstance(value, str):
            texts[name] = value
        elif value is not None:
            texts[name] = json.dumps(as_jsonable(value.tolist() if hasattr(value, "tolist") else value))
    return found, texts


def _to_json(points: Iterable[Point]) -> str:
    # One text is smaller than a structure of many values, and JSON of Python holds NaN.
    return json.dumps([dataclasses.astuple(point) for point in points if point.kind != "image"])


def _from_json(text: str) -> list[Point]:
    return [Point(*fields) for fields in json.loads(text)]


def last_of(points: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return the largest step of each name among pairs of a name and a step."""
    steps: dict[str, int] = {}
    for name, step in points:
        steps[name] = max(step, steps.get(name, step))
    return steps


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _size(value: Any) -> int:
    return int(value.numel() if isinstance(value, Tensor) else value.size)
