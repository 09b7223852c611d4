"""What a program of a table does: it works, or it is answered by a message in one step."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

# Classes and modules that users do not know.
INTERNAL_NAMES = re.compile(
    r"\b(Batched\w*|ArrayDataset|Tensors|Criterion|SingleLoss|MultiOutputLoss|ModuleLoss|EpochIterator|EvalIterator|WeightedDataset"
    r"|ReplayedGenerator|GeneratorWithLookahead|KerasSequence|WrapperDataset|SampleList|MetricCollection|MeanMetric|TrainState"
    r"|FirstBatchCheck|OutputCollector|ForwardSignature|CallbackList|easytorch\._\w+)\b"
)


class Row(NamedTuple):
    """A line of a table.

    Args:
        name: What the user types.
        run: The program.
        answer: A pattern of the error or the warning; None for a program that works without either.
        value: The result of a program that works, if it matters.
    """

    name: str
    run: Callable[[], Any]
    answer: str | None = None
    value: Any = None


def messages_of(run: Callable[[], Any]) -> tuple[list[str], Any]:
    """Run a program; return its warnings and its error, and its result."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result, errors = None, []
        try:
            result = run()
        except Exception as error:
            errors.append(str(error))
    return [str(warning.message) for warning in caught] + errors, result


def check(row: Row) -> None:
    """Check that a program has the result or the message of its row."""
    messages, result = messages_of(row.run)
    if row.answer is None:
        assert not messages
        assert row.value is None or result == row.value
        return
    assert any(re.search(row.answer, message, re.DOTALL) for message in messages), messages
    for message in messages:
        assert not INTERNAL_NAMES.search(message), message
