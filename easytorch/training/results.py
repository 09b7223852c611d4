"""History and Scores."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from easytorch._utils.registry import did_you_mean, find, quote_list
from easytorch._utils.timer import PARTS, Timer, shares

if TYPE_CHECKING:
    from easytorch.model import Model


class ModelVerbs:
    """Passes the model's verbs on, so that ``model.fit(...).evaluate().save()`` can be said in one breath."""

    model: Model

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model out: numbers are small, and to be kept by ``pickle`` anywhere."""
        return {name: value for name, value in vars(self).items() if name != "model"}

    def fit(self, *args: Any, **kwargs: Any) -> History:
        """Train on; see ``Model.fit``."""
        return self.model.fit(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Scores:
        """Measure; see ``Model.evaluate``."""
        return self.model.evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's outputs; see ``Model.predict``."""
        return self.model.predict(*args, **kwargs)

    def predict_proba(self, *args: Any, **kwargs: Any) -> Any:
        """Return probabilities; see ``Model.predict_proba``."""
        return self.model.predict_proba(*args, **kwargs)

    def predict_classes(self, *args: Any, **kwargs: Any) -> Any:
        """Return classes; see ``Model.predict_classes``."""
        return self.model.predict_classes(*args, **kwargs)

    def save(self, *args: Any, **kwargs: Any) -> Path:
        """Write everything to a file; see ``Model.save``."""
        return self.model.save(*args, **kwargs)

    def save_weights(self, *args: Any, **kwargs: Any) -> Path:
        """Write the weights to a file; see ``Model.save_weights``."""
        return self.model.save_weights(*args, **kwargs)

    def summary(self, *args: Any, **kwargs: Any) -> Any:
        """Show the table of layers; see ``Model.summary``."""
        return self.model.summary(*args, **kwargs)


class History(ModelVerbs, Mapping[str, list[float]]):
    """The numbers of every epoch, over all fits of a model.

    ``history["loss"]`` is a list with one value for each epoch in which it was measured; ``history.history`` is all of
    them as a plain dict, as in Keras.

    Attributes:
        rows: One dict for each epoch. Callbacks get the very dict, so what they add to it is kept.
        epoch: The number of each epoch, from 0.
        seconds: How long each epoch took, by part: ``data`` (waiting for batches), ``model`` (forward and backward),
            ``optimizer``, ``validation`` and ``rest``.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.epoch: list[int] = []
        self.seconds: list[dict[str, float]] = []
        self._fit: dict[str, Any] = {"params": {}, "interrupted": False}

    @property
    def params(self) -> dict[str, Any]:
        """Of the last fit: ``epochs``, ``steps`` and ``verbose``."""
        return dict(self._fit["params"])

    @params.setter
    def params(self, params: dict[str, Any]) -> None:
        self._fit["params"] = params

    @property
    def interrupted(self) -> bool:
        """Whether the last fit was stopped by Ctrl-C or SIGTERM."""
        return bool(self._fit["interrupted"])

    @interrupted.setter
    def interrupted(self, interrupted: bool) -> None:
        self._fit["interrupted"] = interrupted

    def of(self, model: Model) -> History:
        """Return a view of this history that knows its model; the model itself keeps one that does not."""
        view = copy.copy(self)
        view.model = model
        return view

    @property
    def history(self) -> dict[str, list[float]]:
        """All values as a dict of lists, in the order in which they first appeared."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {name: [row[name] for row in self.rows if name in row] for name in names}

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self.history:
            raise AttributeError(f"A history has no attribute {name!r}. Its values are items: history[{name!r}].")
        raise AttributeError(f"A history has no attribute {name!r}.")

    def __getitem__(self, name: str) -> list[float]:
        values = self.history
        if name not in values:
            if not values:
                raise KeyError(f"No {name!r} in the history, for no epoch has ended yet.")
            near = did_you_mean(name, values)
            wanted = name.removeprefix("val_") if isinstance(name, str) else ""
            if not near and wanted != name and wanted in values:
                near = " There was no validation: fit(..., validation_split=0.2) measures it."
            raise KeyError(f"No {name!r} in the history.{near} It holds {quote_list(values)}.")
        return values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.history)

    def __len__(self) -> int:
        return len(self.history)

    @property
    def shares(self) -> list[dict[str, float]]:
        """The seconds of each epoch as shares of all of them."""
        return [shares(seconds) for seconds in self.seconds]

    def append(self, epoch: int, logs: dict[str, float], timer: Timer) -> dict[str, float]:
        """Keep ``logs`` as the row of ``epoch``, and return it."""
        self.rows.append(logs)
        self.epoch.append(epoch)
        self.seconds.append(timer.read())
        return logs

    def best(self, monitor: str = "val_loss", mode: str = "auto") -> dict[str, float]:
        """Return the row, with its ``epoch`` from 0, in which ``monitor`` was best; NaN is never the best.

        Args:
            monitor: The value to compare.
            mode: ``"min"``, ``"max"``, or ``"auto"`` to go by the metric.
        """
        values, mode = self[monitor], find("mode", mode, {"auto": "auto", "min": "min", "max": "max"})
        if mode == "auto":
            mode = self.model.metrics.mode(monitor)
        rows = [
            (row[monitor], {"epoch": epoch, **row})
            for epoch, row in zip(self.epoch, self.rows, strict=True)
            if monitor in row
        ]
        finite = [(value, row) for value, row in rows if value == value]
        if not finite:
            raise ValueError(f"{monitor!r} was never a number: {values}.")
        return (min if mode == "min" else max)(finite, key=lambda pair: pair[0])[1]

    def to_frame(self) -> Any:
        """Return a pandas frame, one row for each epoch."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("History.to_frame() needs pandas: pip install pandas") from error
        return pandas.DataFrame(self.rows, index=pandas.Index(self.epoch, name="epoch"))

    def plot(self, *names: str | Sequence[str], path: str | Path | None = None) -> Any:
        """Draw values over the epochs, training and validation in one panel.

        Args:
            names: Which ones, ``plot("loss", "accuracy")``; by default all.
            path: Where to write the figure; None writes nothing.

        Returns:
            The matplotlib figure. No window is opened.

        Raises:
            KeyError: If there is no value of a name, with the nearest that is.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("History.plot() needs matplotlib: pip install matplotlib") from error
        drawn = self._drawn(names)
        figure = Figure(figsize=(4.5 * max(len(drawn), 1), 3.2), layout="constrained")
        for i, name in enumerate(drawn):
            axes = figure.add_subplot(1, len(drawn), i + 1)
            for key, label in ((name, "training"), (f"val_{name}", "validation")):
                points = [(epoch + 1, row[key]) for epoch, row in zip(self.epoch, self.rows, strict=True) if key in row]
                if points:
                    axes.plot(*zip(*points, strict=True), marker=".", label=label)
            axes.set_xlabel("epoch")
            axes.set_title(name)
            axes.legend()
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def _drawn(self, names: Iterable[Any]) -> list[str]:
        """Return the name of each panel for the ``names`` that the user passed, one by one or in a list."""
        values = self.history
        if not names:
            return list(dict.fromkeys(name.removeprefix("val_") for name in values if name != "lr"))
        listed = [str(name) for some in names for name in ([some] if isinstance(some, (str, Path)) else some)]
        for name in listed:
            if name not in values and Path(name).suffix:
                raise KeyError(f"No {name!r} in the history. If it is a file to write, pass path={name!r}.")
            self[name]  # tells what there is instead
        return list(dict.fromkeys(name.removeprefix("val_") for name in listed))

    def state_dict(self) -> dict[str, Any]:
        """Return all rows, a tensor for each name, a list where a callback has put text in."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        columns = {name: _column([row.get(name, math.nan) for row in self.rows]) for name in names}
        measured = {name: [name in row for row in self.rows] for name in names}
        return {
            "epoch": torch.tensor(self.epoch, dtype=torch.int64),
            "columns": columns,
            "measured": {name: torch.tensor(values) for name, values in measured.items()},
            "seconds": {
                part: torch.tensor([seconds[part] for seconds in self.seconds], dtype=torch.float64) for part in PARTS
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        epochs = [int(epoch) for epoch in state["epoch"].tolist()]
        rows: list[dict[str, float]] = [{} for _ in epochs]
        for name, values in state["columns"].items():
            values = values.tolist() if isinstance(values, torch.Tensor) else values
            for row, value, measured in zip(rows, values, state["measured"][name].tolist(), strict=True):
                if measured:
                    row[str(name)] = value
        seconds = {part: state["seconds"][part].tolist() for part in PARTS}
        self.rows[:], self.epoch[:] = rows, epochs
        self.seconds[:] = [{part: seconds[part][i] for part in PARTS} for i in range(len(epochs))]

    def __repr__(self) -> str:
        if not self.rows:
            return "History(nothing yet)"
        last = ", ".join(f"{name}={_short(value)}" for name, value in self.rows[-1].items())
        return f"History({len(self.rows)} epoch{'s' * (len(self.rows) != 1)}; the last: {last})"


def _column(values: list[Any]) -> Any:
    words = list(map(str, values))  # a run must not end for a word in its logs
    if any(isinstance(value, str) for value in values):
        return words
    try:
        return torch.tensor(list(map(float, values)), dtype=torch.float64)
    except (TypeError, ValueError):
        return words


def _short(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


class Scores(ModelVerbs):
    """The numbers of one evaluation: ``loss, accuracy = scores``, ``scores["accuracy"]``, ``scores.accuracy``.

    The loss alone, without metrics, may be used as the number it is: ``float(scores)``, ``scores < 0.1``.

    Attributes:
        data: What was measured on, in words.
    """

    def __init__(self, values: dict[str, float], model: Model, data: str = "the given data") -> None:
        self._values = values
        self.model = model
        self.data = data

    def __iter__(self) -> Iterator[float]:
        return iter(self._values.values())

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: str | int) -> float:
        if isinstance(key, int):
            return list(self._values.values())[key]
        if key not in self._values:
            raise KeyError(
                f"No {key!r} among the scores.{did_you_mean(key, self._values)} There are {quote_list(self._values)}."
            )
        return self._values[key]

    def __getattr__(self, name: str) -> float:
        values = self.__dict__.get("_values", {})
        if name in values:
            return float(values[name])
        raise AttributeError(
            f"No {name!r} among the scores.{did_you_mean(name, values)} There are {quote_list(values)}."
        )

    def __float__(self) -> float:
        if len(self) == 1:
            return next(iter(self))
        raise TypeError(
            f"There are {len(self)} scores, and a single number may be any of them. Take the one you mean: "
            f"{' or '.join(f'scores.{name}' for name in self._values)}."
        )

    def __lt__(self, other: float) -> bool:
        return float(self) < other

    def __le__(self, other: float) -> bool:
        return float(self) <= other

    def __gt__(self, other: float) -> bool:
        return float(self) > other

    def __ge__(self, other: float) -> bool:
        return float(self) >= other

    def __format__(self, spec: str) -> str:
        if len(self) == 1:
            return format(float(self), spec)
        return ", ".join(f"{name} {value:{spec}}" for name, value in self.items()) if spec else str(self)

    def keys(self) -> list[str]:
        """Return the names, the loss first."""
        return list(self._values)

    def items(self) -> list[tuple[str, float]]:
        """Return names and values."""
        return list(self._values.items())

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, (Scores, list, tuple)) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as Python does it for what is equal by value

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value:.4g}" for name, value in self.items())
        return f"Scores({values}; on {self.data})"
