"""The description of optimizers and learning rate schedules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from easytorch._utils import torch_private
from easytorch._utils.internal import is_internal
from easytorch._utils.registry import get_name
from easytorch.callbacks.lr_schedulers import Schedule
from easytorch.optimizer_group import members_of, parameters_of
from easytorch.optimizers import option_defaults, stock_class
from easytorch.scripts.description import OptimizerInfo, RunDescription, ScheduleInfo
from easytorch.scripts.expressions import (
    InexpressibleError,
    call,
    literal,
    optimizer_options,
    optimizer_title,
    quote,
    scheduler_expression,
)

if TYPE_CHECKING:
    from easytorch.model import Model

# Keys of parameter groups that no constructor takes.
OF_SCHEDULERS = ("params", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "param_names")
# Schedulers that change the momentum, too.
CYCLES = (lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)


def add_optimizers(run: RunDescription, model: Model, optimizer: Optimizer, rates: tuple[float, ...] | None) -> None:
    """Add the optimizers of ``model`` to ``run``.

    Args:
        run: The description.
        model: The model.
        optimizer: Its optimizer, or several in a group.
        rates: The learning rate of each parameter group at the start of the fit; None for the present ones.
    """
    given = iter(rates or [float(group["lr"]) for group in optimizer.param_groups])
    for name, member in members_of(optimizer).items():
        start = _initial_rates(model, member, [next(given) for _ in member.param_groups])
        title, is_torch = optimizer_title(member)
        values = sum(parameter.numel() for parameter in parameters_of(member) if parameter.requires_grad)
        try:
            expression, parameters = _expression(model, member, start)
        except InexpressibleError as error:
            expression, parameters = "", ""
            run.refuse(str(error), "Compile with an optimizer of torch.optim")
        run.optimizers[name] = OptimizerInfo(
            title.rpartition(".")[2], expression, parameters, start, values, is_custom=not is_torch
        )


def _initial_rates(model: Model, optimizer: Optimizer, rates: list[float]) -> tuple[float, ...]:
    """Return the rates with which a script creates ``optimizer``: those before the first step of a schedule."""
    schedules = [schedule for schedule in model.schedules if schedule.optimizer_in(_of(model)) is optimizer]
    if any(isinstance(schedule.scheduler, CYCLES) for schedule in schedules if not isinstance(schedule, Schedule)):
        return tuple(float(optimizer.defaults["lr"]) for _ in rates)
    for schedule in schedules:
        if isinstance(schedule, Schedule):
            return tuple(schedule.rates)
    groups = optimizer.param_groups
    return tuple(
        float(group.get("initial_lr", rate)) if schedules else rate for group, rate in zip(groups, rates, strict=True)
    )


def _of(model: Model) -> Optimizer:
    return model.require_optimizer("to_script")


def _check_is_plain(optimizer: Optimizer) -> None:
    """Raise an ``InexpressibleError`` if ``optimizer`` has more than its class, its options and its parameters."""
    name = optimizer_title(optimizer)[0]
    if not all(map(is_internal, torch_private.step_hooks(optimizer))):
        raise InexpressibleError(f"the hooks of {name}")
    if any(isinstance(group["lr"], torch.Tensor) for group in optimizer.param_groups):
        raise InexpressibleError(f"{name} with a tensor as learning rate")


def _expression(model: Model, optimizer: Optimizer, rates: tuple[float, ...]) -> tuple[str, str]:
    """Return the call that creates ``optimizer``, and an expression of its parameters."""
    _check_is_plain(optimizer)
    title, _ = optimizer_title(optimizer)
    cls: Any = stock_class(optimizer) or getattr(type(optimizer), "rate_base", type(optimizer))
    defaults = option_defaults(cls)
    options = optimizer_options(optimizer)
    cycles = any(isinstance(schedule.scheduler, CYCLES) for schedule in model.schedules)
    groups = [_group_options(group, options, cycles) for group in optimizer.param_groups]
    parts = [parameters_expression(model.module, group["params"]) for group in optimizer.param_groups]
    if len(groups) == 1:
        # The rate is always shown.
        shown = {"lr": rates[0], **{key: value for key, value in {**options, **groups[0]}.items() if key != "lr"}}
        defaults.pop("lr", None)
        return call(title, shown, defaults, parts[0]), parts[0]
    texts = []
    for part, rate, own in zip(parts, rates, groups, strict=True):
        entries = {
            "lr": rate,
            **{key: value for key, value in own.items() if key != "lr" and options.get(key) != value},
        }
        inner = ", ".join(f"{quote(key)}: {literal(value)}" for key, value in entries.items())
        texts.append(f'{{"params": {part}, {inner}}}')
    shared = {key: value for key, value in options.items() if key != "lr"}
    everything = '[p for group in optimizer.param_groups for p in group["params"]]'
    lines = "".join(f"    {text},\n" for text in texts)
    return call(title, shared, defaults, f"[\n{lines}]"), everything


def _group_options(group: Mapping[str, Any], options: Mapping[str, Any], cycles: bool) -> dict[str, Any]:
    """Return the options of a parameter group; those that a schedule changes have the values of the constructor."""
    changed = ("momentum", "betas") if cycles else ()
    return {
        key: options[key] if key in changed else group[key]
        for key in options
        if key in group and key not in OF_SCHEDULERS
    }


def parameters_expression(module: nn.Module, parameters: list[nn.Parameter]) -> str:
    """Return an expression of ``parameters`` of the variable ``net``.

    Raises:
        InexpressibleError: If one of them does not belong to ``module``.
    """
    for name, part in module.named_modules():
        if _are_same(list(part.parameters()), parameters):
            return f"{_path(name)}.parameters()"
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if _are_same(trainable, parameters):
        return "[p for p in net.parameters() if p.requires_grad]"
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    if any(id(parameter) not in names for parameter in parameters):
        raise InexpressibleError("an optimizer of parameters outside of the module")
    chosen = [names[id(parameter)] for parameter in parameters]
    prefixes = {name.rpartition(".")[0] for name in chosen}
    in_order = [name for name, _ in module.named_parameters() if name in set(chosen)]
    if in_order == chosen and _are_same(_with_prefixes(module, prefixes), parameters):
        starts = literal(tuple(f"{prefix}." for prefix in sorted(prefixes)))
        return f"[p for name, p in net.named_parameters() if name.startswith({starts})]"
    return f"[{', '.join(f'net.get_parameter({quote(name)})' for name in chosen)}]"


def _with_prefixes(module: nn.Module, prefixes: set[str]) -> list[nn.Parameter]:
    starts = tuple(f"{prefix}." for prefix in prefixes)
    return [parameter for name, parameter in module.named_parameters() if name.startswith(starts)]


def _are_same(first: list[nn.Parameter], second: list[nn.Parameter]) -> bool:
    return len(first) == len(second) and all(a is b for a, b in zip(first, second, strict=True))


def _path(name: str) -> str:
    """Return an expression of the submodule ``name`` of ``net``."""
    if not name:
        return "net"
    return (
        f"net.{name}" if all(part.isidentifier() for part in name.split(".")) else f"net.get_submodule({quote(name)})"
    )


# Schedules


def add_schedules(run: RunDescription, model: Model) -> None:
    """Add the learning rate schedules of ``model`` to ``run``."""
    for schedule in model.schedules:
        optimizer = schedule.optimizer_in(_of(model))
        rates = next(iter(run.optimizers.values())).rates if run.optimizers else ()
        if isinstance(schedule, Schedule):
            run.schedules.append(_named_schedule(run, schedule, optimizer, rates))
            continue
        title = type(schedule.scheduler).__name__
        every = schedule.step_every or ""
        if not every and run.fit is not None:
            epochs, updates = run.fit.epochs, (run.fit.updates or 0) * run.fit.epochs
            every = schedule.find_step_every(epochs, updates) or ""
        try:
            line = scheduler_expression(schedule.scheduler, optimizer, rates)
        except InexpressibleError as error:
            run.refuse(str(error), "Pass another schedule to compile(), such as scheduler='cosine'")
            line = ""
        monitor = ""
        if isinstance(schedule.scheduler, lr_scheduler.ReduceLROnPlateau):
            monitor = schedule.monitor or ("val_loss" if run.validation is not None else "loss")
        functions = getattr(schedule.scheduler, "lr_lambdas", [])
        function = get_name(functions[0]) if line and functions else ""
        run.schedules.append(ScheduleInfo(title, every, (f"scheduler = {line}",), monitor, function))


def _named_schedule(
    run: RunDescription, schedule: Schedule, optimizer: Optimizer, rates: tuple[float, ...]
) -> ScheduleInfo:
    """Return the description of ``"cosine"``, ``"warmup_cosine"`` or ``"one_cycle"``."""
    if run.fit is not None and run.fit.updates is None:
        run.refuse("a schedule over data without a length", "Pass steps_per_epoch")
    prefix = "torch.optim.lr_scheduler."
    if schedule.name == "one_cycle":
        has_momentum = not {"momentum", "betas"}.isdisjoint(optimizer.defaults)
        highest = literal(rates[0] if len(set(rates)) == 1 else list(rates))
        end = "" if has_momentum else ", cycle_momentum=False"
        line = f"scheduler = {prefix}OneCycleLR(optimizer, max_lr={highest}, total_steps=total_steps + 1{end})"
        return ScheduleInfo(schedule.name, "update", (line,))
    if not schedule.warmup:
        line = (
            f"scheduler = {prefix}LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / total_steps)))"
        )
        return ScheduleInfo(schedule.name, "update", (line,))
    lines = (
        f"warmup_steps = round({literal(schedule.warmup)} * total_steps)",
        "",
        "",
        "def rate_factor(step):",
        '    """Rise linearly, then fall along half a cosine."""',
        "    if step < warmup_steps:",
        "        return (step + 1) / (warmup_steps + 1)",
        "    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(total_steps - warmup_steps, 1)))",
        "",
        "",
        f"scheduler = {prefix}LambdaLR(optimizer, rate_factor)",
    )
    return ScheduleInfo(schedule.name, "update", lines)
