"""A module as a program of ``torch.export``."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from easytorch._utils.pytree import map_leaves
from easytorch._utils.train_mode import in_eval_mode, preserve_module
from easytorch.data.predictions import without_caches
from easytorch.export.inputs import Inputs, bind_arguments
from easytorch.losses.criterion import Criterion

if TYPE_CHECKING:
    from easytorch.model import Model

# Characters of an error of torch in ours.
MAX_CAUSE = 300


class WithProbabilities(nn.Module):
    """A module, and the softmax, exp or sigmoid that belongs to its loss.

    Args:
        module: The module that returns outputs. Its ``forward`` decides the arguments.
        loss: The loss, which converts them.
    """

    def __init__(self, module: nn.Module, loss: Criterion) -> None:
        super().__init__()
        self.module = module

        @functools.wraps(module.forward)  # torch.export reads the names of the arguments
        def forward(*args: Any, **kwargs: Any) -> Any:
            return loss.probabilities(module(*args, **kwargs))

        self.forward = forward


class WithoutCaches(nn.Module):
    """A module of transformers without the keys and values of attention that it returns for the next token.

    Args:
        module: The module. Its ``forward`` decides the arguments.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

        @functools.wraps(module.forward)  # torch.export reads the names of the arguments
        def forward(*args: Any, **kwargs: Any) -> Any:
            return without_caches(module(*args, **kwargs))

        self.forward = forward


class Program(NamedTuple):
    """A traced module.

    Attributes:
        exported: The program.
        inputs: The inputs that it was traced with.
        output_names: A name for each output.
        metadata: Texts that are written to the file, such as the class names as JSON.
    """

    exported: ExportedProgram
    inputs: Inputs
    output_names: list[str]
    metadata: dict[str, str]


def trace(model: Model, inputs: Inputs, probabilities: bool) -> ExportedProgram:
    """Return the forward of the module in eval mode, on the CPU, in the precision of its parameters.

    Raises:
        RuntimeError: If torch cannot trace the module, with its reason and the fix.
    """
    module = model.module if model.device.type == "cpu" else copy.deepcopy(model.module).cpu()
    wrapped = WithProbabilities(module, model.loss) if probabilities else module
    try:
        with in_eval_mode(module), preserve_module(module), torch.no_grad(), warnings.catch_warnings():
            outputs = module(*inputs.args, **inputs.kwargs)
            if not probabilities and without_caches(outputs) is not outputs:
                wrapped = WithoutCaches(module)
            wrapped.eval()
            # nn.LSTM and its like assign attributes in forward, which preserve_module restores.
            warnings.filterwarnings("ignore", message=".*were assigned during export")
            shapes = _shapes(wrapped, inputs)
            return torch.export.export(wrapped, inputs.args, inputs.kwargs, dynamic_shapes=shapes, strict=False)
    # torch.export raises many kinds of errors, those of forward among them.
    except Exception as error:
        raise RuntimeError(_explain(error, module)) from error


def _shapes(module: nn.Module, inputs: Inputs) -> Any:
    """Return the dynamic dimensions of each argument of ``module``."""
    batch = Dim("batch", min=1)

    def of_leaf(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        return {i: batch if i == 0 else Dim.DYNAMIC for i in inputs.dynamic if i < leaf.ndim}

    return map_leaves(of_leaf, bind_arguments(module, inputs.args, inputs.kwargs))


def _explain(error: Exception, module: nn.Module) -> str:
    """Return the error for ``module``, which cannot be traced, with the first line of torch's reason."""
    name, cause = type(module).__name__, str(error).strip().partition("\n")[0][:MAX_CAUSE]
    if "Constraints violated" not in cause:
        return (
            f"torch.export cannot trace {name}. Its forward may not depend on values of tensors (if x.sum() > 0, x.item()), and "
            f"may call only functions of torch. The cause in torch: {cause}"
        )
    recurrent = next((type(each).__name__ for each in module.modules() if isinstance(each, nn.RNNBase)), None)
    if recurrent is not None and "batch" not in cause:
        return (
            f"{name} cannot be exported with a variable length: torch.export repeats the steps of nn.{recurrent} for each "
            "position of the example. Leave out dynamic, pad all inputs to one length, and pass an example of this length."
        )
    return (
        f"{name} cannot be exported with a variable size: its forward makes a size constant. Replace numbers by sizes of the "
        f"input, such as x.shape[0], or by -1 in reshape(). The cause in torch: {cause}"
    )
