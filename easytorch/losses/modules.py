"""Modules of losses: their parameters, buffers and state."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from easytorch._utils.warnings import warn


class LossModules(nn.Module):
    """The losses with parameters or buffers that do not belong to the user's module.

    The constants of torch's own losses, such as class weights, are settings and not state.

    Args:
        losses: The losses: modules, functions, or methods of modules.
        module: The user's module; None if it is unknown. What belongs to it is trained and saved with it.
    """

    def __init__(self, losses: Iterable[Any] = (), module: nn.Module | None = None) -> None:
        super().__init__()
        inside = set() if module is None else set(module.modules())
        shared = set() if module is None else {id(tensor) for tensor in _tensors(module)}
        modules = [loss for loss in map(find_module, losses) if loss is not None and loss not in inside]
        for i, loss in enumerate(dict.fromkeys(modules)):
            if not _is_of_torch(loss) and any(id(tensor) not in shared for tensor in _tensors(loss)):
                self.add_module(str(i), loss)
        named = [*self.named_parameters(), *self.named_buffers()]
        self._shared_names = {name for name, tensor in named if id(tensor) in shared}

    def named_own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name and value of each parameter that the user's module does not have."""
        return ((name, value) for name, value in self.named_parameters() if name not in self._shared_names)

    def own_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the user's module does not have."""
        return [value for _, value in self.named_own_parameters()]

    def read_state(self) -> dict[str, Any]:
        """Return what training changes, by name: trainable parameters and buffers, without those of the user's module."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {
            name: value
            for name, value in self.state_dict().items()
            if name not in frozen and name not in self._shared_names
        }

    def check_state(self, state: Any) -> None:
        """Raise a ``ValueError`` unless ``state`` is one of ``read_state``."""
        if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
            raise ValueError(
                f"the state of the loss must be a dict of tensors by name, received {type(state).__name__}"
            )

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Load ``state``; warn if it is that of another loss."""
        current = self.read_state()
        if describe_state(state) == describe_state(current):
            self.load_state_dict(dict(state), strict=False)
        elif current:
            warn(
                f"The file has no values for {', '.join(map(repr, current))} of the loss, because it was saved with another "
                "loss. The loss keeps the values that it has. Compile with the loss that the model was saved with to load them."
            )


def describe_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shape of each tensor in ``state``, and the type of anything else."""
    return {
        name: list(value.shape) if isinstance(value, Tensor) else type(value).__name__ for name, value in state.items()
    }


def find_module(loss: Any) -> nn.Module | None:
    """Return the module that ``loss`` is, or a method of, or has arguments fixed of; None if there is none."""
    base = loss.func if isinstance(loss, functools.partial) else loss
    base = base if isinstance(base, nn.Module) else getattr(base, "__self__", None)
    return base if isinstance(base, nn.Module) else None


def referenced_modules(loss: Any) -> dict[str, nn.Module]:
    """Return the modules that the function ``loss`` refers to by a variable, by name: they are not found otherwise."""
    try:
        variables = inspect.getclosurevars(loss)
    except (TypeError, ValueError):  # a module, or a built-in function
        return {}
    values = {**variables.globals, **variables.nonlocals}
    return {name: value for name, value in values.items() if isinstance(value, nn.Module)}


def move_arguments(loss: Any, device: torch.device) -> Any:
    """Return ``loss`` on ``device``: a module is moved, and so are tensors that ``functools.partial`` fixes."""
    module = find_module(loss)
    if module is not None:
        module.to(device)
    if not isinstance(loss, functools.partial):
        return loss
    keywords = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in loss.keywords.items()}
    return functools.partial(loss.func, *loss.args, **keywords)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")
