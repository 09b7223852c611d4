"""The collection of all logged values: padding, the loss of a step, lazy logs."""

from __future__ import annotations

import pytest
import torch

from easytorch.data.batch import ShardedWindow
from easytorch.losses.resolve import resolve_loss
from easytorch.metrics.aggregation import LazyLogs
from easytorch.metrics.collection import loss_of
from easytorch.metrics.names import resolve_metrics

Y_PRED, Y = torch.eye(3), torch.arange(3)


def accuracy():
    return resolve_metrics(["accuracy"], resolve_loss("cross_entropy"))


def test_padding_is_neither_measured_nor_recorded():
    metrics = accuracy()
    metrics.window = ShardedWindow([(Y_PRED, Y), (Y_PRED, Y)], sample_counts=[3, 0], total=3, counts_exact=True)
    for i, (x, y) in enumerate(metrics.window):
        # The second batch is padding. With it, the accuracy would be 0.5 and the loss 3.
        is_first = i == 0
        metrics.update(x, y if is_first else y.roll(1))
        metrics.record({"loss": 1.0 if is_first else 5.0}, 3)
    assert {name: float(value) for name, value in metrics.compute().items()} == {"loss": 1.0, "accuracy": 1.0}


def test_copy_starts_without_window_and_measurements():
    metrics = accuracy()
    metrics.window = ShardedWindow([(Y_PRED, Y)], sample_counts=[0], total=3, counts_exact=True)
    metrics.record({"loss": 1.0}, 3)
    copy = metrics.new_copy()
    copy.update(Y_PRED, Y)
    assert not copy.window.is_padding
    assert dict(copy.logs) == {"accuracy": 1.0}


@pytest.mark.parametrize(
    "outputs", [{"accuracy": 1.0}, None, torch.ones(()), (torch.ones(()),)], ids=["dict", "None", "tensor", "tuple"]
)
def test_step_outputs_without_loss_raise(outputs):
    with pytest.raises(TypeError, match=r"train_step returned .*, which has no 'loss'\..*\{'loss': loss\}"):
        loss_of(outputs)
    assert loss_of({"loss": 2.0, "accuracy": 1.0}) == 2.0


def test_logs_show_the_values_at_the_time_of_reading():
    values = {"loss": torch.tensor(1.0)}
    logs = LazyLogs(lambda: values)
    before = dict(logs)
    values["loss"] = torch.tensor(2.0)
    assert before == {"loss": 1.0}
    assert logs == {"loss": 2.0}
