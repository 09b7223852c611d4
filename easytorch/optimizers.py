"""Optimizers by name, in torch's fastest implementation, with options."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from easytorch._utils.api_errors import missing_class_error, unexpected_argument_error
from easytorch._utils.api_hints import OPTIMIZER_HINTS
from easytorch._utils.integers import boolean
from easytorch._utils.patterns import find_patterns
from easytorch._utils.registry import find, get_name, quote_list
from easytorch._utils.tracebacks import hide_internal_frames
from easytorch._utils.warnings import warn

__all__ = ["SAM", "TABLE"]

# Options that choose an implementation. Whoever passes one of them gets torch's defaults for the others.
IMPLEMENTATION_OPTIONS = ("fused", "foreach", "capturable", "differentiable")
# Classes of torch that cannot train complex parameters.
REAL_OPTIMIZERS = ("Adafactor", "Muon", "SparseAdam")
# Layers whose weights are matrices, but no linear maps, for which Muon is not meant.
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# Names of parameters in an error.
MAX_NAMES = 5
# Names of the learning rate as an attribute of an optimizer, in Keras and elsewhere.
RATE_NAMES = ("lr", "learning_rate")


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization: update the weights by the gradients at the largest loss nearby.

    Each update evaluates the loss twice: at the weights, and at the weights plus ``rho * gradient / norm(gradient)``.

    Args:
        params: The parameters.
        base: The optimizer that applies the gradients: a name or a class of ``torch.optim``.
        rho: The distance of the second evaluation, at least 0.
        adaptive: Scale the step to the second evaluation by the size of each weight, as ASAM does
            (https://arxiv.org/abs/2102.11600). ``rho`` is about ten times as large then.
        options: Options of ``base``, such as ``lr`` and ``momentum``.

    Raises:
        ValueError: If ``rho`` is negative, or ``base`` is unknown or needs a closure itself.
        TypeError: If ``base`` has no such option.

    Source: Foret et al., 2021, https://arxiv.org/abs/2010.01412.

    Examples:
        >>> model.compile("sam", "cross_entropy", base="sgd", rho=0.05, lr=0.1, momentum=0.9)
    """

    needs_closure = True

    def __init__(
        self, params: Any, base: str | type[Any] = "sgd", rho: float = 0.05, adaptive: bool = False, **options: Any
    ) -> None:
        if not _is_number(rho) or rho < 0:
            raise ValueError(f"rho must be a number of at least 0, received {rho!r}. Pass rho=0.05.")
        adaptive = boolean("adaptive", adaptive)
        cls = _find_class(base) if isinstance(base, str) else base
        if not isinstance(cls, type) or needs_closure(cls):
            raise ValueError(
                f"base must be an optimizer that needs no closure, by name or class, received {base!r}. Pass base='sgd'."
            )
        unknown = next((name for name in options if name not in inspect.signature(cls).parameters), None)
        if unknown is not None:
            raise TypeError(
                f"SAM received the option {unknown!r}, which {_title(cls)} does not have. Its options are "
                f"{', '.join([*option_defaults(cls)])}."
            )
        self.base: torch.optim.Optimizer = cls(params, **options)
        super().__init__(self.base.param_groups, {**self.base.defaults, "rho": rho, "adaptive": adaptive})
        self._share_state()

    def _share_state(self) -> None:
        """Let the base optimizer have the groups and the state of this one, which are its own."""
        self.base.param_groups, self.base.state = self.param_groups, self.state

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "base": self.base}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # also called by load_state_dict
        self._share_state()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]  # without a closure there is no update
        """Update the parameters once, and return the loss before the update.

        Args:
            closure: Computes the gradients and returns the loss; called twice.
        """
        closure = torch.enable_grad()(closure)
        loss = closure()
        with self._at_largest_loss():
            closure()
        self.base.step()
        return loss

    @contextlib.contextmanager
    def _at_largest_loss(self) -> Iterator[None]:
        """Move the parameters by ``rho`` along their gradients inside."""
        pairs = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        scaled = [p.abs() * p.grad if group["adaptive"] else p.grad for p, group in pairs]
        norms = [gradient.norm(2).to(scaled[0].device) for gradient in scaled]
        norm = torch.stack(norms or [torch.zeros(())]).norm(2)
        weights = [p.clone() for p, _ in pairs]
        for (p, group), gradient in zip(pairs, scaled, strict=True):
            direction = p.abs() * gradient if group["adaptive"] else gradient
            p.add_(direction * (group["rho"] / (norm + 1e-12)).to(p.device))
        try:
            yield
        finally:
            for (p, _), weight in zip(pairs, weights, strict=True):
                p.copy_(weight)


TABLE: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): optimizer
    for name, optimizer in vars(torch.optim).items()
    if isinstance(optimizer, type)
    and issubclass(optimizer, torch.optim.Optimizer)
    and optimizer is not torch.optim.Optimizer
}
TABLE["sam"] = SAM


def __dir__() -> list[str]:
    return __all__


def resolve_optimizer(
    optimizer: Any,
    module: nn.Module,
    lr: float | None = None,
    loss_parameters: Sequence[nn.Parameter] = (),
    options: Mapping[str, Any] | None = None,
    arguments: Collection[str] = (),
) -> torch.optim.Optimizer | None:
    """Return the optimizer for the argument of ``compile``.

    Args:
        optimizer: A name; a ``torch.optim.Optimizer``; a class, ``functools.partial`` or function that returns an optimizer
            for a list of parameters; or None for a model that is not trained.
        module: The module with the parameters to train.
        lr: The learning rate; None (default) uses the default of the optimizer.
        loss_parameters: Parameters of the loss, to train as well.
        options: Further arguments of the optimizer, which ``check_options`` has checked.
        arguments: The names of the arguments of ``compile``, for messages.

    Raises:
        ValueError: If the name is unknown, ``lr`` has no effect, torch refuses an option, or the module has no parameters to
            train.
        TypeError: If ``optimizer`` has another type.
    """
    check_rate(lr)
    if optimizer is None:
        return None
    parameters = check_parameters(module, loss_parameters)
    return create_optimizer(optimizer, parameters, module, lr, {} if options is None else options, arguments)


def create_optimizer(
    optimizer: Any,
    parameters: list[nn.Parameter],
    module: nn.Module,
    lr: float | None,
    options: Mapping[str, Any],
    arguments: Collection[str],
) -> torch.optim.Optimizer:
    """Return the optimizer of ``parameters``, which belong to ``module``; see ``resolve_optimizer``."""
    check_rate(lr)
    is_other_class = isinstance(optimizer, type) and not issubclass(optimizer, torch.optim.Optimizer)
    if is_other_class or (not callable(optimizer) and not isinstance(optimizer, (str, torch.optim.Optimizer))):
        raise TypeError(
            f"Expected an optimizer, received {optimizer!r}. Pass a name such as 'adam', a torch.optim.Optimizer, or a "
            "function such as lambda parameters: torch.optim.Adam(parameters)."
        )
    if isinstance(optimizer, str):
        return _create_by_name(optimizer, parameters, module, lr, options)
    if isinstance(optimizer, torch.optim.Optimizer):
        return _check_instance(optimizer, parameters, lr)
    _check_kind(optimizer, parameters, module)
    try:
        return _call_factory(optimizer, parameters, lr, options)
    except TypeError as error:  # of a function that takes any options and passes them on
        name = next((name for name in options if f"unexpected keyword argument {name!r}" in str(error)), None)
        if name is None:
            raise
        raise unexpected_argument_error("Model.compile", name, options, [*arguments, *_all_options()]) from error


def check_options(optimizer: Any, options: Mapping[str, Any], arguments: Collection[str]) -> None:
    """Raise an error unless ``optimizer`` takes all ``options``.

    Args:
        optimizer: The argument of ``compile``.
        options: The keyword arguments of ``compile`` that are not its own.
        arguments: The names of the arguments of the method.

    Raises:
        TypeError: If an option is unknown, or its value has the wrong type.
        ValueError: If there is no optimizer, or it exists already.
    """
    known = _find_options(optimizer) if options else {}
    for name, value in options.items():
        if known is not None and name not in known:
            raise _unknown_option_error(optimizer, name, options, [*arguments, *known])
        if optimizer is None:
            raise ValueError(
                f"{name}={value!r} needs an optimizer. Pass one first: compile('sgd', ..., {name}={value!r})."
            )
        if isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(_existing_optimizer_message(optimizer, name, value))
        if known and _is_torch_optimizer(optimizer):
            check_option(f"{name} of {_title(optimizer)}", known[name].default, value)


def check_option(title: str, default: Any, value: Any) -> None:
    """Raise a ``TypeError`` unless ``value`` is of the kind of ``default``; torch compares it with numbers, or ignores it.

    Args:
        title: The name of the option, for the message.
        default: Its default. None stands for any value.
        value: The value that the user passed.
    """
    expected = ""
    if isinstance(default, bool):
        expected = "" if isinstance(value, bool) else "True or False"
    elif isinstance(default, numbers.Real):
        expected = "" if _is_number(value) else "a number"
    elif isinstance(default, tuple):
        is_tuple = isinstance(value, (tuple, list)) and len(value) == len(default)
        if not is_tuple or not all(item is None or _is_number(item) for item in value):
            expected = f"{len(default)} numbers"
    if expected:
        raise TypeError(f"{title} must be {expected}, received {value!r}. Its default is {default!r}.")


def option_defaults(optimizer: Callable[..., Any]) -> dict[str, Any]:
    """Return the default of each option of an optimizer class, the learning rate included."""
    parameters = list(inspect.signature(optimizer).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}


def stock_class(optimizer: torch.optim.Optimizer) -> type[torch.optim.Optimizer] | None:
    """Return the class of ``torch.optim`` that ``optimizer`` is an object of; None for a custom class."""
    cls = getattr(type(optimizer), "rate_base", type(optimizer))
    return cls if vars(torch.optim).get(cls.__name__) is cls else None


def needs_closure(optimizer: Any) -> bool:
    """Return whether ``step`` of an optimizer or its class needs a closure, which computes the gradients and returns the loss.

    It does if ``step`` has a required argument ``closure``, as that of LBFGS; if there are the methods ``first_step`` and
    ``second_step`` of SAM; or if the attribute ``needs_closure`` is true.
    """
    if hasattr(optimizer, "needs_closure"):
        return bool(optimizer.needs_closure)
    if hasattr(optimizer, "first_step") and hasattr(optimizer, "second_step"):
        return True
    step = getattr(optimizer if isinstance(optimizer, type) else type(optimizer), "step", None)
    closure = None if step is None else inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def starts_with_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether ``optimizer.step(closure)`` certainly evaluates the loss at the current weights first."""
    return isinstance(optimizer, (torch.optim.LBFGS, SAM))


def add_rate_attributes(optimizer: torch.optim.Optimizer) -> None:
    """Let ``optimizer.lr`` and ``optimizer.learning_rate`` read and set the learning rate of all groups, as in Keras.

    Without this, torch stores an assigned rate in an attribute that it never reads. The optimizer gets a subclass of its class
    with these two properties. A custom class that has such an attribute keeps it.
    """
    assigned = [name for name in RATE_NAMES if stock_class(optimizer) is not None and name in vars(optimizer)]
    rates = [vars(optimizer).pop(name) for name in assigned]
    names = tuple(name for name in RATE_NAMES if not hasattr(optimizer, name))
    cls: Any = type(optimizer)
    if names:
        optimizer.__class__ = _class_with_rate(cls, names)
    for rate in rates:
        _set_rate(optimizer, rate)


def check_optimizer_is_current(
    optimizer: torch.optim.Optimizer, module: nn.Module, loss_parameters: Sequence[nn.Parameter] = ()
) -> None:
    """Warn or raise if a change after ``compile`` would make training differ from what the code suggests.

    Raises:
        ValueError: If a layer was replaced.
    """
    _check_layers(optimizer, [*module.parameters(), *loss_parameters])
    _warn_of_trainable(module)


def check_rate(lr: Any) -> None:
    if isinstance(lr, slice):
        raise ValueError(
            f"lr must be a number, received {lr!r}. For a learning rate of each part of the module, pass a dict: "
            f"compile({{'backbone': ('adam', {{'lr': {lr.start!r}}}), 'head': ('adam', {{'lr': {lr.stop!r}}})}}, ...)."
        )
    if lr is not None and not (_is_number(lr) and lr >= 0):
        raise ValueError(f"lr must be a number of at least 0, received {lr!r}. Use a number such as lr=0.001.")


def _is_number(value: Any) -> bool:
    """Return whether ``value`` is a real number or a tensor of one, and not NaN."""
    is_number = isinstance(value, numbers.Real) or (isinstance(value, Tensor) and value.numel() == 1)
    return is_number and not isinstance(value, bool) and not math.isnan(value)


def _check_layers(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = {id(p) for p in parameters if p.requires_grad}
    has_old_parameters = bool(optimized - {id(p) for p in parameters})
    if has_old_parameters and trainable - optimized:
        raise ValueError(
            "A layer of the module was replaced after compile(): the optimizer has the parameters of the old layer and lacks "
            "those of the new one. Call compile() again."
        )


def _warn_of_trainable(module: nn.Module) -> None:
    """Warn of layers with Keras' ``trainable = False``."""
    for name, layer in module.named_modules():
        if vars(layer).get("trainable") is False and any(p.requires_grad for p in layer.parameters()):
            path = f"module.{name}" if name else "module"
            warn(
                f"{path}.trainable = False has no effect in torch, so its parameters will be trained. "
                f"Freeze them: {path}.requires_grad_(False)."
            )


def check_parameters(module: nn.Module, loss_parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters of ``module`` and of the loss; raise a ``ValueError`` if none of them can be trained."""
    parameters = [*module.parameters(), *loss_parameters]
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        raise ValueError(
            "The module has lazy layers, whose parameters have no shape yet. Run one batch through it before "
            "compile(), for example net(x[:2]), or call compile() after predict()."
        )
    if not parameters:
        raise ValueError(
            f"The module {type(module).__name__} has no parameters, so there is nothing to train. Assign its layers in "
            "__init__ (use nn.ModuleList instead of a list), or compile with optimizer=None."
        )
    if not any(p.requires_grad for p in parameters):
        raise ValueError(
            "All parameters of the module are frozen (requires_grad=False), so there is nothing to train. Call "
            "requires_grad_(True) on the layers to train before compile(), or compile with optimizer=None."
        )
    return parameters


def _create_by_name(
    name: str, parameters: list[nn.Parameter], module: nn.Module, lr: float | None, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    cls = _find_class(name)
    _check_kind(cls, parameters, module)
    all_options = _with_rate(lr, options)
    optimizer: torch.optim.Optimizer = _create(
        cls, parameters, {**_fast_options(cls, parameters, module, all_options), **all_options}, all_options
    )
    return optimizer


def _check_kind(optimizer: Any, parameters: Sequence[nn.Parameter], module: nn.Module) -> None:
    """Raise a ``ValueError`` if ``optimizer`` is a class of torch that cannot train some of ``parameters``."""
    title = optimizer.__name__ if isinstance(optimizer, type) and _is_torch_optimizer(optimizer) else ""
    is_muon = title == "Muon"
    if not is_muon and title not in REAL_OPTIMIZERS:
        return
    bad = {id(p) for p in parameters if p.is_complex() or (is_muon and p.ndim != 2)}
    if not bad:
        return
    names = {id(p): name for name, p in module.named_parameters()}
    titles = [names.get(id(p), "a parameter of the loss") for p in parameters if id(p) in bad]
    embeddings = {id(p) for layer in module.modules() if isinstance(layer, EMBEDDINGS) for p in layer.parameters()}
    others = bad | embeddings if is_muon else bad
    good = [names[id(p)] for p in parameters if id(p) in names and id(p) not in others]
    more = f" and {len(titles) - MAX_NAMES} more" if len(titles) > MAX_NAMES else ""
    limits = "matrices of real numbers" if is_muon else "real numbers"
    raise ValueError(
        f"{title} trains {limits} only. It cannot train {quote_list(titles[:MAX_NAMES])}{more}. "
        f"{_split_hint(good, title.lower(), [name for name in names.values() if name not in good])}"
    )


def _split_hint(names: Sequence[str], optimizer: str, others: Sequence[str]) -> str:
    """Return how to train the parameters ``names`` with ``optimizer``, and ``others`` with AdamW."""
    if not names:
        return "Use 'adamw'."
    by_pattern = dict.fromkeys(find_patterns(names, others), optimizer) | {"*": "adamw"}
    return f"Use one optimizer for each kind: compile({by_pattern}, ...)."


def _find_class(name: str) -> Any:
    return find(
        "optimizer",
        name,
        TABLE,
        otherwise="a torch.optim.Optimizer, or a function such as lambda parameters: torch.optim.Adam(parameters)",
    )


def _with_rate(lr: float | None, options: Mapping[str, Any]) -> dict[str, Any]:
    return dict(options) if lr is None else {"lr": lr, **options}


def _create(
    factory: Callable[..., Any], parameters: list[nn.Parameter], options: Mapping[str, Any], shown: Mapping[str, Any]
) -> Any:
    """Return ``factory(parameters, **options)``; if torch refuses an option, name those that are ``shown``."""
    if not shown or not (_is_torch_optimizer(factory) or factory is SAM):
        return factory(parameters, **options)
    try:
        optimizer = factory(parameters, **options)
        if not options.get("differentiable"):  # which is for a custom update
            _try_step(factory, parameters[0], options)
        return optimizer
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        values = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        raise ValueError(
            f"{_title(factory)} cannot be used with {values}: {str(error).rstrip('.')}. Pass values that "
            f"help({_title(factory)}) describes."
        ) from error


def _try_step(factory: Callable[..., Any], parameter: nn.Parameter, options: Mapping[str, Any]) -> None:
    """Update a small tensor with the same options, some of which torch checks in ``step`` only."""
    trial = nn.Parameter(torch.zeros(2, 2, dtype=parameter.dtype, device=parameter.device))
    gradient = torch.ones_like(trial)
    optimizer = factory([trial], **options)

    def closure() -> Tensor:
        trial.grad = gradient.to_sparse() if isinstance(optimizer, torch.optim.SparseAdam) else gradient
        return trial.detach().sum()

    closure()
    optimizer.step(closure)


def _fast_options(
    cls: type[torch.optim.Optimizer], parameters: list[nn.Parameter], module: nn.Module, options: Mapping[str, Any]
) -> dict[str, bool]:
    """Return ``fused`` or ``foreach`` where torch supports them; results differ from the default in the last bits only."""
    devices = {p.device.type for p in parameters}
    if any(name in IMPLEMENTATION_OPTIONS or isinstance(value, Tensor) for name, value in options.items()):
        return {}
    # SGD on a CPU is a few additions per tensor: the default is as fast, and bit for bit that of a hand-written loop.
    if not _support_fast_options(parameters, module) or (cls is torch.optim.SGD and devices == {"cpu"}):
        return {}
    known = inspect.signature(cls).parameters
    if "fused" in known and devices <= {"cpu", "cuda", "mps", "xpu"}:
        return {"fused": True}
    return {"foreach": True} if "foreach" in known and devices != {"cpu"} else {}


def _support_fast_options(parameters: list[nn.Parameter], module: nn.Module) -> bool:
    """Return whether all parameters are ordinary floating-point tensors with dense gradients."""
    has_sparse_gradients = any(getattr(layer, "sparse", False) for layer in module.modules())
    return not has_sparse_gradients and all(type(p) is nn.Parameter and p.is_floating_point() for p in parameters)


def _check_instance(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], lr: float | None
) -> torch.optim.Optimizer:
    """Return ``optimizer``; raise a ``ValueError`` if it ignores ``lr`` or has parameters of another module."""
    known = {id(p) for p in parameters}
    foreign = sum(id(p) not in known for group in optimizer.param_groups for p in group["params"])
    if foreign:
        is_sharded = any(hasattr(parameter, "to_local") for parameter in parameters)
        raise ValueError(
            f"{foreign} of the optimizer's parameters do not belong to the module or to the loss, so training would not "
            "change them. "
            + (
                "The first compile() with strategy='fsdp' replaced them by shards: create the optimizer from "
                "model.module.parameters() now."
                if is_sharded
                else "Create the optimizer from the parameters of the module that was given to Model()."
            )
        )
    if lr is not None:
        raise ValueError(_existing_optimizer_message(optimizer, "lr", lr))
    return optimizer


def _existing_optimizer_message(optimizer: torch.optim.Optimizer, name: str, value: Any) -> str:
    title = _title(optimizer)
    return (
        f"{name}={value!r} has no effect on an optimizer that exists already. Set it there: {title}(net.parameters(), "
        f"{name}={value!r})."
    )


def _call_factory(
    factory: Callable[..., Any], parameters: list[nn.Parameter], lr: float | None, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    if lr is not None and not _accepts_lr(factory, parameters, lr):
        raise ValueError(
            f"lr={lr} was passed with an optimizer function that takes no lr. Set it in the function, or add the argument: "
            "lambda parameters, lr: torch.optim.Adam(parameters, lr=lr)."
        )
    all_options = _with_rate(lr, options)
    optimizer = _create(factory, parameters, all_options, all_options)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"The optimizer function {factory!r} must return a torch.optim.Optimizer, received {optimizer!r}. Use lambda "
            "parameters: torch.optim.Adam(parameters)."
        )
    return optimizer


def _accepts_lr(factory: Callable[..., Any], parameters: list[nn.Parameter], lr: float) -> bool:
    try:
        inspect.signature(factory).bind(parameters, lr=lr)
    except TypeError:
        return False
    except ValueError:
        # Built-in functions have no signature.
        return True
    return True


def _find_options(optimizer: Any) -> Mapping[str, inspect.Parameter] | None:
    """Return the options that ``optimizer`` takes, without the learning rate; None if it takes any."""
    if optimizer is None:
        return _all_options()
    factory = _find_class(optimizer) if isinstance(optimizer, str) else optimizer
    factory = type(optimizer) if isinstance(optimizer, torch.optim.Optimizer) else factory
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        # A built-in function has no signature, and what is no function is refused later.
        return None
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return None
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    # The first one is for the parameters of the module.
    return {p.name: p for p in parameters[1:] if p.kind in kinds and p.name != "lr"}


@functools.cache
def _all_options() -> dict[str, inspect.Parameter]:
    """Return every option of an optimizer that has a name."""
    return {name: option for cls in TABLE.values() for name, option in (_find_options(cls) or {}).items()}


def _unknown_option_error(optimizer: Any, name: str, options: Mapping[str, Any], names: Sequence[str]) -> TypeError:
    """Return the error for the option ``name``, which is none of ``names``."""
    known = ", ".join(_find_options(optimizer) or ()) if optimizer is not None else ""
    text = f" {_title(optimizer)} takes the options {known}." if known else f" {_title(optimizer)} takes no options."
    others = [key for key, cls in TABLE.items() if name in option_defaults(cls)]
    of_others = f"{text} {name!r} is an option of {quote_list(others)}." if others else ""
    return unexpected_argument_error(
        "Model.compile",
        name,
        options,
        names,
        option_of_others=of_others,
        otherwise=text if optimizer is not None else "",
    )


def _is_torch_optimizer(optimizer: Any) -> bool:
    return isinstance(optimizer, str) or any(optimizer is value for value in vars(torch.optim).values())


def _title(optimizer: Any) -> str:
    """Return the name by which a user recognizes an optimizer, its class or a function that creates it."""
    cls = _find_class(optimizer) if isinstance(optimizer, str) else optimizer
    cls = (stock_class(cls) or type(cls)) if isinstance(cls, torch.optim.Optimizer) else cls
    if not isinstance(cls, type):
        return f"The optimizer function {get_name(cls)}"
    return f"torch.optim.{cls.__name__}" if _is_torch_optimizer(cls) else cls.__name__


@functools.cache
def _class_with_rate(cls: Any, names: tuple[str, ...]) -> Any:
    """Return a subclass of the class ``cls``, of the same name, with the properties ``names``."""

    def reduce(self: Any, protocol: Any) -> Any:
        return _new_with_rate, (cls, names), self.__getstate__()

    members: dict[str, Any] = {name: property(_get_rate, _set_rate) for name in names}
    members |= {"rate_base": cls, "__reduce_ex__": reduce, "__doc__": cls.__doc__}
    members |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls)(cls.__name__, (cls,), members)


def _new_with_rate(cls: Any, names: tuple[str, ...]) -> Any:
    """Return an empty optimizer, whose state a pickle sets."""
    subclass = _class_with_rate(cls, names)
    return subclass.__new__(subclass)


def _get_rate(optimizer: torch.optim.Optimizer) -> Any:
    return optimizer.param_groups[0]["lr"]


def _set_rate(optimizer: torch.optim.Optimizer, lr: Any) -> None:
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if lr is not None and len(set(rates)) > 1:
        raise ValueError(
            f"The parameter groups have the learning rates {rates}, and optimizer.lr = {lr!r} would set all of them. Set each: "
            f"optimizer.param_groups[0]['lr'] = {lr!r}."
        )
    set_rates(optimizer.param_groups, lr)


def set_rates(groups: Sequence[dict[str, Any]], lr: Any) -> None:
    """Set the learning rate of all parameter ``groups``.

    Raises:
        ValueError: If ``lr`` is no number of at least 0.
    """
    if lr is None:
        raise ValueError(
            "The learning rate must be a number of at least 0, received None. Set model.optimizer.lr = 0.001."
        )
    check_rate(lr)
    for group in groups:
        if isinstance(group["lr"], Tensor):  # a captured graph reads this tensor
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return ``{"lr": ...}``, the rate of the first parameter group, and ``lr_1``, ``lr_2``, ... if the rates differ."""
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    others = {} if len(set(rates)) == 1 else {f"lr_{i}": rate for i, rate in enumerate(rates) if i}
    return {"lr": rates[0], **others}


@hide_internal_frames
def __getattr__(name: str) -> Any:
    usage = "compile({name!r}, loss, lr=0.001), or an optimizer of torch.optim"
    raise missing_class_error("easytorch.optimizers", name, OPTIMIZER_HINTS, TABLE, usage)
