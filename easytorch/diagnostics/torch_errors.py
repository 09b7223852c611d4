"""Errors of torch as messages that name layer, batch or target."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from easytorch._utils.forward_signature import ForwardSignature
from easytorch._utils.internal import is_internal
from easytorch._utils.pytree import describe
from easytorch._utils.registry import quote_list
from easytorch.diagnostics import data_errors
from easytorch.losses.checks import label_error
from easytorch.losses.criterion import Criterion, SingleLoss
from easytorch.metrics.collection import MetricCollection
from easytorch.strategies.base import Strategy


@contextlib.contextmanager
def translate_errors(module: nn.Module) -> Iterator[None]:
    """Raise what fails inside again, with an explanation where there is one; the original error stays its cause."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError, AssertionError) as error:
        better = diagnose(error, module)
        data_errors.reword(better or error, _frames(error))
        if better is None:
            raise
        raise better from error


def diagnose(error: Exception, module: nn.Module) -> Exception | None:
    """Return an error that explains ``error``, None if it needs no explanation or nobody knows one."""
    if isinstance(error, torch.OutOfMemoryError):
        return None
    frames = _frames(error)
    if (
        told := data_errors.explain_collate_error(error, frames)
        or data_errors.explain_missing_batch_dim(error, frames, module)
    ) is not None:
        return told
    if "does not require grad" in str(error) and any(frame.f_code.co_name == "test_epoch" for frame in frames):
        return RuntimeError(
            "Evaluations run the step without gradients, which this one needs: override test_step, and leave out there what is "
            "for training alone, or have gradients inside `with torch.enable_grad():`."
        )
    layers = set(module.modules())
    for frame in reversed(frames):  # the innermost frame that we can say something about
        local, name = frame.f_locals, frame.f_code.co_name
        owner = local.get("self")
        if isinstance(owner, SingleLoss) and name in ("terms", "__call__", "_unreduced"):
            y_pred, y = local["y_pred"], local["y"]
            return _of_squeezed(y_pred, y) if _is_ours(frames[-1]) else _of_loss(error, owner, y_pred, y)
        if isinstance(owner, MetricCollection) and frame.f_code is MetricCollection._update_metric.__code__:
            return _of_metric(error, owner.criterion, local)
        if isinstance(owner, Strategy) and name == "backward":
            return _of_backward(error, local["loss"])
        if isinstance(owner, ForwardSignature) and name == "call" and isinstance(error, TypeError):
            inside = any(one.f_code is getattr(type(module).forward, "__code__", None) for one in frames)
            own = type(module).__module__.startswith("torch.nn")
            if "argument" not in str(error) or (inside and not own):  # a call in a forward() of the user's own
                return None
            return _of_call(error, module, owner, local["x"])
        if name == "update" and frame is frames[-1] and "outputs" in local and hasattr(owner, "train_step"):
            outputs = local["outputs"]
            return None if isinstance(outputs, Mapping) and "loss" in outputs else _of_step(outputs)
        if isinstance(owner, nn.Module) and owner in layers and name in ("forward", "_conv_forward"):
            x = next((value for value in local.values() if isinstance(value, Tensor)), None)
            if isinstance(error, TypeError) and _takes_tensor(owner) and not isinstance(first := _first(frame), Tensor):
                if not any(first is value for value in _called_with(frames)):  # the whole module, that is
                    return _of_no_tensor(owner, module, first)
            elif x is not None:  # else the whole module was called with something else than a tensor
                return _of_layer(error, owner, module, x) if _is_torch(owner) else None
    return None


def _frames(error: BaseException) -> list[FrameType]:
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    return frames


def _first(frame: FrameType) -> Any:
    """Return the first argument of the method that ``frame`` runs."""
    return frame.f_locals.get(frame.f_code.co_varnames[1])


def _called_with(frames: list[FrameType]) -> list[Any]:
    """Return what the whole module was called with."""
    return [frame.f_locals.get("x") for frame in frames if isinstance(frame.f_locals.get("self"), ForwardSignature)]


def _is_ours(frame: FrameType) -> bool:
    return is_internal(frame)


def _is_torch(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torch.nn")


def _takes_tensor(layer: nn.Module) -> bool:
    return _is_torch(layer) and not isinstance(layer, nn.Sequential)


# Layers


def _title(layer: nn.Module, module: nn.Module) -> str:
    names = {id(part): name for name, part in module.named_modules()}
    where = f"Layer {names[id(layer)]!r}" if names.get(id(layer)) else "The module"
    return f"{where}, {layer},"


def _of_no_tensor(layer: nn.Module, module: nn.Module, received: Any) -> Exception:
    title = f"{_title(layer, module)} takes a tensor, but received {describe(received)}."
    if received is None:
        return TypeError(f"{title} Does the forward() before it lack its return?")
    return TypeError(
        f"{title} An LSTM or GRU returns (output, state), attention (output, weights): take the first alone in a forward() of "
        "your own, output, _ = self.lstm(x)."
    )


def _of_layer(error: Exception, layer: nn.Module, module: nn.Module, x: Tensor) -> Exception | None:
    title = f"{_title(layer, module)} cannot take its input, {describe(x)}"
    parameter = next(layer.parameters(), None)
    if isinstance(layer, nn.Embedding):
        return _of_embedding(error, layer, x, title)
    if parameter is not None and parameter.device != x.device:
        return RuntimeError(
            f"{title}: the layer is on {parameter.device}, the input on {x.device}. Make tensors inside forward() on the "
            "device of its input: torch.zeros(n, device=x.device)."
        )
    if parameter is not None and x.dtype != parameter.dtype and not x.is_floating_point():
        return TypeError(
            f"{title}: it computes with {_name(parameter.dtype)}. Pass floats, for example x.float() "
            "(and images divided by 255, as torchvision's ToTensor does)."
        )
    cure = _size_cure(layer, x, error)
    return ValueError(f"{title}. {cure}") if cure else ValueError(f"{title}: {error}")


def _of_embedding(error: Exception, layer: nn.Embedding, x: Tensor, title: str) -> Exception:
    if x.is_floating_point():
        return TypeError(f"{title}: it looks up rows by whole numbers. Pass x.long().")
    low, high = int(x.min()), int(x.max())
    if low < 0:
        return IndexError(f"{title}: the input has numbers down to {low}, but rows count from 0. Renumber the input.")
    return IndexError(
        f"{title}: it has rows 0 to {layer.num_embeddings - 1}, but the input has numbers from {low} to {high}. "
        f"Use num_embeddings={high + 1} or renumber the input."
        if high >= layer.num_embeddings
        else f"{title}: {error}"
    )


def _size_cure(layer: nn.Module, x: Tensor, error: Exception) -> str | None:
    """Return what to do about a size of ``x`` that ``layer`` cannot take; None where it can, or nobody knows."""
    return next((cure(layer, x, error) for kind, cure in SIZE_CURES if isinstance(layer, kind)), None)


def _linear_cure(layer: Any, x: Tensor, error: Exception) -> str | None:
    shape, features = list(x.shape), layer.in_features
    if not shape or shape[-1] == features:
        return None
    if x.ndim == 1:
        one = "" if features == 1 else "in_features=1 and "
        return (
            f"It expects rows of features, [N, {features}], received one dimension, {shape}. Where each sample is one "
            f"number, use {one}x[:, None]."
        )
    hint = " or put nn.Flatten() before it" if x.ndim > 2 and x[0].numel() == features else ""
    return f"It expects {features} features, received {shape[-1]}. Use in_features={shape[-1]}{hint}."


def _recurrent_cure(layer: Any, x: Tensor, error: Exception) -> str | None:
    if not x.ndim or x.shape[-1] == layer.input_size:
        return None
    return f"It expects {layer.input_size} features, received {x.shape[-1]}. Use input_size={x.shape[-1]}."


def _convolution_cure(layer: Any, x: Tensor, error: Exception) -> str | None:
    shape, dimensions = list(x.shape), len(layer.kernel_size) + 2
    lacks_one = x.ndim == dimensions - 1
    if x.ndim != dimensions and not (lacks_one and shape[0] == layer.in_channels):  # one image without a batch is taken
        cure = " Add the channel: x.unsqueeze(1)." if lacks_one else ""
        return f"It expects {dimensions} dimensions, (batch, channels, ...), received {x.ndim}.{cure}"
    if not lacks_one and shape[1] != layer.in_channels:
        last = shape[-1] == layer.in_channels
        cure = "The channels are last: use x.movedim(-1, 1)." if last else f"Use in_channels={shape[1]}."
        return f"It expects {layer.in_channels} channels, received {shape[1]}. {cure}"
    if "greater than actual input size" in str(error):
        return f"Its kernel {list(layer.kernel_size)} is larger than what is left, {shape[2:]}. Shrink less before it."
    return None


def _norm_cure(layer: Any, x: Tensor, error: Exception) -> str | None:
    if re.search(r"expected .*D input", str(error)) and 2 <= x.ndim <= 5:
        if x.ndim > 3 and x[0].numel() == layer.num_features:
            return f"It takes another number of dimensions: {error}. Put nn.Flatten() before it."
        fitting = f"{type(layer).__name__[:-2]}{max(x.ndim - 2, 1)}d"
        return f"It takes another number of dimensions: {error}. Use nn.{fitting}({x.shape[1]})."
    if x.ndim > 1 and x.shape[1] != layer.num_features:
        return f"It expects {layer.num_features} channels, received {x.shape[1]}. Use num_features={x.shape[1]}."
    if layer.training and x.ndim > 1 and x.numel() == x.shape[1]:
        return "BatchNorm cannot train on a batch of one sample. Use another batch_size, or drop_last=True in the DataLoader."
    return None


SIZE_CURES: tuple[tuple[type[nn.Module], Callable[[Any, Tensor, Exception], str | None]], ...] = (
    (nn.Linear, _linear_cure),
    (nn.RNNBase, _recurrent_cure),
    (nn.modules.conv._ConvNd, _convolution_cure),
    (nn.modules.batchnorm._BatchNorm, _norm_cure),
)


# Calls, losses, metrics, gradients


def _of_call(error: Exception, module: nn.Module, signature: ForwardSignature, x: Any) -> Exception:
    takes = quote_list(signature.names) if signature.names else "nothing"
    return TypeError(
        f"{type(module).__name__}.forward takes {takes}, but the inputs of the batch are {describe(x)} ({error}). "
        "Batches are (x, y); x is one tensor, a tuple with one tensor for each argument, or a dict named like the arguments."
        f"{LISTED if isinstance(x, list) else ''}"
    )


LISTED = (
    " A list counts as several inputs: make one tensor of rows by torch.stack(x), and let a dataset return torch.tensor(x) where "
    "its x is a list of numbers."
)


def _of_squeezed(y_pred: Any, y: Any) -> Exception | None:
    """Return what is wrong with the output for one sample, if the batch's dimension is missing in it."""
    if not isinstance(y_pred, Tensor) or not isinstance(y, Tensor) or y.shape[:1] != (1,) or y_pred.shape[:1] == (1,):
        return None
    return _squeezed(describe(y_pred))


def _squeezed(output: str) -> Exception:
    return ValueError(
        f"For a batch of one sample the module returned {output}, without the batch's dimension, which squeeze() in "
        "forward() drops. Use squeeze(1) there, or drop_last=True in the DataLoader."
    )


def _of_loss(error: Exception, loss: SingleLoss, y_pred: Any, y: Any) -> Exception:
    return _of_targets(loss, y_pred, y) or ValueError(
        f"The loss, {loss!r}, cannot compare the module's output, {describe(y_pred)}, with the targets, {describe(y)}: {error}"
    )


def _of_targets(loss: SingleLoss, y_pred: Any, y: Any) -> Exception | None:
    """Return what is wrong with outputs and targets for ``loss``, if anything is known to be."""
    if y is None:
        return ValueError(
            f"The loss, {loss!r}, needs targets, but the batch has none. Pass (x, y), or batches of them; for a module that "
            "learns its own input (x, x)."
        )
    if y_pred is None:
        return TypeError("The module returned None. Does its forward() lack a return?")
    if (squeezed := _of_squeezed(y_pred, y)) is not None:
        return squeezed
    if not isinstance(y_pred, Tensor):
        return TypeError(
            f"The loss, {loss!r}, takes one tensor, but the module returned {describe(y_pred)}. Name a loss for each output, "
            "loss=[...] or loss={...}, or pass a function f(y_pred, y) that takes them all."
        )
    if not isinstance(y, Tensor):
        single = isinstance(y, (int, float, np.generic))
        cure = (
            "Is it a sample? What yields batches yields whole ones; of arrays pass fit(x, y)."
            if single
            else "Pass numbers."
        )
        return TypeError(f"The loss, {loss!r}, takes targets as one tensor, but they are {describe(y)}. {cure}")
    if loss.family in (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss):
        return label_error(y_pred, y, loss.ignore_index)
    low, high = (float(y_pred.detach().min()), float(y_pred.detach().max())) if y_pred.numel() else (0.0, 1.0)
    if loss.family is nn.BCELoss and (low < 0 or high > 1):
        return ValueError(
            f"The loss, {loss!r}, takes probabilities, but the module's outputs go from {low:.3g} to {high:.3g}. "
            "Use loss='bce_with_logits', or end the module with nn.Sigmoid()."
        )
    return None


def _of_metric(error: Exception, criterion: Criterion, local: dict[str, Any]) -> Exception:
    y_pred, y = local["y_pred"], local["y"]
    if isinstance(criterion, SingleLoss) and (told := _of_targets(criterion, y_pred, y)):
        return told
    return ValueError(
        f"The metric {local['metric'].name!r} failed on the module's output, {describe(y_pred)}, and the targets, {describe(y)}: "
        f"{type(error).__name__}: {str(error).rstrip('.')}. Take it out of compile(metrics=...), or choose one that fits these "
        "shapes."
    )


def _of_step(outputs: Any) -> Exception:
    return TypeError(
        f"train_step returned {describe(outputs)}, which has no 'loss'. Let it return {{'loss': loss}}, a scalar tensor to be "
        "optimized; whatever else is in the dict is logged."
    )


def _of_backward(error: Exception, loss: Any) -> Exception | None:
    if not isinstance(loss, Tensor):
        return TypeError(
            f"The loss is {describe(loss)}, not a tensor. Let the loss, or train_step, return a scalar tensor."
        )
    if loss.ndim:
        return ValueError(
            f"The loss is {describe(loss)}, not one number. Let the loss, or train_step, return a mean: loss.mean()."
        )
    if found := re.search(r"got input: (\[\d+\]), target: \[1\]", str(error)):  # cross-entropy notices it here only
        return _squeezed(found[1])
    if "second time" in str(error):
        return RuntimeError(
            "The gradients of something in this loss were computed already. Does the module keep a tensor from one batch to the "
            "next, such as the state of an LSTM or GRU? Detach it: state.detach(). Or does train_step call backward()? Leave "
            "backward(), optimizer.step() and zero_grad() out of it, or override update()."
        )
    if not loss.requires_grad:
        return ValueError(
            "The loss has no gradient: nothing in it depends on a parameter that is trained. Are all parameters frozen, or does "
            "forward() or the loss use .detach(), .item(), torch.no_grad() or argmax?"
        )
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
