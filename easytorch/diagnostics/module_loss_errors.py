"""Errors in models of transformers, and in the losses that modules compute themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from easytorch._utils.pytree import describe
from easytorch.data.sample_weights import IGNORE_INDEX
from easytorch.diagnostics.frames import Failure, calls_of
from easytorch.losses.single_loss import SingleLoss

# Names of the arguments with the indices of tokens.
TOKEN_INPUTS = ("input_ids", "decoder_input_ids")
# Rows of a table of positions that are offsets, in models such as OPT and BART.
POSITION_OFFSETS = (0, 1, 2)


def text_length_error(failure: Failure) -> Exception | None:
    """Return that the texts of a batch have more tokens than a model of transformers has positions for."""
    model, ids = _find_pretrained(failure.module), _find_tokens(failure)
    limit = None if model is None else _count_positions(model)
    if model is None or ids is None or limit is None or ids.shape[1] <= limit:
        return None
    name = _attribute(model.config, "max_position_embeddings")
    return ValueError(
        f"The texts of the batch have {ids.shape[1]} tokens, but {type(model).__name__} takes at most {limit} "
        f"(config.{name}={getattr(model.config, name)}). Truncate them: tokenizer(text, truncation=True, max_length={limit}), "
        f"or create the model with a larger {name}."
    )


def vocabulary_error(failure: Failure) -> Exception | None:
    """Return that a tokenizer has more tokens than the model of transformers."""
    model, ids = _find_pretrained(failure.module), _find_tokens(failure)
    if model is None or ids is None or ids.is_floating_point() or not ids.numel():
        return None
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if rows is None or (int(ids.max()) < rows and int(ids.min()) >= 0):
        return None
    return IndexError(
        f"The tokens of the batch go from {int(ids.min())} to {int(ids.max())}, but {type(model).__name__} has the tokens 0 to "
        f"{rows - 1} (config.{_attribute(model.config, 'vocab_size')}={rows}). Use the tokenizer of this model. If it has new "
        "tokens, call resize_token_embeddings(len(tokenizer)) of the model."
    )


def decoder_input_error(failure: Failure) -> Exception | None:
    """Return that a model with a decoder got neither its inputs nor the labels that they are made from."""
    model = _find_pretrained(failure.module)
    if model is None or not getattr(model.config, "is_encoder_decoder", False) or failure.module_call is None:
        return None
    x = failure.module_call[1]
    if isinstance(x, Mapping) and not {"labels", "decoder_input_ids", "decoder_inputs_embeds"}.isdisjoint(x):
        return None
    if "input_ids" not in str(failure.error):
        return None
    return ValueError(
        f"{type(model).__name__} has a decoder, which needs decoder_input_ids, or labels while training. For known texts, pass "
        "{'input_ids': ids, 'decoder_input_ids': net.prepare_decoder_input_ids_from_labels(labels)}. To write new ones, use "
        "model.module.generate(ids)."
    )


def module_loss_error(failure: Failure) -> Exception | None:
    """Return why a loss that the module computes itself cannot compare its outputs with the labels."""
    if failure.module_call is None or calls_of(failure.frames, SingleLoss.__call__, SingleLoss.terms):
        return None
    for outputs, labels, *_ in calls_of(failure.frames, F.cross_entropy):
        return _class_error(failure, outputs, labels)
    for outputs, labels, *_ in calls_of(failure.frames, F.binary_cross_entropy_with_logits, F.mse_loss):
        return _value_error(failure, outputs, labels)
    return None


def _class_error(failure: Failure, outputs: Any, compared: Any) -> Exception | None:
    """Return what is wrong with labels that cross-entropy compares with ``outputs``, ``[N, classes]``."""
    if not isinstance(outputs, Tensor) or not isinstance(compared, Tensor) or outputs.ndim < 2:
        return None
    name, labels = type(failure.module).__name__, _find_labels(failure, compared)
    title = f"{name} computes its loss from labels"
    if len(outputs) != len(compared):
        return ValueError(
            f"{title} of shape {_expected_shape(failure, outputs)}, received {describe(labels)}.{_several_labels_hint(labels)}"
        )
    if compared.is_floating_point() and outputs.shape != compared.shape:
        return TypeError(f"{title} that are class numbers as int64, received {describe(labels)}. Pass y.long().")
    counted = compared[compared != IGNORE_INDEX]
    classes = outputs.shape[1]
    if compared.is_floating_point() or not counted.numel() or 0 <= int(counted.min()) <= int(counted.max()) < classes:
        return None
    low, high = int(counted.min()), int(counted.max())
    model = _find_pretrained(failure.module)
    names = [] if model is None else [_attribute(model.config, each) for each in ("num_labels", "vocab_size")]
    attribute = next((each for each in names if model and getattr(model.config, each, None) == classes), None)
    found = f" (config.{attribute}={classes})" if attribute else ""
    fix = "Number the classes from 0; -100 is ignored."
    if low >= 0:
        fix = f"Create the model with {attribute or 'classes'}={high + 1}, or number the classes from 0."
        if attribute and attribute != "num_labels":
            fix = "Use the tokenizer of this model for the labels, too."
    return ValueError(f"{title} 0 to {classes - 1}{found}, received labels from {low} to {high}. {fix}")


def _value_error(failure: Failure, outputs: Any, compared: Any) -> Exception | None:
    """Return what is wrong with labels that are compared with ``outputs`` value by value."""
    model = _find_pretrained(failure.module)
    kind = getattr(getattr(model, "config", None), "problem_type", None)
    if kind is None or not isinstance(outputs, Tensor) or not isinstance(compared, Tensor):
        return None
    labels, reset = _find_labels(failure, compared), "set config.problem_type = None of the model of transformers"
    problem = (
        f"{type(model).__name__} has problem_type={kind!r}, which expects labels as floats of shape {list(outputs.shape)}, "
        f"received {describe(labels)}."
    )
    if outputs.shape == compared.shape:
        return TypeError(f"{problem} Pass y.float(). For class numbers, {reset} and pass one integer for each sample.")
    if kind == "regression":
        return ValueError(f"{problem} To predict one number, create the model with num_labels=1.")
    return ValueError(
        f"{problem} For one class of each sample, pass y.long(), and {reset}: transformers sets it from the labels of the first "
        "batch."
    )


def _expected_shape(failure: Failure, outputs: Tensor) -> str:
    ids = _find_tokens(failure)
    if ids is not None and len(outputs) == ids.shape[0]:
        return f"[{len(ids)}], one for each sample"
    if ids is not None and ids.shape[0] and len(outputs) % ids.shape[0] == 0:
        return f"[{ids.shape[0]}, {ids.shape[1]}], one for each token"
    return f"[{len(outputs)}]"


def _several_labels_hint(labels: Tensor) -> str:
    is_hot = labels.ndim == 2 and not labels.is_floating_point() and bool(((labels == 0) | (labels == 1)).all())
    return (
        " For several labels of a sample, pass floats: y.float(). For one-hot rows, pass y.argmax(1)." if is_hot else ""
    )


def _find_labels(failure: Failure, compared: Tensor) -> Tensor:
    """Return the labels as the module got them; those that the loss compares may have another shape."""
    signature, x = failure.module_call or (None, None)
    labels = x.get(signature.label) if signature is not None and isinstance(x, Mapping) else None
    return labels if isinstance(labels, Tensor) else compared


def _find_pretrained(module: nn.Module) -> Any:
    """Return the outermost model of transformers in ``module``; None without one."""
    return next((each for each in module.modules() if _is_pretrained(each)), None)


def _is_pretrained(module: nn.Module) -> bool:
    is_model = any(_library_of(cls) == "transformers" for cls in type(module).__mro__)
    return (
        is_model and hasattr(getattr(module, "config", None), "model_type") and hasattr(module, "get_input_embeddings")
    )


def _library_of(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _find_tokens(failure: Failure) -> Tensor | None:
    """Return the indices of the tokens that the module got, ``[N, tokens]``."""
    x = None if failure.module_call is None else failure.module_call[1]
    if isinstance(x, Mapping):
        x = next((x[name] for name in TOKEN_INPUTS if name in x), None)
    elif isinstance(x, (tuple, list)) and x:
        x = x[0]
    return x if isinstance(x, Tensor) and x.ndim == 2 else None


def _count_positions(model: Any) -> int | None:
    """Return the number of tokens that ``model`` has a table of positions for; None without a table."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        return None
    tables = [
        each for each in model.modules() if isinstance(each, nn.Embedding) and each is not model.get_input_embeddings()
    ]
    table = next((each for each in tables if each.num_embeddings - limit in POSITION_OFFSETS), None)
    if table is None:
        return None
    # Models such as RoBERTa count positions from the index of the padding.
    return limit if table.padding_idx is None else limit - table.padding_idx - 1


def _attribute(config: Any, name: str) -> str:
    """Return the name that the class of ``config`` has for the attribute ``name``."""
    return str(getattr(type(config), "attribute_map", {}).get(name, name))
