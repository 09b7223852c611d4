"""The optimizer steps of an update: one, or one for each of several optimizers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from easytorch._utils.pytree import describe
from easytorch._utils.registry import quote_list
from easytorch.metrics.collection import loss_of
from easytorch.optimizer_group import OptimizerGroup, OwnedLoss, OwnedLosses, parameters_of
from easytorch.training.overrides import without_leaks

if TYPE_CHECKING:
    import torch

    from easytorch.model import Model

# In the error of torch.autograd for a step that needs gradients, in an evaluation.
NO_GRADIENTS = "does not require grad"


@dataclasses.dataclass(frozen=True, slots=True)  # with slots, since each update reads all attributes
class Phase:
    """One optimizer step.

    Attributes:
        step: Returns the outputs for a batch.
        optimizer: Makes the step.
        find_loss: Returns the loss in the outputs, or a loss for each optimizer.
        prefix: What the names of the outputs get in the logs.
    """

    step: Callable[[Any], Any]
    optimizer: torch.optim.Optimizer
    find_loss: Callable[[Any], Any] = loss_of
    prefix: str = ""


class Phases:
    """The optimizer steps of each window for several optimizers; those that are due, in the order of ``compile``.

    Args:
        model: The model.
        group: Its optimizers.
    """

    def __init__(self, model: Model, group: OptimizerGroup) -> None:
        self.model, self.group = model, group
        self._steps = {name: guard_step(model, name) for name in group.steps}

    def __iter__(self) -> Iterator[Phase]:
        model, group = self.model, self.group
        due = group.select_due(model.state.step)
        if not group.steps:
            yield Phase(model.train_step, group, functools.partial(find_losses, group))
            return
        for name in due:
            yield Phase(self._steps[name], group[name], functools.partial(find_own_loss, group, name), f"{name}_")
            group.stepped += (name,)
            if model.callbacks.diverged:  # the losses of the other steps depend on these weights
                return


def plan_phases(model: Model, optimizer: torch.optim.Optimizer) -> tuple[Phase] | Phases:
    """Return the optimizer steps of each window: one for a single optimizer."""
    if isinstance(optimizer, OptimizerGroup):
        return Phases(model, optimizer)
    return (Phase(model.train_step, optimizer),)


def guard_step(model: Model, name: str) -> Callable[[Any], Any]:
    """Return ``<name>_step`` of ``model`` as a function that leaves all gradients and weights as they are."""
    return functools.partial(without_leaks(getattr(type(model), f"{name}_step")), model)


def find_own_loss(group: OptimizerGroup, name: str, outputs: Any) -> OwnedLosses:
    """Return the loss that the step of the optimizer ``name`` returned.

    Raises:
        TypeError: If ``outputs`` is not a dict with ``"loss"``.
    """
    if not isinstance(outputs, Mapping) or "loss" not in outputs:
        raise TypeError(
            f"{name}_step returned {describe(outputs)}, which has no 'loss'. Return a dict with a scalar tensor to optimize: "
            "{'loss': loss}. Other values in the dict are logged."
        )
    return OwnedLosses([OwnedLoss(name, outputs["loss"], parameters_of(group[name]))])


def find_losses(group: OptimizerGroup, outputs: Any) -> Any:
    """Return what ``train_step`` returned: one loss for all optimizers, or ``<name>_loss`` for each of them.

    Raises:
        TypeError: If ``outputs`` has neither.
    """
    names = [] if not isinstance(outputs, Mapping) or "loss" in outputs else [f"{name}_loss" for name in group]
    missing = [name for name in names if name not in outputs]
    if len(missing) == len(names):
        loss = loss_of(outputs)
        return OwnedLosses([OwnedLoss("", loss, group.due_parameters())]) if group.skips_windows else loss
    if missing:
        raise TypeError(
            f"train_step returned {describe(outputs)}, which has no {quote_list(missing)}. Return one 'loss' for all "
            f"optimizers, or a scalar tensor for each: {quote_list(names)}."
        )
    return group.due_losses({name: outputs[f"{name}_loss"] for name in group})


def evaluate_steps(model: Model, batch: Any) -> dict[str, Any]:
    """Return what ``train_step`` returns; with a step for each optimizer, the outputs of all steps.

    Raises:
        RuntimeError: If a step needs gradients, which an evaluation has not.
    """
    group = model.optimizer
    if not isinstance(group, OptimizerGroup) or not group.steps:
        return model.train_step(batch)
    scores: dict[str, Any] = {}
    for name in group.steps:
        try:
            outputs = getattr(model, f"{name}_step")(batch)
        except RuntimeError as error:
            if NO_GRADIENTS not in str(error):
                raise
            raise RuntimeError(
                f"{name}_step computes gradients, which an evaluation does not have. Define test_step(self, batch), which "
                "returns what to log, such as {'critic_loss': loss}; or fit without validation data."
            ) from error
        count = model.loss.take_counts().get("loss")
        scores |= {f"{name}_{key}": value for key, value in outputs.items()}
        if count is not None and isinstance(outputs.get("loss"), Tensor):  # the loss is a mean over labels
            scores[f"{name}_loss"] = outputs["loss"] * count, count
    return scores
