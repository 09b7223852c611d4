"""Errors in the columns of Hugging Face datasets and of other tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from easytorch._utils.forward_signature import LABEL_KEYS
from easytorch._utils.registry import quote_list
from easytorch.data.arrays import is_image
from easytorch.data.class_names import is_text
from easytorch.data.hugging_face import describe_nulls, find_dataset, find_nulls, has_rows, is_plain, null_fixes
from easytorch.data.tables import has_none
from easytorch.diagnostics.data_errors import collated_samples, rows_of_batches
from easytorch.diagnostics.frames import Failure, calls_of
from easytorch.losses.single_loss import SingleLoss
from easytorch.metrics.collection import MetricCollection
from easytorch.strategies.base import Strategy

TOKENIZE = (
    "dataset = dataset.map(lambda row: tokenizer(row[{name!r}], padding='max_length', truncation=True, max_length=128)), then "
    "pass dataset.with_format('torch')"
)
AS_TENSORS = (
    "dataset.with_transform(lambda rows: {{**rows, {name!r}: [to_tensor(image) for image in rows[{name!r}]]}}), with to_tensor "
    "of torchvision.transforms.functional"
)


def null_error(failure: Failure) -> Exception | None:
    """Return which column of a Hugging Face dataset has None, and in which row, if this is why a step fails."""
    dataset = find_dataset(failure.data)
    samples = collated_samples(failure) if "NoneType" in str(failure.error) else None
    target = _nan_target(failure)
    if dataset is None or (samples is None and target is None):
        return None
    if nulls := find_nulls(dataset) if has_rows(dataset) else {}:
        return ValueError(f"The dataset has None in the columns {describe_nulls(nulls)}. {null_fixes(nulls)}")
    if target is not None:
        return _missing_error(f"A target {target!r} of the batch is NaN, as None is in torch", target)
    name = next((name for sample in samples or () for name in _names_of_none(sample)), None)
    return None if name is None else _missing_error(f"A sample of the dataset has None in {name!r}", name)


def _missing_error(problem: str, name: str) -> Exception:
    return ValueError(f"{problem}. Leave out such samples: dataset.filter(lambda row: row[{name!r}] is not None).")


def _names_of_none(sample: Any) -> list[Any]:
    return [name for name in sample if has_none(sample[name])] if isinstance(sample, Mapping) else []


def plain_rows_error(failure: Failure) -> Exception | None:
    """Return how to get tensors of a Hugging Face dataset without a format, whose rows have lists, text and images."""
    dataset = find_dataset(failure.data)
    if dataset is None or not isinstance(failure.error, (TypeError, ValueError, RuntimeError, AttributeError)):
        return None
    samples = collated_samples(failure)
    if samples is not None:
        return _collation_error(dataset, samples)
    batch = _batch_of(failure)
    if not isinstance(batch, Mapping):
        return None
    used = _used_columns(failure, batch)
    text = next((name for name in used if is_text(batch[name])), None)
    if text is not None:
        return _text_error(text, batch[text][0])
    name = next((name for name in used if _is_list_of_tensors(batch[name])), None)
    if name is None or not is_plain(dataset):
        return None
    return TypeError(
        f"The column {name!r} of the dataset has lists, of which torch makes a list of tensors, one for each position. Pass "
        "DataLoader(dataset.with_format('torch'), batch_size=32), or the dataset itself: fit(dataset, batch_size=32)."
    )


def _used_columns(failure: Failure, batch: Mapping[str, Any]) -> list[str]:
    """Return the columns that the module got, and the targets if a loss or a metric got text."""
    inputs = failure.module_call[1] if failure.module_call else None
    used = [name for name in batch if batch[name] is inputs or (isinstance(inputs, Mapping) and name in inputs)]
    if any(is_text(value) for values in _comparisons(failure) for value in values if isinstance(value, (list, tuple))):
        used += [name for name in LABEL_KEYS if name in batch]
    return used


def _is_list_of_tensors(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], (Tensor, list))


def _text_error(name: str, value: str) -> Exception:
    """Return how to convert the column ``name``, text such as ``value``, to numbers."""
    encode = f"dataset = dataset.class_encode_column({name!r}), whose features[{name!r}].names are the classes"
    return TypeError(
        f"The column {name!r} of the dataset is text, {value!r} and others, expected numbers. Convert it: "
        f"{encode if name in LABEL_KEYS else TOKENIZE.format(name=name)}."
    )


def _collation_error(dataset: Any, samples: list[Any]) -> Exception | None:
    """Return why ``samples``, rows of ``dataset``, make no batch."""
    if not all(isinstance(sample, Mapping) for sample in samples):
        return None
    for name, value in samples[0].items():
        if is_image(value):
            return TypeError(
                f"The column {name!r} of the dataset has PIL images, expected tensors of one size. Pass "
                f"{AS_TENSORS.format(name=name)}."
            )
        rows = rows_of_batches(samples)
        if rows is not None:
            return ValueError(
                f"Each item of the dataset is a batch already, of {rows[0]} rows, and the last of {rows[1]}. Leave out "
                f".batch(...), and pass fit(dataset, batch_size={rows[0]}); or pass DataLoader(dataset.with_format('torch'), "
                "batch_size=None)."
            )
        sizes = sorted({_size_of(sample.get(name)) for sample in samples} - {""})
        if len(sizes) > 1:
            return ValueError(
                f"The rows of the column {name!r} of the dataset differ in size, for example {sizes[0]} and {sizes[-1]}. "
                "Pad texts in the tokenizer, tokenizer(text, padding='max_length', truncation=True, max_length=128), or in each "
                "batch: DataLoader(dataset, 32, collate_fn=transformers.DataCollatorWithPadding(tokenizer)), without columns of "
                "text. Pad other rows with torch.nn.utils.rnn.pad_sequence in a collate_fn, and resize images in a transform."
            )
    return None


def _size_of(row: Any) -> str:
    """Return the size of a row that has one, for a message."""
    if isinstance(row, Tensor):
        return str(list(row.shape)) if row.ndim else ""
    return str([len(row)]) if isinstance(row, list) else ""


def table_error(failure: Failure) -> Exception | None:
    """Return how to pass several columns of numbers to a module that takes one tensor."""
    signature, x = failure.module_call or (None, None)
    if signature is None or len(signature.names) != 1 or signature.any_keyword or not isinstance(x, Mapping):
        return None
    batch = _batch_of(failure)
    if not isinstance(batch, Mapping) or signature.names[0] in batch:
        return None
    names = [name for name in batch if _is_column(batch[name])]
    target = next((name for name in LABEL_KEYS if name in batch), None)
    if target is None and failure.x is None and names:  # predict needs no targets
        target = names[-1]
    inputs = [name for name in names if name != target]
    rest = [name for name in batch if name not in inputs and name != target]
    if len(inputs) < 2 or any(isinstance(batch[name], Tensor) for name in rest):
        return None
    others = f" The columns {quote_list(rest)} are no numbers: encode them, or leave them out." if rest else ""
    return TypeError(
        f"The module expects one tensor, {signature.names[0]!r}, but the columns {quote_list(inputs)} have one number for each "
        f"sample. {_columns_fix(failure, inputs, target, signature.names[0])}{others}"
    )


def _columns_fix(failure: Failure, names: list[Any], target: Any, argument: str) -> str:
    dataset = find_dataset(failure.data)
    if dataset is None:
        return (
            "Override unpack(self, batch) in a subclass of Model: return easytorch.Batch(torch.stack([batch[name] for name in "
            f"{names}], 1).float(), batch[{target!r}])."
        )
    if has_rows(dataset):
        frame = f"dataset.to_pandas()[{names}]"
        return f"Pass predict({frame})." if failure.x is not None else f"Pass fit({frame}, dataset[{target!r}])."
    return (
        f"Combine them: dataset.map(lambda row: {{{argument!r}: [float(row[name]) for name in {names}]}}, "
        f"remove_columns={names})."
    )


def _is_column(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1


def _batch_of(failure: Failure) -> Any:
    return next((batch for _, _, batch in calls_of(failure.frames, Strategy.run)), None)


def _nan_target(failure: Failure) -> str | None:
    """Return the name of the targets of the batch if some of them are NaN, and the module has run."""
    batch = _batch_of(failure)
    if not isinstance(batch, Mapping) or failure.layer_call is not None:
        return None
    names = (name for name in LABEL_KEYS if isinstance(batch.get(name), Tensor))
    return next((name for name in names if batch[name].isnan().any()), None)


def _comparisons(failure: Failure) -> list[tuple[Any, ...]]:
    """Return the arguments of the losses and metrics that were running."""
    return calls_of(failure.frames, SingleLoss.__call__, SingleLoss.terms, MetricCollection._update_metric)
