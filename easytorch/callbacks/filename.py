"""File names with fields for values of the logs."""

from __future__ import annotations

import contextlib
import os
import re
import string
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from easytorch.callbacks.early_stopping import check_log_name

if TYPE_CHECKING:
    from easytorch.model import Model

# The names of two callbacks are compared for so many epochs.
MAX_COMPARED = 1000


class FilenameTemplate:
    """File name with fields that are filled with values of the logs.

    Args:
        text: The name, such as ``"{epoch:02d}-{val_loss:.3f}.pt"``.

    Raises:
        ValueError: If a field has no name.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        parts = _parse(text)
        self.fields = [field for _, field in parts if field is not None]
        if "" in self.fields:
            raise ValueError(f"filepath={text!r} has a field without a name. Write {{epoch}} or {{val_loss:.3f}}.")
        root, suffix = os.path.splitext(text)
        if "{" in suffix or "}" in suffix:
            root, suffix = text, ""
        self._pattern = re.compile(f"{_to_pattern(root)}(-[0-9]+)?{_to_pattern(suffix)}")

    def check(self, unit: str, model: Model, path: str) -> None:
        """Check the name before the first update.

        Args:
            unit: What files are written after: epochs, updates, minutes or validations; not every value is known at each time.
            model: The model that is trained.
            path: The absolute path of the name.

        Raises:
            ValueError: If the name is a folder, if a field has no value when a file is written, or if its format is invalid.
        """
        if self.text.endswith(("/", os.sep)) or os.path.isdir(path):
            file = os.path.join(self.text, "model-{epoch}.pt")
            raise ValueError(f"filepath={self.text!r} is a folder. Pass the name of a file, such as {file!r}.")
        for field in self.fields:
            if not _is_known(field, unit):
                reason = "validations follow updates" if unit == "validations" else f"save_freq counts {unit}"
                raise ValueError(
                    f"filepath={self.text!r} contains {field!r}, which has no value when a file is written, because {reason}. "
                    "Remove the field."
                )
            if field not in ("epoch", "batch"):
                numbers = [name for name in ("epoch", "batch") if _is_known(name, unit)]
                check_log_name(field, f"filepath={self.text!r} contains", model, numbers)
        try:
            # A value that a custom step logs may have any type, so its format cannot be checked.
            self.fill(dict.fromkeys(model.log_names(), 1.0) | {"epoch": 1, "batch": 1})
        except ValueError as error:
            raise ValueError(
                f"filepath={self.text!r} cannot be formatted: {error}. Use a format for numbers: {{val_loss:.3f}}."
            ) from error

    def fill(self, values: Mapping[str, Any]) -> str | None:
        """Return the name with ``values`` in its fields, or None if a value is missing."""
        return self.text.format(**values) if all(field in values for field in self.fields) else None

    def collides(self, other: FilenameTemplate, epochs: int) -> bool:
        """Return whether the names of ``other`` may be equal to these names, in the same folder.

        Args:
            other: The template.
            epochs: The number of epochs for which the names are compared.
        """
        if _shape_of(self.text) == _shape_of(other.text):
            return True
        # All values of the logs are different numbers, so that only names that do not depend on them are equal.
        fields = dict.fromkeys([*self.fields, *other.fields])
        logs = {field: 0.123456789 + i for i, field in enumerate(fields)}
        values = [logs | {"epoch": epoch, "batch": epoch} for epoch in range(1, min(epochs, MAX_COMPARED) + 1)]
        with contextlib.suppress(ValueError):  # a value that a custom step logs may have another type
            return not {self.fill(each) for each in values}.isdisjoint({other.fill(each) for each in values})
        return False

    def matches(self, path: str) -> bool:
        """Return whether ``path`` may be this name with values in its fields."""
        return self._pattern.fullmatch(path) is not None


def _is_known(field: str, unit: str) -> bool:
    """Return whether a field of a name has a value after epochs, updates, minutes or validations."""
    if unit == "validations":
        return field in ("epoch", "batch") or field.startswith("val_")
    return field != "batch" if unit == "epochs" else not field.startswith("val_")


def _parse(text: str) -> list[tuple[str, str | None]]:
    return [(literal, field) for literal, field, _, _ in string.Formatter().parse(text)]


def _shape_of(text: str) -> list[str | None]:
    """Return the fixed parts of a template, with None for each field."""
    return [part for literal, field in _parse(text) for part in ([literal] if field is None else [literal, None])]


def _to_pattern(text: str) -> str:
    return "".join(re.escape(literal) + ("" if field is None else r"[^/\\\0]*") for literal, field in _parse(text))
