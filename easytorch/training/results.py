"""History and Scores."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import torch

from easytorch._utils.html_table import MAX_EPOCHS, format_epochs, format_pairs
from easytorch._utils.notebook import SHOWN_NUMBERS, in_notebook
from easytorch._utils.paths import printable, to_path
from easytorch._utils.registry import did_you_mean, find, quote_list
from easytorch._utils.timer import PARTS, Timer, compute_fractions
from easytorch._utils.tracebacks import hide_internal_frames
from easytorch.callbacks.progress import format_number

if TYPE_CHECKING:
    from easytorch.model import Model
    from easytorch.training.state import TrainState

P = ParamSpec("P")
R = TypeVar("R")


def _forward(method: Callable[Concatenate[Model, P], R]) -> Callable[Concatenate[ModelVerbs, P], R]:
    """Return a method that calls ``method`` of the model, with the same signature and docstring."""

    @hide_internal_frames
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.model, method.__name__)(*args, **kwargs)

    return cast("Callable[Concatenate[ModelVerbs, P], R]", call)


class ModelVerbs:
    """Passes calls on to the model, so that ``model.fit(...).evaluate().save()`` works in one chain."""

    model: Model

    if TYPE_CHECKING:  # at run time ``forward_verbs`` adds these methods
        from easytorch.model import Model as _Model

        fit = _forward(_Model.fit)
        evaluate = _forward(_Model.evaluate)
        predict = _forward(_Model.predict)
        predict_proba = _forward(_Model.predict_proba)
        predict_classes = _forward(_Model.predict_classes)
        report = _forward(_Model.report)
        save = _forward(_Model.save)
        save_weights = _forward(_Model.save_weights)
        export = _forward(_Model.export)
        summary = _forward(_Model.summary)  # type: ignore[arg-type]  # its options are passed on

    def __getstate__(self) -> dict[str, Any]:
        """Return the numbers without the model, so that a pickle is small."""
        return {name: value for name, value in vars(self).items() if name != "model"}


def forward_verbs(model_class: type[Model]) -> None:
    """Add the methods of ``model_class`` that results pass on, with their signatures."""
    methods: list[Any] = [
        model_class.fit,
        model_class.evaluate,
        model_class.predict,
        model_class.predict_proba,
        model_class.predict_classes,
        model_class.report,
        model_class.save,
        model_class.save_weights,
        model_class.export,
        model_class.summary,
    ]
    for method in methods:
        setattr(ModelVerbs, method.__name__, _forward(method))


class Columns(dict[str, list[float]]):
    """The values of all epochs by name, with a suggestion for a name that is missing."""

    @hide_internal_frames
    def __missing__(self, name: Any) -> list[float]:
        raise KeyError(_no_column_message(name, self))


class History(ModelVerbs, Mapping[str, list[float]]):
    """The numbers of each epoch, over all fits of a model.

    ``model.history`` grows with each fit. What ``fit`` returned is a copy, which a later fit does not change.

    ``history["loss"]`` is a list with one value per epoch in which it was measured. ``history.history`` is a plain dict of all
    values, as in Keras. Its lists differ in length if a value was not measured in each epoch; ``to_frame()`` has NaN there.

    Attributes:
        rows: One dict per epoch. Callbacks get the same dict, so values that they add are part of the history.
        epoch: The number of each epoch, from 0.
        seconds: Duration of each epoch in seconds, by part: ``data`` (waiting for batches), ``model`` (forward and backward),
            ``optimizer``, ``validation`` and ``rest``.

    Examples:
        >>> history = model.fit(loader, epochs=5)
        >>> loss, epoch = history["loss"][-1], history.best("loss")["epoch"]
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.epoch: list[int] = []
        self.seconds: list[dict[str, float]] = []
        self._validations = Validations()
        self._fit: dict[str, Any] = {"params": {}, "interrupted": False, "stop_reason": ""}

    @property
    def params(self) -> dict[str, Any]:
        """``epochs``, ``steps`` and ``verbose`` of the last fit."""
        return dict(self._fit["params"])

    @params.setter
    def params(self, params: dict[str, Any]) -> None:
        self._fit["params"] = params

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C, SIGTERM or ``StopAfter`` stopped the last fit."""
        return bool(self._fit["interrupted"])

    @interrupted.setter
    def interrupted(self, interrupted: bool) -> None:
        self._fit["interrupted"] = interrupted

    @property
    def stop_reason(self) -> str:
        """Why the last fit ended early, such as ``"val_loss did not improve for 3 epochs"``; empty if it did not.

        A callback that sets ``model.stop_training`` may set ``model.history.stop_reason`` too.
        """
        return str(self._fit["stop_reason"])

    @stop_reason.setter
    def stop_reason(self, reason: str) -> None:
        self._fit["stop_reason"] = reason

    def snapshot(self) -> History:
        """Return a copy that later fits do not change."""
        copied = copy.copy(self)
        copied.rows, copied.epoch, copied.seconds = list(self.rows), list(self.epoch), list(self.seconds)
        copied._fit, copied._validations = dict(self._fit), self._validations.copy()
        return copied.with_model(self.model)

    def with_model(self, model: Model) -> History:
        """Return a view of this history that knows its model; the model itself holds one that does not."""
        view = copy.copy(self)
        view.model = model
        return view

    @property
    def history(self) -> dict[str, list[float]]:
        """All values as a dict of lists, in the order of their first appearance."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return Columns({name: [row[name] for row in self.rows if name in row] for name in names})

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self.history:
            raise AttributeError(f"A history has no attribute {name!r}. Its values are items: history[{name!r}].")
        raise AttributeError(f"A history has no attribute {name!r}. Its values are items, such as history['loss'].")

    @hide_internal_frames
    def __getitem__(self, name: str) -> list[float]:
        return self.history[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.history)

    def __len__(self) -> int:
        return len(self.history)

    @property
    def time_fractions(self) -> list[dict[str, float]]:
        """The part of each epoch's time that was spent on data, model, optimizer, validation and the rest."""
        return [compute_fractions(seconds) for seconds in self.seconds]

    def append(self, epoch: int, logs: dict[str, float], timer: Timer) -> None:
        """Add ``logs`` as the row of ``epoch``."""
        self.rows.append(logs)
        self.epoch.append(epoch)
        self.seconds.append(timer.read())

    @property
    def validations(self) -> list[dict[str, float]]:
        """The logs of each validation, with its ``epoch``, from 0, and its ``update``, the number of updates before it.

        An epoch with ``validation_freq=Every(updates=500)`` may have several; its row has the values of the last one.

        Examples:
            >>> history = model.fit(x, y, 20, 4, validation_data=(x, y), validation_freq=Every(updates=2), verbose=0)
            >>> losses = [row["val_loss"] for row in history.validations]
        """
        places = self._validations.places
        return [
            {"epoch": epoch, "update": update, **row}
            for (epoch, update), row in zip(places, self._validations.rows, strict=True)
        ]

    def append_validation(self, state: TrainState, steps: int | None, logs: dict[str, float]) -> None:
        """Add the ``logs`` of a validation at the position ``state``, in epochs of ``steps`` updates, None if unknown."""
        finished = state.epoch + (min(state.epoch_step / steps, 1.0) if steps else 1.0)
        self._validations.append((state.epoch, state.step), finished, logs)

    def follows_updates(self, name: str) -> bool:
        """Return whether ``name`` was measured by validations in the middle of epochs, of which an epoch has only the last."""
        pairs = zip(self._validations.finished, self._validations.rows, strict=True)
        return any(finished % 1 and name in row for finished, row in pairs)

    def last_validation(self, epoch: int) -> dict[str, float]:
        """Return the logs of the last validation, if it was in ``epoch``; otherwise an empty dict."""
        return dict(self._validations.rows[-1]) if self._validations.last_place[0] == epoch else {}

    def last_validated_names(self) -> Collection[str]:
        """Return the names in the logs of the last validation."""
        return self._validations.rows[-1].keys() if self._validations.rows else ()

    def last_validated_update(self) -> int:
        """Return the number of updates before the last validation; -1 without any."""
        return self._validations.last_place[1]

    @hide_internal_frames
    def best(self, monitor: str = "val_loss", mode: str = "auto") -> dict[str, float]:
        """Return the row, with its ``epoch`` from 0, in which ``monitor`` was best; NaN is never the best.

        If validations follow updates, it is a row of ``validations`` for a value that they measure.

        Args:
            monitor: The value to compare.
            mode: ``"min"``, ``"max"``, or ``"auto"`` for the mode of the metric.

        Returns:
            The values of the epoch by name, and its index as ``"epoch"``.

        Raises:
            KeyError: If the history has no such value.
            ValueError: If it was NaN in each epoch.

        Examples:
            >>> epoch = history.best("val_loss")["epoch"]
        """
        values, mode = self[monitor], find("mode", mode, {"auto": "auto", "min": "min", "max": "max"})
        if mode == "auto":
            mode = self.model.metrics.mode(monitor)
        rows = [{"epoch": epoch, **row} for epoch, row in zip(self.epoch, self.rows, strict=True)]
        rows = [row for row in (self.validations if self.follows_updates(monitor) else rows) if monitor in row]
        rows = [row for row in rows if not math.isnan(row[monitor])]
        if not rows:
            raise ValueError(
                f"{monitor!r} was NaN in each epoch: {values}. Train with callbacks=[TerminateOnNaN()], which finds the cause."
            )
        return (min if mode == "min" else max)(rows, key=lambda row: row[monitor])

    @hide_internal_frames
    def to_frame(self) -> Any:
        """Return a pandas frame with one row per epoch.

        Raises:
            ImportError: If pandas is not installed.

        Examples:
            >>> frame = history.to_frame()
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("History.to_frame() needs pandas: pip install pandas") from error
        return pandas.DataFrame(self.rows, index=pandas.Index(self.epoch, name="epoch"))

    @hide_internal_frames
    def plot(self, *names: str | Sequence[str], path: str | Path | None = None, show: bool | None = None) -> Any:
        """Plot values over the epochs, training and validation in one panel.

        A notebook shows the figure once: as the value of the cell, by ``plt.show()``, or at the end of the cell. In a script,
        ``plt.show()`` opens its window.

        Args:
            names: The values to plot, for example ``plot("loss", "accuracy")``; all numbers by default.
            path: File to write the figure to; None writes no file.
            show: Whether the notebook or ``plt.show()`` shows the figure; pyplot then holds it until it is closed. By default
                yes, except in a script that passes ``path``.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: If matplotlib is not installed.
            KeyError: If the history has no value of that name.
            ValueError: If no epoch has ended yet.

        Examples:
            >>> history.plot("loss", path="loss.png")
            >>> history.plot().axes[0].set_yscale("log")
        """
        try:
            from easytorch.training import curves
        except ImportError as error:
            raise ImportError("History.plot() needs matplotlib: pip install matplotlib") from error
        if not self.rows:
            raise ValueError("The history has nothing to plot, because no epoch has ended yet. Call model.fit() first.")
        panels = self._panel_names(names)
        figure = curves.create_figure(len(panels), show=in_notebook() or path is None if show is None else show)
        for i, name in enumerate(panels):
            points = {label: self._points(column) for label, column in self._curves(name).items()}
            axes = figure.add_subplot(1, len(panels), i + 1)
            curves.draw_panel(axes, name, {label: values for label, values in points.items() if values})
        if path is not None:
            figure.savefig(to_path(path), dpi=150)
        return figure

    def _points(self, name: str) -> list[tuple[float, float]]:
        """Return the number of finished epochs after which ``name`` was measured, and its value, of every validation."""
        if self.follows_updates(name):
            pairs = zip(self._validations.finished, self._validations.rows, strict=True)
            return [(finished, row[name]) for finished, row in pairs if name in row]
        return [(epoch + 1, row[name]) for epoch, row in zip(self.epoch, self.rows, strict=True) if name in row]

    def _panel_names(self, names: Iterable[Any]) -> list[str]:
        """Return the title of each panel for ``names``, which may contain lists."""
        values = self.history
        if not names:
            numeric = [name for name in values if all(isinstance(value, numbers.Real) for value in values[name])]
            return list(dict.fromkeys(self._panel(name)[0] for name in numeric if name.partition("_")[0] != "lr"))
        flat = [str(name) for entry in names for name in ([entry] if isinstance(entry, (str, Path)) else entry)]
        for name in flat:
            if name not in values and Path(name).suffix:
                raise KeyError(f"The history has no {name!r}. If it is a file to write, pass path={name!r}.")
            self[name]  # raises a KeyError with a suggestion
        return list(dict.fromkeys(self._panel(name)[0] for name in flat))

    def _panel(self, name: str) -> tuple[str, str]:
        """Return the title of the panel of a value, and the label of its curve.

        ``val_clean_loss`` is the loss of the data set ``clean``, unless training has a ``clean_loss``.
        """
        values = self.history
        if not name.startswith("val_"):
            return name, "training"
        name = name.removeprefix("val_")
        suffixes = [name.split("_", count)[-1] for count in range(1, name.count("_") + 1)]
        title = next((suffix for suffix in suffixes if name not in values and suffix in values), name)
        return title, f"validation {name.removesuffix(title).strip('_')}".strip()

    def _curves(self, title: str) -> dict[str, str]:
        """Return the name of the value of each curve in a panel, by label."""
        panels = {name: self._panel(name) for name in self.history}
        return {label: name for name, (panel, label) in panels.items() if panel == title}

    def state_dict(self) -> dict[str, Any]:
        """Return all rows: one tensor per name, or a list if a callback has added something else than numbers."""
        seconds = {
            part: torch.tensor([seconds[part] for seconds in self.seconds], dtype=torch.float64) for part in PARTS
        }
        epoch = torch.tensor(self.epoch, dtype=torch.int64)
        validations = {"validations": self._validations.state_dict()} if self._validations.rows else {}
        return {"epoch": epoch, **_to_columns(self.rows), "seconds": seconds, **validations}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all rows."""
        epochs = [int(epoch) for epoch in state["epoch"].tolist()]
        rows = _to_rows(state, len(epochs))
        validations = Validations()
        if "validations" in state:
            validations.load_state_dict(state["validations"])
        seconds = {part: state["seconds"][part].tolist() for part in PARTS}
        self.rows[:], self.epoch[:] = rows, epochs
        self.seconds[:] = [{part: seconds[part][i] for part in PARTS} for i in range(len(epochs))]
        for name, column in vars(validations).items():
            getattr(self._validations, name)[:] = column

    def __repr__(self) -> str:
        if not self.rows:
            return "History(no epochs)"
        last = ", ".join(
            f"{printable(name)}={printable(_format_value(value))}" for name, value in self.rows[-1].items()
        )
        return f"History({len(self.rows)} epoch{'s' * (len(self.rows) != 1)}; last: {last})"

    def _repr_html_(self) -> str | None:
        """Return a table of the last epochs; None, for the text alone, in the cell that shows them already."""
        if not self.rows or SHOWN_NUMBERS.contain(self.rows[-1]):
            return None
        last = zip(self.epoch[-MAX_EPOCHS:], self.rows[-MAX_EPOCHS:], strict=True)
        rows = [
            {"epoch": str(epoch + 1)} | {name: format_number(name, value) for name, value in row.items()}
            for epoch, row in last
        ]
        return format_epochs(rows, ["epoch", *self.history], len(self.rows))


@dataclasses.dataclass
class Validations:
    """The logs of each validation.

    Attributes:
        places: Epoch, from 0, and number of updates of each validation.
        finished: Number of finished epochs, with the finished part of an epoch.
        rows: The logs.
    """

    places: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    finished: list[float] = dataclasses.field(default_factory=list)
    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)

    @property
    def last_place(self) -> tuple[int, int]:
        """The place of the last validation; -1 and -1 without any."""
        return self.places[-1] if self.places else (-1, -1)

    def append(self, place: tuple[int, int], finished: float, logs: dict[str, float]) -> None:
        """Add ``logs``; they replace those of a validation at the same place, whose hooks failed."""
        if self.last_place == place:
            for column in (self.places, self.finished, self.rows):
                column.pop()
        self.places.append(place)
        self.finished.append(finished)
        self.rows.append(logs)

    def copy(self) -> Validations:
        """Return a copy that later validations do not change."""
        return Validations(list(self.places), list(self.finished), list(self.rows))

    def state_dict(self) -> dict[str, Any]:
        """Return all rows: one tensor per name."""
        finished = torch.tensor(self.finished, dtype=torch.float64)
        return {"places": torch.tensor(self.places, dtype=torch.int64), "finished": finished, **_to_columns(self.rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all rows."""
        self.places = [(int(epoch), int(update)) for epoch, update in state["places"].tolist()]
        self.finished, self.rows = state["finished"].tolist(), _to_rows(state, len(self.places))


def _to_columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return ``rows`` as columns, and which rows have a value in them."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: _to_column([row.get(name, math.nan) for row in rows]) for name in names}
    measured = {name: torch.tensor([name in row for row in rows]) for name in names}
    return {"columns": columns, "measured": measured}


def _to_rows(state: Mapping[str, Any], count: int) -> list[dict[str, float]]:
    """Return the ``count`` rows whose columns ``_to_columns`` has returned."""
    rows: list[dict[str, float]] = [{} for _ in range(count)]
    for name, values in state["columns"].items():
        values = values.tolist() if isinstance(values, torch.Tensor) else values
        for row, value, measured in zip(rows, values, state["measured"][name].tolist(), strict=True):
            if measured:
                row[str(name)] = value
    return rows


def _no_column_message(name: Any, columns: Mapping[str, Any]) -> str:
    """Return the message for a name that is not in the history."""
    if not columns:
        return f"The history has no {name!r}, because no epoch has ended yet. Call fit() first."
    full_name = str(name).replace("acc", "accuracy")
    suggestion = f" Did you mean {full_name!r}?" if full_name in columns else did_you_mean(name, columns)
    training_name = str(name).removeprefix("val_")
    if not suggestion and training_name != name and training_name in columns:
        suggestion = " There was no validation. Use fit(..., validation_split=0.2)."
    return f"The history has no {name!r}.{suggestion} It has {quote_list(columns)}."


def _to_column(values: list[Any]) -> Any:
    """Return ``values`` as a tensor, or as a list if some are not numbers; what a file cannot contain becomes text."""
    if all(
        isinstance(value, numbers.Real) or (isinstance(value, torch.Tensor) and value.numel() == 1) for value in values
    ):
        return torch.tensor(list(map(float, values)), dtype=torch.float64)
    return [_to_plain(value) for value in values]


def _to_plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_to_plain(entry) for entry in value]
    return str(value)


def _format_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, numbers.Real) else str(value)


class Scores(ModelVerbs):
    """The numbers of one evaluation: ``loss, accuracy = scores``, ``scores["accuracy"]``, ``scores.accuracy``.

    Without metrics, the scores can be used as the loss: ``float(scores)``.

    Attributes:
        data: A description of the data that was measured.

    Examples:
        >>> scores = model.evaluate(x, y, verbose=0)
        >>> loss, accuracy = scores
        >>> scores["accuracy"] == scores.accuracy == accuracy
        True
    """

    def __init__(self, values: dict[str, float], model: Model, data: str = "the given data") -> None:
        self._values = values
        self.model = model
        self.data = data

    def __iter__(self) -> Iterator[float]:
        return iter(self._values.values())

    def __len__(self) -> int:
        return len(self._values)

    @hide_internal_frames
    def __getitem__(self, key: str | int) -> float:
        if isinstance(key, int):
            return list(self._values.values())[key]
        if key not in self._values:
            raise KeyError(_no_score_message(key, self._values))
        return self._values[key]

    @hide_internal_frames
    def __getattr__(self, name: str) -> float:
        values = self.__dict__.get("_values", {})
        if name in values:
            return float(values[name])
        raise AttributeError(_no_score_message(name, values))

    @hide_internal_frames
    def __float__(self) -> float:
        if len(self) == 1:
            return next(iter(self))
        raise TypeError(
            f"There are {len(self)} scores, so they cannot be used as one number. Use "
            f"{' or '.join(f'scores.{name}' for name in self._values)}."
        )

    def __format__(self, spec: str) -> str:
        if len(self) == 1:
            return format(float(self), spec)
        return ", ".join(f"{name} {value:{spec}}" for name, value in self.items()) if spec else str(self)

    def keys(self) -> list[str]:
        """Return the names, the loss first.

        Examples:
            >>> model.evaluate(x, y, verbose=0).keys()
            ['loss', 'accuracy']
        """
        return list(self._values)

    def items(self) -> list[tuple[str, float]]:
        """Return names and values.

        Examples:
            >>> values = dict(model.evaluate(x, y, verbose=0).items())
        """
        return list(self._values.items())

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, (Scores, list, tuple)) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as for every class that compares by value

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value:.4g}" for name, value in self.items())
        return f"Scores({values}; on {self.data})"

    def _repr_html_(self) -> str:
        """Return a table, which replaces an output of the same cell with the same numbers."""
        SHOWN_NUMBERS.remove(self._values)
        return format_pairs(
            {name: format_number(name, value) for name, value in self.items()}, f"Scores on {self.data}"
        )


def _no_score_message(name: Any, values: Mapping[str, float]) -> str:
    return f"There is no score {name!r}.{did_you_mean(name, values)} There are {quote_list(values)}."
