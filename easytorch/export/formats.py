"""Formats of exported programs: ONNX, and ``torch.export``."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.export import Dim

from easytorch._utils.pytree import leaves
from easytorch._utils.registry import quote_list

if TYPE_CHECKING:
    from easytorch.export.inputs import Inputs
    from easytorch.export.program import Program

# A file in the ONNX format holds at most 2 GB. Larger weights are written to a second file.
MAX_ONNX_BYTES = 1_900_000_000
Runner = Callable[["Inputs"], "list[Any]"]


class Format(Protocol):
    """How a program is written and run."""

    def write(self, program: Program, path: Path) -> None:
        """Write ``program`` to ``path``."""

    def load(self, path: Path) -> Runner:
        """Return a function that runs the file, and returns its outputs as a flat list."""


class TorchExport:
    """The format of ``torch.export.save``."""

    def write(self, program: Program, path: Path) -> None:
        """Write ``program`` to ``path``."""
        files = {f"{name}.json": text for name, text in program.metadata.items()}
        with warnings.catch_warnings():
            # Weights with the channels last in memory; the comparison with predict reads what was saved.
            warnings.filterwarnings("ignore", message="No complete tensor found in the group")
            torch.export.save(program.exported, path, extra_files=files)

    def load(self, path: Path) -> Runner:
        """Return a function that runs the file."""
        module = torch.export.load(path).module()

        def run(inputs: Inputs) -> list[Any]:
            with torch.no_grad():
                return list(leaves(module(*inputs.args, **inputs.kwargs)))

        return run


class Onnx:
    """The format of ONNX, run by onnxruntime."""

    def __init__(self) -> None:
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(f'Export to ONNX needs {quote_list(missing)}: pip install "easytorch-fit[onnx]"')

    def write(self, program: Program, path: Path) -> None:
        """Write ``program`` to ``path``; weights of more than 2 GB to a second file, ``<name>.data``."""
        shared = set(program.inputs.names) & set(program.output_names)
        if shared:
            raise ValueError(
                f"An input and an output are both called {min(shared)!r}, and ONNX needs different names. Rename the argument of "
                "forward, or the key of the dict that it returns."
            )
        size = sum(tensor.nbytes for tensor in program.exported.state_dict.values() if isinstance(tensor, Tensor))
        onnx_program = _convert(program)
        onnx_program.model.metadata_props.update(program.metadata)
        onnx_program.save(os.fspath(path), external_data=size > MAX_ONNX_BYTES)

    def load(self, path: Path) -> Runner:
        """Return a function that runs the file on the CPU."""
        import onnxruntime

        session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]

        def run(inputs: Inputs) -> list[Any]:
            tensors = dict(zip(inputs.names, inputs.tensors(), strict=True))
            # The program has no input that it does not use.
            outputs = session.run(None, {name: tensors[name].numpy() for name in names})
            return list(map(torch.as_tensor, outputs))

        return run


FORMATS: dict[str, Callable[[], Format]] = {".onnx": Onnx, ".pt2": TorchExport}


def pick_format(path: Path) -> Format:
    """Return the format that the suffix of ``path`` names.

    Raises:
        ValueError: If there is no such format.
        ImportError: If a package that the format needs is not installed.
    """
    if path.suffix not in FORMATS:
        raise ValueError(
            f"export() writes files that end in {quote_list(FORMATS)}, received {str(path)!r}. Use export('model.onnx'), or "
            "save() and save_weights() for files that torch reads."
        )
    return FORMATS[path.suffix]()


def _convert(program: Program) -> torch.onnx.ONNXProgram:
    """Return the program in the operators of ONNX.

    Raises:
        RuntimeError: If ONNX has no such operator or no such value.
    """
    names, shapes = program.inputs.names, _axis_names(program.inputs)
    with warnings.catch_warnings():
        # Inputs that have the batch size in common have one name for it.
        warnings.filterwarnings("ignore", message=".*shares the same shape constraints")
        try:
            converted = torch.onnx.export(
                program.exported, dynamo=True, verbose=False, input_names=names, output_names=program.output_names,
                dynamic_shapes=shapes,
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            cause = str(error.__cause__ or error).strip().partition("\n")[0]
            raise RuntimeError(
                "torch.onnx cannot convert the module to ONNX. Return only tensors from forward, and use operators that ONNX "
                f"has, or export a '.pt2' file. The cause in torch: {cause}"
            ) from error
    assert converted is not None  # it is None only if a path is passed
    return converted


def _axis_names(inputs: Inputs) -> Any:
    """Return the names of the dynamic dimensions of each input."""
    return [
        {i: Dim("batch" if i == 0 else f"{name}_size_{i}", min=1) for i in inputs.dynamic if i < tensor.ndim}
        if isinstance(tensor, Tensor)
        else None
        for name, tensor in zip(inputs.names, inputs.tensors(), strict=True)
    ]
