"""Scripts in plain PyTorch, and explanations of what ``fit`` will do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from easytorch.scripts.describe import Plan, check_example, describe_run, last_plan, plan_fit
from easytorch.scripts.description import Refusal
from easytorch.scripts.explanation import Explanation, explain_run
from easytorch.scripts.program import write_program
from easytorch.scripts.program_ends import refuse_callbacks
from easytorch.scripts.script import Script

if TYPE_CHECKING:
    from easytorch.model import Model

__all__ = ["Explanation", "Script"]


def __dir__() -> list[str]:
    return __all__


def to_script(model: Model, x: Any, y: Any, sizes: tuple[int, ...], options: Mapping[str, Any]) -> Script:
    """Return the program of ``Model.to_script``."""
    model.require_optimizer("to_script")
    plan = _new_run(model, x, y, sizes, options) if _has_arguments(x, sizes, options) else last_plan(model)
    if plan is None:
        reason = (
            "compile() has replaced the settings of the last fit()"
            if model.last_fit
            else "the model has no fit to describe; files and copies contain none"
        )
        raise ValueError(
            f"to_script() received no data, and {reason}. Call fit() first, or pass the arguments of fit(): "
            "model.to_script(x, y, epochs=5)."
        )
    run = describe_run(model, plan)
    refuse_callbacks(run)
    if run.refusals:
        raise _inexact_error(run.refusals)
    return Script(write_program(run))


def explain(model: Model, x: Any, y: Any, sizes: tuple[int, ...], options: Mapping[str, Any]) -> Explanation:
    """Return the sentences of ``Model.explain``."""
    model.require_compiled("explain")
    plan = plan_fit(model, x, y, sizes, options) if _has_arguments(x, sizes, options) else None
    if plan is not None:
        check_example(model, plan)
    return explain_run(describe_run(model, plan), options.get("verbose", "auto"))


def _has_arguments(x: Any, sizes: tuple[int, ...], options: Mapping[str, Any]) -> bool:
    return x is not None or bool(sizes) or bool(options)


def _new_run(model: Model, x: Any, y: Any, sizes: tuple[int, ...], options: Mapping[str, Any]) -> Plan:
    """Return a fit with these arguments that does not continue earlier updates."""
    plan = plan_fit(model, x, y, sizes, options)
    check_example(model, plan)
    first = plan.record.first_epoch if options.get("initial_epoch") is not None else 0
    return plan._replace(record=dataclasses.replace(plan.record, continues=False, first_epoch=first))


def _inexact_error(refusals: Sequence[Refusal]) -> ValueError:
    """Return the error for a run of which no script does exactly the same."""
    first, *others = dict.fromkeys(refusals)
    more = "".join(f" Nor {other.what}: {other.fix[0].lower()}{other.fix[1:]}." for other in others)
    return ValueError(
        f"to_script() writes only programs that do exactly what fit() does, and cannot write {first.what}. {first.fix}.{more}"
    )
