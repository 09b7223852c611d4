"""Frames of a traceback, found by the function that they run."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from types import CodeType, FrameType
from typing import Any

from torch import nn

from easytorch._utils.forward_signature import ForwardSignature


@dataclasses.dataclass(frozen=True)
class Failure:
    """An exception, and what is known about the run that raised it.

    Args:
        error: The exception.
        module: The module that the model trains.
        x: The input of ``predict``; None outside of it.
        without_gradients: Whether the step ran without gradients, as in ``evaluate``.
        data: The loader of the batches; None if it is unknown.
    """

    error: Exception
    module: nn.Module
    x: Any = None
    without_gradients: bool = False
    data: Any = None

    @functools.cached_property
    def frames(self) -> list[FrameType]:
        """The frames of the traceback, outermost first."""
        return frames_of(self.error)

    @functools.cached_property
    def layer_call(self) -> tuple[nn.Module, tuple[Any, ...]] | None:
        """The innermost call of a layer's ``forward``: the layer and its arguments."""
        layers = set(self.module.modules())
        for frame in reversed(self.frames):
            layer, *arguments = arguments_of(frame) or (None,)
            if isinstance(layer, nn.Module) and layer in layers and frame.f_code is code_of(layer.forward):
                return layer, tuple(arguments)
        return None

    @functools.cached_property
    def module_call(self) -> tuple[ForwardSignature, Any] | None:
        """The call of the module: its signature, and the inputs of the batch."""
        for signature, _, x in calls_of(self.frames, ForwardSignature.call):
            return signature, x
        return None


def frames_of(error: BaseException) -> list[FrameType]:
    """Return the frames of the traceback of ``error``, outermost first."""
    frames, traceback = [], error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    return frames


def calls_of(frames: Sequence[FrameType], *functions: Callable[..., Any]) -> list[tuple[Any, ...]]:
    """Return the arguments of every call of one of ``functions``, innermost first."""
    codes = [code_of(function) for function in functions]
    return [arguments_of(frame) for frame in reversed(frames) if frame.f_code in codes]


def arguments_of(frame: FrameType) -> tuple[Any, ...]:
    """Return the values of the positional parameters of the function that ``frame`` runs, ``self`` included."""
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    return tuple(frame.f_locals.get(name) for name in names)


def code_of(function: Callable[..., Any]) -> CodeType | None:
    """Return the code of ``function`` without its decorators; None if it is not a Python function."""
    code: CodeType | None = getattr(inspect.unwrap(function), "__code__", None)
    return code
