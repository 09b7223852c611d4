"""Several optimizers that train one module, by the name of the part that each of them trains."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from easytorch import optimizers
from easytorch._utils import torch_private
from easytorch._utils.integers import positive_int
from easytorch._utils.internal import is_internal
from easytorch._utils.patterns import matches
from easytorch._utils.registry import did_you_mean, quote_list
from easytorch.checkpoint import state_dicts

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

# The key of the optimizer for all parameters that no other key matches.
OTHERS = "*"
# Prefixes of methods of Model whose names end in "_step".
STEPS_OF_MODEL = ("train", "test", "predict")


class OwnedLoss(NamedTuple):
    """A loss whose gradients reach the parameters of one optimizer only.

    Attributes:
        name: The name of the optimizer; empty for the loss of all optimizers that update in this window.
        loss: A scalar, or a pair ``(sum, count)``.
        parameters: The parameters.
    """

    name: str
    loss: Any
    parameters: list[nn.Parameter]


class OwnedLosses(tuple[OwnedLoss, ...]):
    """The losses of one batch, each for its own parameters."""

    __slots__ = ()


class OptimizerGroup(torch.optim.Optimizer):
    """Several optimizers as one, by name: ``model.optimizer["head"]``.

    ``compile(optimizer={...})`` creates it. A scheduler, a callback or a checkpoint treats it like any optimizer.

    Args:
        members: The optimizers by name.
        update_every: For each name the number of windows for one update; 1 for names that are left out.

    Attributes:
        members: The optimizers by name.
        update_every: See above.
        steps: The names, if the model has a method ``<name>_step`` for each of them; otherwise empty.
        stepped: The names whose step has ended in the current window, if each has a separate step.
        may_have_losses: Whether a loss for each optimizer is possible: a custom step may return one.
        lr: The learning rate of the first parameter group. Setting it sets the rate of all groups of all members.

    Examples:
        >>> model.compile({"backbone": ("adamw", {"lr": 1e-5}), "head": "adam"}, "cross_entropy", lr=1e-3)
        >>> model.optimizer["backbone"].lr = 1e-6
    """

    def __init__(
        self, members: Mapping[str, torch.optim.Optimizer], update_every: Mapping[str, int] | None = None
    ) -> None:
        # Not super().__init__(): the members have the state and the parameter groups.
        self.members = dict(members)
        self.update_every = {name: (update_every or {}).get(name, 1) for name in members}
        self.steps: tuple[str, ...] = ()
        self.stepped: tuple[str, ...] = ()
        self.may_have_losses = False
        self._due = tuple(self.members)
        # Schedulers warn otherwise, because the loop may step the members and not this object.
        torch_private.mark_as_stepped(self)
        for name, member in self.members.items():
            optimizers.add_rate_attributes(member)
            for group in member.param_groups:
                group.setdefault("name", name)

    # A mapping of names

    def __getitem__(self, name: str) -> torch.optim.Optimizer:
        if name not in self.members:
            known = quote_list(list(self.members))
            raise KeyError(f"There is no optimizer {name!r}.{did_you_mean(name, self.members)} The names are {known}.")
        return self.members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __contains__(self, name: object) -> bool:
        return name in self.members

    def keys(self) -> KeysView[str]:
        """Return the names."""
        return self.members.keys()

    def values(self) -> ValuesView[torch.optim.Optimizer]:
        """Return the optimizers."""
        return self.members.values()

    def items(self) -> ItemsView[str, torch.optim.Optimizer]:
        """Return names and optimizers."""
        return self.members.items()

    # An optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]  # an attribute in torch
        """The parameter groups of all members, the same dicts as theirs."""
        return [group for member in self.members.values() for group in member.param_groups]

    @property
    def state(self) -> Mapping[Any, Any]:  # type: ignore[override]  # an attribute in torch
        """The state of all parameters, to read."""
        return MappingProxyType({key: value for member in self.members.values() for key, value in member.state.items()})

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]  # an attribute in torch
        """The options that all members have with the same default value."""
        first, *others = [member.defaults for member in self.members.values()]
        return {
            name: value
            for name, value in first.items()
            if all(name in other and _is_same(other[name], value) for other in others)
        }

    @property
    def lr(self) -> Any:
        """The learning rate of the first parameter group."""
        return self.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value: Any) -> None:
        optimizers.set_rates(self.param_groups, value)

    learning_rate = lr

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # a closure belongs to one optimizer
        """Step the members that are due in this window.

        Raises:
            ValueError: If ``closure`` is passed.
        """
        if closure is not None:
            raise ValueError("Several optimizers cannot share a closure. Call model.optimizer['name'].step(closure).")
        for member in self.due():
            torch_private.find_step(member)()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Delete all gradients."""
        for member in self.members.values():
            member.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the member that its entry ``"name"`` names.

        Raises:
            ValueError: If it names none.
        """
        name = param_group.get("name")
        if name not in self.members:
            raise ValueError(
                f"add_param_group needs the name of an optimizer, received {name!r}. Call it on one of them: "
                f"model.optimizer[{next(iter(self.members))!r}].add_param_group(...)."
            )
        self.members[name].add_param_group(param_group)

    def register_step_post_hook(self, hook: Callable[..., None]) -> RemovableHandle:
        """Refuse a hook, which would be called for each member."""
        raise _hook_error("register_step_post_hook")

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Refuse a hook, which would be called for each member."""
        raise _hook_error("register_step_pre_hook")

    def state_dict(self) -> dict[str, Any]:
        """Return the state dict of each member, by name."""
        return {name: member.state_dict() for name, member in self.members.items()}

    def fits_state(self, state: Any) -> bool:
        """Return whether ``state`` has a state for each member, of parameters of the same shapes."""
        if not isinstance(state, Mapping) or set(state) != set(self.members):
            return False
        return all(state_dicts.can_load(state[name], member) for name, member in self.members.items())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the state dict of each member.

        Raises:
            ValueError: If a name is missing or unknown, or a state belongs to other parameters; nothing is changed then.
        """
        if not self.fits_state(state_dict):
            found = list(state_dict) if isinstance(state_dict, Mapping) else type(state_dict).__name__
            raise ValueError(
                f"The state does not belong to the optimizers {list(self.members)} with these parameters. It has {found}."
            )
        for name, member in self.members.items():
            member.load_state_dict(state_dict[name])

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def __repr__(self) -> str:
        members = ", ".join(f"{name!r}: {type(member).__name__}" for name, member in self.members.items())
        return f"{type(self).__name__}({{{members}}})"

    # Windows

    def select_due(self, step: int) -> tuple[str, ...]:
        """Let only the members step that update in the window after ``step`` updates, and return their names."""
        self.stepped = ()
        self._due = tuple(name for name, every in self.update_every.items() if (step + 1) % every == 0)
        return self._due

    def due(self) -> list[torch.optim.Optimizer]:
        """Return the members that update in the current window."""
        return [self.members[name] for name in self._due]

    def names_of(self, optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
        """Return the name of the member ``optimizer``; of this object itself, the names that are due."""
        if optimizer is self:
            return self._due
        return tuple(name for name, member in self.members.items() if member is optimizer)

    def due_losses(self, losses: Mapping[str, Any]) -> OwnedLosses:
        """Return the losses of the members that are due, with their parameters."""
        return OwnedLosses(OwnedLoss(name, losses[name], parameters_of(self.members[name])) for name in self._due)

    def due_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the members that are due."""
        return [parameter for member in self.due() for parameter in parameters_of(member)]

    @property
    def skips_windows(self) -> bool:
        """Whether a member does not update in every window."""
        return any(every > 1 for every in self.update_every.values())


def members_of(optimizer: torch.optim.Optimizer) -> dict[str, torch.optim.Optimizer]:
    """Return the members of a group by name; any other optimizer has the name ``""``."""
    return optimizer.members if isinstance(optimizer, OptimizerGroup) else {"": optimizer}


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the parameters of all groups of ``optimizer``."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def first_group(optimizer: torch.optim.Optimizer, name: str) -> dict[str, Any]:
    """Return the first parameter group of the optimizer for the parameter ``name``.

    Raises:
        ValueError: If several optimizers are named, and none of the names matches.
    """
    if not isinstance(optimizer, OptimizerGroup):
        return optimizer.param_groups[0]
    key = next((key for key in optimizer if key != OTHERS and matches(name, key)), OTHERS)
    if key not in optimizer:
        raise ValueError(
            f"No optimizer is named for {name!r}: its names are {quote_list(list(optimizer))}. Add it to "
            f"compile(optimizer={{..., {name.split('.')[0]!r}: 'adam'}})."
        )
    return optimizer[key].param_groups[0]


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return what the logs contain: ``lr``, or ``lr_<name>`` for each member of a group."""
    if not isinstance(optimizer, OptimizerGroup):
        return optimizers.learning_rates(optimizer)
    return {
        key.replace("lr", f"lr_{name}", 1): rate
        for name, member in optimizer.items()
        for key, rate in optimizers.learning_rates(member).items()
    }


def step_names(optimizer: torch.optim.Optimizer | None) -> tuple[str, ...]:
    """Return the names of the optimizers if each has a step, otherwise nothing."""
    return optimizer.steps if isinstance(optimizer, OptimizerGroup) else ()


def loss_names(optimizer: torch.optim.Optimizer | None) -> list[str]:
    """Return the names of the losses in the logs, as far as they are known."""
    return [f"{name}_loss" for name in step_names(optimizer)] or ["loss"]


def is_plain(optimizer: Any) -> bool:
    """Return whether the argument of ``compile`` consists of names and options, and not of objects."""
    if isinstance(optimizer, Mapping):
        return all(is_plain(_split_pair(name, value)[0]) for name, value in optimizer.items())
    return isinstance(optimizer, str)


# Creation


def check_options(optimizer: Any, options: Mapping[str, Any], arguments: Collection[str]) -> None:
    """Raise an error unless ``optimizer``, or each optimizer of a dict, takes its options; see ``optimizers.check_options``."""
    if not isinstance(optimizer, Mapping):
        optimizers.check_options(optimizer, options, arguments)
        return
    if not optimizer or not all(isinstance(name, str) and name for name in optimizer):
        raise ValueError(
            f"A dict of optimizers needs names of submodules as keys, received {dict(optimizer)!r}. Use {{'backbone': 'adamw', "
            "'head': 'adam'}."
        )
    if options:
        name, value = next(iter(options.items()))
        first = next(iter(optimizer))
        raise ValueError(
            f"{name}={value!r} could belong to any of the optimizers {quote_list(list(optimizer))}. Pass it with one of them: "
            f"{{{first!r}: ('adam', {{{name!r}: {value!r}}}), ...}}."
        )
    for name, value in optimizer.items():
        kind, own_options = _split_pair(name, value)
        optimizers.check_options(kind, {key: own_options[key] for key in own_options if key != "lr"}, arguments)


def resolve_optimizer(
    optimizer: Any,
    module: nn.Module,
    lr: float | None,
    loss_modules: Any,
    options: Mapping[str, Any],
    arguments: Collection[str],
    *,
    update_every: Mapping[str, int] | None = None,
    model_class: type | None = None,
) -> torch.optim.Optimizer | None:
    """Return the optimizer for the argument of ``compile``, which may be a dict; see ``optimizers.resolve_optimizer``.

    Args:
        optimizer: As for ``optimizers.resolve_optimizer``, or a dict of such values and of pairs ``(optimizer, options)``.
        module: The module with the parameters to train.
        lr: The learning rate of all optimizers for which none is given.
        loss_modules: The losses with parameters.
        options: Further arguments of a single optimizer.
        arguments: The names of the arguments of ``compile``, for messages.
        update_every: The number of windows for one update, by name.
        model_class: The class of the model, which may have a step for each optimizer.

    Raises:
        ValueError: If a key matches no parameter, two match the same one, none matches a parameter to train, or an optimizer
            has parameters of another key; and as ``optimizers.resolve_optimizer``.
    """
    if not isinstance(optimizer, Mapping):
        if update_every is not None:
            raise ValueError(
                f"update_every={update_every!r} needs a dict of optimizers. Use compile({{'generator': 'adam', 'critic': "
                "'adam'}, update_every={'generator': 5})."
            )
        own = loss_modules.own_parameters()
        return optimizers.resolve_optimizer(optimizer, module, lr, own, options, arguments)
    named = dict(module.named_parameters(remove_duplicate=False))
    named |= {f"loss.{name}": value for name, value in loss_modules.named_own_parameters()}
    optimizers.check_parameters(module, loss_modules.own_parameters())
    _check_update_every(update_every, optimizer)
    parts = _divide(named, list(optimizer))
    _check_objects(optimizer, parts, named)
    _check_common_rate(optimizer, lr)
    members = {}
    for name, value in optimizer.items():
        kind, own_options = _split_pair(name, value)
        is_object = isinstance(kind, torch.optim.Optimizer)
        rate = None if is_object else own_options.get("lr", lr)
        rest = {key: own_options[key] for key in own_options if key != "lr"}
        members[name] = optimizers.create_optimizer(kind, parts[name], module, rate, rest, arguments)
    group = OptimizerGroup(members, update_every)
    if model_class is not None:
        group.steps = find_steps(model_class, group)
        has_custom_step = not is_internal(model_class.train_step)  # type: ignore[attr-defined]  # of Model
        group.may_have_losses = bool(group.steps) or has_custom_step or group.skips_windows
    return group


def find_steps(model_class: Any, names: Collection[str]) -> tuple[str, ...]:
    """Return ``names`` if the class of a model has a method ``<name>_step`` for each of them, otherwise nothing.

    Raises:
        ValueError: If it has some of them, or overrides ``train_step`` too.
    """
    if not is_internal(model_class.update):
        return ()
    steps = [f"{name}_step" for name in names if name not in STEPS_OF_MODEL]
    found = [step for step in steps if inspect.isfunction(getattr(model_class, step, None))]
    if not found:
        return ()
    title = model_class.__name__
    if len(found) < len(names):
        missing = next(name for name in names if f"{name}_step" not in found)
        if not missing.isidentifier():
            raise ValueError(
                f"{title} has {quote_list(found)}, but no method can be the step of the optimizer {missing!r}. Use the name of a "
                "submodule as its key, or define train_step(self, batch) instead of the others."
            )
        raise ValueError(
            f"{title} has {quote_list(found)}, but no step for the optimizer {missing!r}. Define {missing}_step(self, batch), "
            "or define train_step(self, batch) instead of the others."
        )
    if not is_internal(model_class.train_step):
        raise ValueError(
            f"{title} has train_step and {quote_list(found)}, so it is unknown which of them to run. Remove train_step to run "
            "one step for each optimizer, or give the other methods names that do not end in '_step'."
        )
    return tuple(names)


def _split_pair(name: str, value: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return an optimizer of a dict and its options.

    Raises:
        TypeError: If ``value`` is a tuple, but no pair; or an optimizer object with options.
    """
    if not isinstance(value, (tuple, list)):
        if value is None:
            raise TypeError(f"The optimizer {name!r} is None. Leave out the key, and freeze these parameters.")
        return value, {}
    if len(value) != 2 or not isinstance(value[1], Mapping):
        raise TypeError(
            f"The optimizer {name!r} must be a name, a class, a function, an object, or a pair, received {value!r}. Use "
            f"{{{name!r}: ('adamw', {{'lr': 1e-5}})}}."
        )
    kind, options = value
    if isinstance(kind, torch.optim.Optimizer) and options:
        raise TypeError(
            f"The options {dict(options)!r} have no effect on the optimizer {name!r}, which exists already. Pass its class: "
            f"(torch.optim.{type(kind).__name__}, {dict(options)!r})."
        )
    return kind, options


def _divide(named: Mapping[str, nn.Parameter], keys: Sequence[str]) -> dict[str, list[nn.Parameter]]:
    """Return the parameters that each key matches, each parameter once.

    Raises:
        ValueError: If a key matches none, two keys match the same one, or a parameter to train has no key.
    """
    owners: dict[int, tuple[str, str]] = {}
    parts: dict[str, list[nn.Parameter]] = {key: [] for key in keys}
    for name, parameter in named.items():
        for key in (key for key in keys if key != OTHERS and matches(name, key)):
            other, other_name = owners.setdefault(id(parameter), (key, name))
            if other != key:
                shared = "" if name == other_name else f", the same tensor as {other_name!r}"
                raise ValueError(
                    f"The optimizers {other!r} and {key!r} both match the parameter {name!r}{shared}. Each parameter has one "
                    "optimizer: use names that match different parameters."
                )
            if other_name == name:
                parts[key].append(parameter)
    rest = {name: value for name, value in named.items() if id(value) not in owners}
    if OTHERS in parts:
        parts[OTHERS] = list({id(value): value for value in rest.values()}.values())
    for key, parameters in parts.items():
        if not parameters:
            tops = list(dict.fromkeys(name.split(".")[0] for name in named))
            what = " All parameters have another key." if key == OTHERS else did_you_mean(key, [*tops, *named])
            raise ValueError(
                f"The optimizer {key!r} matches no parameter of the module.{what} The module has the parts "
                f"{quote_list(tops[:10])}; the key '*' matches all parameters that no other key matches."
            )
    missing = [name for name, value in rest.items() if value.requires_grad]
    if missing and OTHERS not in parts:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"No optimizer is named for the parameter {missing[0]!r}{more}. Add a key such as "
            f"{missing[0].split('.')[0]!r}: 'adam', or '*' for all other parameters; or freeze them with requires_grad_(False)."
        )
    return parts


def _check_objects(
    values: Mapping[str, Any], parts: Mapping[str, Sequence[nn.Parameter]], named: Mapping[str, nn.Parameter]
) -> None:
    """Raise a ``ValueError`` if an optimizer object has parameters of another key."""
    names = {id(value): name for name, value in named.items()}
    owners = {id(value): key for key, part in parts.items() for value in part}
    objects: dict[int, str] = {}
    for key, value in values.items():
        kind = _split_pair(key, value)[0]
        if not isinstance(kind, torch.optim.Optimizer):
            continue
        if objects.setdefault(id(kind), key) != key:
            raise ValueError(f"{objects[id(kind)]!r} and {key!r} have the same optimizer object. Create one for each.")
        for parameter in parameters_of(kind):
            owner = owners.get(id(parameter), key)
            if owner != key:
                raise ValueError(
                    f"The optimizer {key!r} has the parameter {names[id(parameter)]!r} of {owner!r}. Create it from "
                    f"the parameters that {key!r} matches."
                )


def _check_common_rate(values: Mapping[str, Any], lr: float | None) -> None:
    """Raise a ``ValueError`` if ``lr`` is invalid, or has no effect on any of the optimizers."""
    optimizers.check_rate(lr)
    pairs = [_split_pair(name, value) for name, value in values.items()]
    if lr is not None and all(isinstance(kind, torch.optim.Optimizer) or "lr" in own for kind, own in pairs):
        raise ValueError(
            f"lr={lr} has no effect, because a learning rate is given for each optimizer. Leave out lr, or the 'lr' of one of "
            "them."
        )


def _check_update_every(update_every: Any, names: Collection[str]) -> None:
    """Raise an error unless ``update_every`` is a dict of names and positive integers, and one optimizer always updates."""
    if update_every is None:
        return
    if not isinstance(update_every, Mapping):
        raise TypeError(
            f"update_every must be a dict, received {update_every!r}. Use update_every={{{next(iter(names))!r}: 5}}."
        )
    for name, every in update_every.items():
        if name not in names:
            raise ValueError(
                f"update_every has {name!r}, which is no optimizer.{did_you_mean(str(name), names)} The names are "
                f"{quote_list(list(names))}."
            )
        positive_int(f"update_every[{name!r}]", every)
    if all(update_every.get(name, 1) > 1 for name in names):
        raise ValueError(
            f"update_every={dict(update_every)!r} leaves windows in which no optimizer updates. Leave out one of the names. For "
            "larger batches pass gradient_accumulation_steps."
        )


def _is_same(first: Any, second: Any) -> bool:
    return type(first) is type(second) and not isinstance(first, torch.Tensor) and bool(first == second)


def _hook_error(method: str) -> ValueError:
    return ValueError(
        f"{method}() needs one of the optimizers of the group. Use model.optimizer['name'].{method}(hook)."
    )
