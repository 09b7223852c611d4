"""Frequencies: every n epochs, updates or minutes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from typing import Any

from easytorch._utils.api_errors import explain_bad_arguments
from easytorch._utils.integers import optional_positive_int, positive_int

UNITS = ("epochs", "updates", "minutes")


@explain_bad_arguments("__init__")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Every:
    """Frequency of an action during training.

    Pass exactly one argument.

    Args:
        epochs: Act after every n-th epoch.
        updates: Act after every n-th optimizer step, counted over all epochs.
        minutes: Act after the first optimizer step that ends this many minutes after the previous action.

    Raises:
        ValueError: If no argument or more than one is passed, or if a value is not positive.

    Examples:
        >>> ModelCheckpoint("last.pt", save_freq=Every(minutes=10))
        >>> ModelCheckpoint("{epoch}.pt", save_freq=Every(epochs=2))
    """

    epochs: int | None = None
    updates: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        values = {unit: getattr(self, unit) for unit in UNITS if getattr(self, unit) is not None}
        if len(values) != 1:
            received = ", ".join(f"{unit}={value!r}" for unit, value in values.items()) or "no argument"
            raise ValueError(
                f"Every() takes exactly one of epochs, updates and minutes, received {received}. Use Every(epochs=2)."
            )
        object.__setattr__(self, "epochs", optional_positive_int("epochs", self.epochs))
        object.__setattr__(self, "updates", optional_positive_int("updates", self.updates))
        if self.minutes is not None:
            check_minutes(self.minutes)
            if not self.minutes:
                raise ValueError(f"minutes must be a positive number, received {self.minutes!r}. Use minutes=10.")

    @property
    def unit(self) -> str:
        """The name of the argument that was passed: ``"epochs"``, ``"updates"`` or ``"minutes"``."""
        return next(unit for unit in UNITS if getattr(self, unit) is not None)

    def is_due_after_epoch(self, epochs: int) -> bool:
        """Return whether to act when ``epochs`` epochs are finished."""
        return self.epochs is not None and epochs % self.epochs == 0

    def is_due_after_update(self, updates: int, seconds: float) -> bool:
        """Return whether to act after an optimizer step.

        Args:
            updates: Number of optimizer steps so far.
            seconds: Time since the last action.
        """
        if self.updates is not None:
            return updates % self.updates == 0
        return self.minutes is not None and seconds >= 60 * self.minutes


def as_every(name: str, value: Any, units: tuple[str, ...] = UNITS) -> Every:
    """Return the frequency that the user passed as an ``Every``.

    Args:
        name: Name of the argument, for the message.
        value: An ``Every``, ``"epoch"``, or a positive integer, which counts updates.
        units: The units that the argument accepts in an ``Every``.

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(value, Every):
        if value.unit not in units:
            accepted = " or ".join(f"Every({unit}=...)" for unit in units)
            raise ValueError(f"{name} does not accept {value.unit}. Pass {name}={accepted}, received {value!r}.")
        return value
    if value == "epoch":
        return Every(epochs=1)
    if not isinstance(value, str):
        with contextlib.suppress(ValueError):  # the error below lists all that is accepted
            return Every(updates=positive_int(name, value))
    raise ValueError(
        f"{name} must be 'epoch', a positive integer (updates) or an Every, received {value!r}. "
        f"Pass {name}={_suggest_every(value)}."
    )


def check_minutes(minutes: Any) -> None:
    """Raise a ``ValueError`` unless ``minutes`` is a finite number of 0 or more."""
    is_number = isinstance(minutes, (int, float)) and not isinstance(minutes, bool)
    if not is_number or not math.isfinite(minutes) or minutes < 0:
        raise ValueError(f"minutes must be a non-negative number, received {minutes!r}. Use minutes=10.")


def _suggest_every(value: Any) -> str:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(epoch|update|step|minute|min)s?\s*", str(value))
    unit = {"epoch": "epochs", "minute": "minutes", "min": "minutes"}.get(match[2], "updates") if match else "epochs"
    is_valid = match is not None and float(match[1]) > 0 and (unit == "minutes" or match[1].isdigit())
    return f"Every({unit}={match[1] if match and is_valid else 2})"
