"""Scripts in plain PyTorch, and explanations of what ``fit`` will do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from easytorch.scripts.script import Script

if TYPE_CHECKING:
    from easytorch.model import Model

__all__ = ["Script"]


def __dir__() -> list[str]:
    return __all__


def to_script(model: Model, x: Any, y: Any, sizes: tuple[int, ...], options: Mapping[str, Any]) -> Script:
    """Return the program of ``Model.to_script``."""
    from easytorch.scripts.describe import describe_run, last_plan, plan_fit
    from easytorch.scripts.program import write_program
    from easytorch.scripts.program_ends import refuse_callbacks

    has_arguments = x is not None or bool(options)
    plan = plan_fit(model, x, y, sizes, options) if has_arguments else last_plan(model)
    if plan is None:
        raise ValueError("no data")
    run = describe_run(model, plan)
    refuse_callbacks(run)
    if run.refusals:
        raise ValueError([(r.what, r.fix) for r in run.refusals])
    return Script(write_program(run))
