"""Programs in the formats of other runtimes, compared with predict before they are written."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easytorch._utils.atomic_file import write_atomically
from easytorch._utils.integers import boolean, optional_positive_number
from easytorch._utils.paths import check_writable, to_path
from easytorch.data.class_names import read_names
from easytorch.export.formats import pick_format
from easytorch.export.inputs import Inputs, name_leaves
from easytorch.export.program import Program, trace
from easytorch.export.verification import compare_with_predict, predict

if TYPE_CHECKING:
    from easytorch.model import Model

__all__ = ["export_model"]


def __dir__() -> list[str]:
    return __all__


def export_model(
    model: Model, path: Any, x: Any, *, probabilities: bool, dynamic: Sequence[int], tolerance: float | None
) -> Path:
    """Write the program of ``Model.export``, and return its path."""
    probabilities = boolean("probabilities", probabilities)
    target = to_path(path)
    file_format = pick_format(target)
    optional_positive_number("tolerance", tolerance)
    check_writable(target)
    _check_module(model)
    inputs = Inputs.of(model, x, dynamic)
    model.strategy.group.saved(target.name)
    if not model.strategy.group.is_main:
        return target
    outputs = predict(model, inputs, probabilities)  # raises the errors that a user knows
    names = read_names(model.class_names)
    program = Program(
        trace(model, inputs, probabilities),
        inputs,
        output_names=list(name_leaves(outputs, "" if isinstance(outputs, Mapping) else "output")),
        metadata={} if names is None else {"class_names": json.dumps(names)},
    )
    with tempfile.TemporaryDirectory(prefix=".export-") as folder:
        temporary = Path(folder) / target.name
        file_format.write(program, temporary)
        compare_with_predict(model, inputs, lambda: file_format.load(temporary), probabilities, tolerance)
        _move_files(temporary, target)
    return target


def _check_module(model: Model) -> None:
    """Raise an error if the module cannot be exported as it is."""
    if any(hasattr(parameter, "to_local") for parameter in model.module.parameters()):
        raise RuntimeError(
            "export() needs the whole weights, but this process has a shard of them. Call model.save_weights('weights.pt'), and "
            "export in a program with one process: Model(net).load_weights('weights.pt').export('net.onnx', x)."
        )
    if model.overrides("predict_step"):
        raise RuntimeError(
            f"export() writes the forward of the module, but {type(model).__name__} overrides predict_step, which predict() "
            "calls. Move this computation into a module that contains the trained one, and export that module."
        )


def _move_files(temporary: Path, target: Path) -> None:
    """Move the program to ``target``, after the file with its weights if they are too large for one file."""
    others = [path for path in sorted(temporary.parent.iterdir()) if path != temporary]
    for path in [*others, temporary]:
        with open(path, "rb") as source:
            write_atomically(
                target.with_name(path.name),
                functools.partial(shutil.copyfileobj, source),
                path.stat().st_size,
            )
