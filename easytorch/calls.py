"""Calls with arguments that do not exist: answered with those that do."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from easytorch.lookup import nearest

Class = TypeVar("Class", bound=type)

INSTEAD = {  # what other libraries call it, or have it for
    "learning_rate": "lr=0.001",
    "validation_batch_size": "the batch_size of a DataLoader: validation_data=DataLoader(dataset, 64)",
    "return_dict": "dict(model.evaluate(...))",
    "val_data": "validation_data=",
    "valid_data": "validation_data=",
    "val_loader": "validation_data=",
    "max_epochs": "epochs=",
    "num_epochs": "epochs=",
    "weighted": "weighted_metrics=",
    "run_eagerly": "jit_compile=False, which is the default",
    "mixed_precision": "precision='bf16'",
    "accumulate_grad_batches": "gradient_accumulation_steps=",
    "gradient_clip_val": "clip_grad_norm=",
    "clipnorm": "clip_grad_norm=",
    "global_clipnorm": "clip_grad_norm=",
    "clipvalue": "clip_grad_value=",
    "workers": "DataLoader(dataset, num_workers=2)",
    "num_workers": "DataLoader(dataset, num_workers=2)",
    "device": "Model(module, device=...)",
    "optimiser": "optimizer=",
}


def explained_calls(*names: str) -> Callable[[Class], Class]:
    """Return a decorator that lets these methods of a class say what to pass where Python only says what not."""

    def decorate(cls: Class) -> Class:
        for name in names:
            setattr(cls, name, _explained(getattr(cls, name), cls))
        return cls

    return decorate


def _explained(method: Callable[..., Any], cls: type) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:  # of what the method does
                raise
            raise TypeError(f"{error}.{_cure(method, cls, args, kwargs)}") from None

    return call


def _cure(method: Callable[..., Any], cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    name, parameters = method.__name__, inspect.signature(method).parameters.values()
    if not args or not isinstance(args[0], cls):
        return f" It is a method of a model: {cls.__name__}(module).{name}(...)."
    known = [p.name for p in parameters if p.kind != p.VAR_KEYWORD][1:]
    unknown = next((key for key in kwargs if key not in known), None)
    if unknown in INSTEAD:
        return f" Here it is {INSTEAD[unknown]}."
    if unknown is not None:
        return nearest(unknown, known) or f" {name}() takes {', '.join(known)}."
    positional = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
    if len(args) > len(positional):
        keywords = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
        return f" Name what comes after {positional[-1]}: {name}({', '.join(positional[1:])}, {keywords[0]}=..., ...)."
    return f" See help({cls.__name__}.{name})."
