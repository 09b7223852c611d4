"""Errors of layers and of the arguments of forward()."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from easytorch._utils.api_hints import TARGET_NAMES
from easytorch._utils.forward_signature import LABEL_KEYS, ForwardSignature
from easytorch._utils.pytree import describe
from easytorch._utils.registry import quote_list
from easytorch._utils.rng import preserve_rng_state
from easytorch._utils.train_mode import in_eval_mode, preserve_module
from easytorch.diagnostics.frames import Failure, calls_of
from easytorch.strategies.base import Strategy

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# An attribute of errors about the size of an input: the message without the fix, which changes the layer.
PROBLEM = "problem"


class Advice(NamedTuple):
    """What a layer expects of its input and what it received, and the fix."""

    problem: str
    fix: str


def layer_error(failure: Failure) -> Exception | None:
    """Return why the innermost layer of torch in the traceback cannot process its input."""
    layer, arguments = failure.layer_call or (None, ())
    if layer is None or not arguments or not _is_explained(layer):
        return None
    if not isinstance(arguments[0], Tensor) and isinstance(failure.error, (TypeError, AttributeError)):
        return _not_a_tensor_error(failure, layer, arguments[0])
    x = next((value for value in arguments if isinstance(value, Tensor)), None)
    return None if x is None else _input_error(failure, layer, x)


def forward_error(failure: Failure) -> Exception | None:
    """Return which arguments the module's ``forward`` takes, if it was called with others."""
    is_call_error = isinstance(failure.error, TypeError) and "argument" in str(failure.error)
    # Where forward() runs, the wrong call is inside of it.
    if not is_call_error or failure.module_call is None or failure.layer_call is not None:
        return None
    return _arguments_error(failure, *failure.module_call)


def missing_label_error(failure: Failure) -> Exception | None:
    """Return that the module computes its loss, if it fails without the argument for the targets, which the error names."""
    signature, x = failure.module_call or (None, None)
    label = None if signature is None else signature.label
    if label is None or not failure.module.training or (isinstance(x, Mapping) and label in x):
        return None
    if not re.search(rf"\b{label}\b", str(failure.error)):
        return None
    name = type(failure.module).__name__
    return ValueError(
        f"{name} computes its loss in train mode, and needs {label!r} for it ({failure.error}). Leave the loss out: "
        f"compile('sgd'). Then {name} gets the targets of each batch (x, y) as {label!r}."
    )


def missing_forward_error(failure: Failure) -> Exception | None:
    """Return how to define ``forward``, if a module has none."""
    calls = calls_of(failure.frames[-1:], nn.Module.forward)  # which raises this error
    if not calls or not isinstance(failure.error, NotImplementedError):
        return None
    module = calls[0][0]
    name, methods = type(module).__name__, [name for name in vars(type(module)) if not name.startswith("_")]
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return TypeError(f"An nn.{name} cannot be called. Use nn.Sequential(*layers), or call its layers in forward().")
    if "call" in methods:
        return TypeError(
            f"{name} has no forward(). The method call(self, x) of Keras is forward(self, x) in torch: rename it."
        )
    similar = difflib.get_close_matches("forward", methods, n=1, cutoff=0.75)
    fix = (
        f"Rename {similar[0]}() to forward()."
        if similar
        else ("Define forward(self, x) in the class, indented as __init__ is, and return the output.")
    )
    return TypeError(f"{name} has no forward(). {fix}")


def text_error(failure: Failure) -> Exception | None:
    """Return that the inputs of the batch are text, if the module fails on them because they are no tensor."""
    x = None if failure.module_call is None else failure.module_call[1]
    x = [x] if isinstance(x, str) else x
    if not isinstance(x, (tuple, list)) or not x or not all(isinstance(value, str) for value in x):
        return None
    is_about_type = isinstance(failure.error, (TypeError, AttributeError))
    if not is_about_type or not re.search(r"\b(tuple|list|str)\b", str(failure.error)):
        return None
    return TypeError(
        f"The inputs of a batch are text, {x[0]!r} and others, and the module expects a tensor ({failure.error}). Return numbers "
        "from __getitem__ of the dataset: load the file of an image, convert the words of a text to their indices."
    )


def swapped_error(failure: Failure) -> Exception | None:
    """Return that inputs and targets are swapped, if the module fails on the inputs and accepts the targets."""
    batch = next((batch for _, _, batch in calls_of(failure.frames, Strategy.run)), None)
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3) or failure.module_call is None:
        return None
    x, y = batch[:2]
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.ndim > y.ndim or x.shape == y.shape:
        return None
    if not _accepts(failure.module, y):
        return None
    return ValueError(
        f"The module cannot process the inputs, {describe(x)}, but it can process the targets, {describe(y)}. Are x and y "
        "swapped? Pass the inputs first: fit(x, y), or batches (x, y)."
    )


def _accepts(module: nn.Module, x: Tensor) -> bool:
    """Return whether ``module``, which has failed already, can process ``x``; it is unchanged afterwards."""
    if any(hasattr(parameter, "to_local") for parameter in module.parameters()):
        return False  # the ranks of a sharded module would wait for each other
    try:
        with torch.no_grad(), preserve_module(module), in_eval_mode(module), preserve_rng_state():
            module(x)
    except Exception:  # of any kind: the answer is no
        return False
    return True


def _is_explained(layer: nn.Module) -> bool:
    # A Sequential fails by itself only if it calls a custom layer with wrong arguments. Python's message is clear then.
    return _is_torch(layer) and not isinstance(layer, nn.Sequential)


def _is_torch(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torch.nn")


def _arguments_error(failure: Failure, signature: ForwardSignature, x: Any) -> Exception:
    name = type(failure.module).__name__
    if not signature.names and not signature.any_keyword:
        return TypeError(f"{name}.forward takes no input. Define it as def forward(self, x).")
    expected = quote_list(signature.names) if signature.names else "keyword arguments"
    message = (
        f"{name}.forward expects {expected}, but the inputs of the batch are {describe(x)} "
        f"({failure.error}). Use batches (x, y). Let x be one tensor, a tuple with one tensor per argument, or a dict with "
        "the arguments as keys."
    )
    targets = [name for name in signature.required_names[1:] if name.lower() in TARGET_NAMES]
    if targets:
        message += f" The targets go to the loss, not to forward(): remove its argument {targets[0]!r}."
    if _is_batch_of_batches(failure):
        message += (
            " The batch looks like one of zip(loader, loader), ((x, y), (x, y)), which needs a custom step: override "
            "train_step(batch) in a subclass of Model, and predict_step(batch) for predict()."
        )
    elif isinstance(x, list):
        message += (
            " A list counts as several inputs. Convert it to one tensor: torch.stack(x) for a list of tensors, "
            "torch.tensor(x) for a list of numbers in a dataset."
        )
    return TypeError(message)


def _is_batch_of_batches(failure: Failure) -> bool:
    """Return whether every part of the batch has several tensors, as in batches of several loaders."""
    for _, _, batch in calls_of(failure.frames, Strategy.run):
        parts = batch if isinstance(batch, (tuple, list)) and len(batch) > 1 else ()
        return bool(parts) and all(isinstance(part, (tuple, list)) and len(part) > 1 for part in parts)
    return False


def dict_error(failure: Failure) -> Exception | None:
    """Return how to name the inputs of a dict batch that ``forward`` got as its one argument."""
    signature, x = failure.module_call or (None, None)
    if signature is None or signature.any_keyword or len(signature.names) != 1 or not isinstance(x, Mapping) or not x:
        return None
    # forward(batch) may take the dict, and fail for another reason.
    is_about_dict = isinstance(failure.error, (TypeError, AttributeError)) and re.search(
        r"\bdict\b", str(failure.error)
    )
    if not is_about_dict or any(key in signature.names for key in x):
        return None
    batch = next((batch for _, _, batch in calls_of(failure.frames, Strategy.run)), x)
    if not isinstance(batch, Mapping):  # (x, y) with a dict of inputs
        return _arguments_error(failure, signature, x)
    (name,), (first, *others) = signature.names, x
    target = next((key for key in LABEL_KEYS if key in batch), others[0] if others else "y")
    cause = str(failure.error).splitlines()[0].partition(", but expected one of")[0]
    return TypeError(
        f"{type(failure.module).__name__}.forward expects {name!r}, but the batch has {quote_list([*batch])}, so the whole dict "
        f"was passed ({cause}). Rename {first!r} to {name!r}; one other entry is the target then. Or override "
        f"unpack(self, batch) in a subclass of Model: return easytorch.Batch(batch[{first!r}], batch[{target!r}])."
    )


def _not_a_tensor_error(failure: Failure, layer: nn.Module, received: Any) -> Exception | None:
    signature, x = failure.module_call or (None, None)
    if signature is not None and received is x:  # the module passes the inputs of the batch on
        return _arguments_error(failure, signature, x) if _is_torch(failure.module) else None
    problem = f"{_title(failure, layer)} expects a tensor, received {describe(received)}."
    if received is None:
        return TypeError(f"{problem} Add the missing return statement to the forward() of the layer before it.")
    if (
        isinstance(received, list)
        and received
        and all(isinstance(part, Tensor) and part.ndim == 1 for part in received)
    ):
        return TypeError(
            f"{problem} torch makes such a list from samples with lists of numbers. Return tensors from the dataset; of Hugging "
            "Face pass DataLoader(dataset.with_format('torch'), batch_size=32)."
        )
    return TypeError(
        f"{problem} An LSTM or GRU returns (output, state), attention returns (output, weights). Pass on the output alone in a "
        "custom forward(): output, _ = self.lstm(x)."
    )


def _title(failure: Failure, layer: nn.Module) -> str:
    name = next(name for name, child in failure.module.named_modules() if child is layer)
    description = str(layer).partition("(\n")[0]  # the first line of a layer with layers inside
    return f"Layer {name!r}, {description}," if name else f"The module, {description},"


def _input_error(failure: Failure, layer: nn.Module, x: Tensor) -> Exception:
    title, received = _title(failure, layer), describe(x)
    parameter = next(layer.parameters(), None)
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return _embedding_error(failure, layer, x)
    if parameter is not None and parameter.device != x.device:
        return RuntimeError(
            f"{title} is on {parameter.device}, but its input is on {x.device}. Create tensors in forward() on the device of "
            "its input: torch.zeros(n, device=x.device)."
        )
    if parameter is not None and x.dtype != parameter.dtype and not x.is_floating_point():
        expected = str(parameter.dtype).removeprefix("torch.")
        if x.is_complex():
            return TypeError(
                f"{title} expects {expected}, received {received}. For a complex layer, create it with dtype={x.dtype}. To give "
                "real and imaginary parts as separate values to a real layer, pass torch.view_as_real(x)."
            )
        return TypeError(
            f"{title} expects {expected}, received {received}. Pass x.float(), or x.astype('float32') for a NumPy array. "
            "Divide images by 255, as torchvision's ToTensor does."
        )
    advice = _size_advice(layer, x, failure.error)
    if advice is None:
        return ValueError(f"{title} cannot process its input, {received}: {failure.error}")
    problem = f"{title} {advice.problem} (the input is {received})."
    explanation = ValueError(f"{problem} {advice.fix}")
    # The fix is wrong if only the validation data has this size.
    setattr(explanation, PROBLEM, problem)
    return explanation


def _embedding_error(failure: Failure, layer: nn.Embedding | nn.EmbeddingBag, x: Tensor) -> Exception:
    title, rows = _title(failure, layer), layer.num_embeddings
    if x.is_floating_point():
        return TypeError(
            f"{title} expects integers, received {describe(x)}. Pass x.long(), or x.astype('int64') for a NumPy array."
        )
    low, high = int(x.min()), int(x.max())
    problem = f"{title} has rows 0 to {rows - 1}, received indices from {low} to {high}."
    if low < 0:
        return IndexError(f"{problem} Renumber the indices from 0.")
    if high >= rows:
        return IndexError(f"{problem} Use num_embeddings={high + 1}, or renumber the indices.")
    return IndexError(f"{title} cannot process its input, {describe(x)}: {failure.error}")


def _size_advice(layer: nn.Module, x: Tensor, error: Exception) -> Advice | None:
    """Return the advice for a size of ``x`` that ``layer`` does not accept, None if the sizes fit or are not checked."""
    return next((advise(layer, x, error) for kind, advise in SIZE_ADVICE if isinstance(layer, kind)), None)


def _linear_advice(layer: nn.Linear, x: Tensor, error: Exception) -> Advice | None:
    features = layer.in_features
    if not x.ndim or x.shape[-1] == features:
        return None
    if x.ndim == 1:
        fix = "x[:, None]" if features == 1 else "in_features=1 and x[:, None]"
        problem = f"expects two dimensions, [N, {features}], received one, {list(x.shape)}"
        return Advice(problem, f"If each sample is one number, use {fix}.")
    return Advice(f"expects {features} features, received {x.shape[-1]}", _flatten_fix(x, features))


def _flatten_fix(x: Tensor, features: int) -> str:
    """Return the fix for an input whose last dimension is not ``features``: an ``nn.Flatten()`` if that, or images, need one."""
    size = math.prod(x.shape[1:])
    product = f"{' x '.join(map(str, x.shape[1:]))} = {size}"
    if x.ndim > 2 and size == features:
        return f"Put nn.Flatten() before it: {product}."
    if x.ndim > 3:
        return f"Put nn.Flatten() before it, and use in_features={size}: {product}."
    return f"Use in_features={x.shape[-1]}."


def _recurrent_advice(layer: nn.RNNBase, x: Tensor, error: Exception) -> Advice | None:
    if not x.ndim or x.shape[-1] == layer.input_size:
        return None
    return Advice(f"expects {layer.input_size} features, received {x.shape[-1]}", f"Use input_size={x.shape[-1]}.")


def _convolution_advice(layer: Any, x: Tensor, error: Exception) -> Advice | None:
    shape, channels, dimensions = list(x.shape), layer.in_channels, len(layer.kernel_size) + 2
    lacks_dimension = x.ndim == dimensions - 1
    # torch accepts one image without a batch dimension.
    is_single_image = lacks_dimension and shape[0] == channels
    if x.ndim != dimensions and not is_single_image:
        fix = "Add the channel dimension: x[:, None]." if lacks_dimension else f"Reshape it to [N, {channels}, ...]."
        return Advice(f"expects {dimensions} dimensions, [N, channels, ...], received {x.ndim}", fix)
    if not is_single_image and shape[1] != channels:
        return _channels_advice(shape, channels)
    if "greater than actual input size" in str(error):
        size = shape[-len(layer.kernel_size) :]
        return Advice(f"has a kernel of {list(layer.kernel_size)}, larger than {size}", "Downsample less before it.")
    return None


def _channels_advice(shape: list[int], channels: int) -> Advice:
    fix = f"Use in_channels={shape[1]}."
    if shape[-1] == channels:
        fix = "The channels are last: use x.movedim(-1, 1), or np.moveaxis(x, -1, 1) for a NumPy array."
    return Advice(f"expects {channels} channels, received {shape[1]}", fix)


def _layer_norm_advice(layer: nn.LayerNorm, x: Tensor, error: Exception) -> Advice | None:
    sizes = list(layer.normalized_shape)
    received = list(x.shape[-len(sizes) :])
    if received == sizes:
        return None
    argument = received[0] if len(received) == 1 else received
    return Advice(f"expects the last dimensions {sizes}, received {received}", f"Use nn.LayerNorm({argument}).")


def _attention_advice(layer: nn.MultiheadAttention, x: Tensor, error: Exception) -> Advice | None:
    expected, received = layer.embed_dim, x.shape[-1]
    if received == expected:
        return None
    fix = f"Put nn.Linear({received}, {expected}) before it, or use embed_dim={received} (d_model in nn.TransformerEncoderLayer)."
    return Advice(f"expects {expected} features, received {received}", fix)


def _norm_advice(layer: Any, x: Tensor, error: Exception) -> Advice | None:
    match = re.search(r"expected ([^(]*\dD) input", str(error))
    if match and x.ndim <= 5:
        return Advice(f"expects {match[1]} input, received {x.ndim}D", _norm_dimension_fix(layer, x))
    if x.ndim < 2:
        return None
    if x.shape[1] != layer.num_features:
        return Advice(
            f"expects {layer.num_features} channels, received {x.shape[1]}", f"Use num_features={x.shape[1]}."
        )
    if layer.training and x.numel() == x.shape[1]:
        fix = "Use another batch_size, or drop_last=True in the DataLoader."
        return Advice("cannot train on a batch of one sample", fix)
    return None


def _norm_dimension_fix(layer: Any, x: Tensor) -> str:
    if x.ndim < 2:
        return f"Pass an input of shape [N, {layer.num_features}]."
    if x.ndim > 3 and x[0].numel() == layer.num_features:
        return "Add nn.Flatten() before it."
    # BatchNorm1d, BatchNorm2d or BatchNorm3d
    return f"Use nn.{type(layer).__name__[:-2]}{max(x.ndim - 2, 1)}d({x.shape[1]})."


SIZE_ADVICE: tuple[tuple[Any, Callable[[Any, Tensor, Exception], Advice | None]], ...] = (
    (nn.Linear, _linear_advice),
    (nn.RNNBase, _recurrent_advice),
    (nn.LayerNorm, _layer_norm_advice),
    (nn.MultiheadAttention, _attention_advice),
    (CONVOLUTIONS, _convolution_advice),
    (BATCH_NORMS, _norm_advice),
)
