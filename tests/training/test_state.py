"""The share of a fit that is finished."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.callbacks import LambdaCallback

X, Y = torch.randn(12, 4), torch.arange(12) % 3


class Recorder(Model):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Linear(4, 3), device="cpu")
        self.compile("sgd", "cross_entropy")
        self.seen = []

    def train_step(self, batch):
        self.seen.append(self.progress)
        return super().train_step(batch)


def test_progress_counts_the_updates_of_all_epochs():
    model = Recorder()
    assert model.progress == 0
    model.fit(X, Y, epochs=2, batch_size=4, verbose=0)
    assert model.seen == pytest.approx([i / 6 for i in range(6)])
    assert model.progress == 1


def test_progress_starts_again_in_each_fit():
    model = Recorder()
    model.fit(X, Y, batch_size=6, verbose=0)
    model.fit(X, Y, epochs=2, batch_size=6, verbose=0)
    assert model.seen == [0, 0.5, 0, 0.25, 0.5, 0.75]


def test_progress_of_data_without_a_length_changes_between_epochs():
    def batches():
        yield from zip(X.split(6), Y.split(6), strict=True)

    model = Recorder()
    model.fit(batches, epochs=2, verbose=0)
    assert model.seen == [0, 0, 0.5, 0.5]


def test_progress_is_at_most_one_if_the_data_is_longer_than_promised():
    class Longer(list):
        def __len__(self):
            return 1

    model = Recorder()
    with pytest.warns(UserWarning, match="the length of the data promises 1"):
        model.fit(Longer(zip(X.split(4), Y.split(4), strict=True)), verbose=0)
    assert model.seen == [0, 1, 1]


def test_progress_continues_in_a_resumed_run(tmp_path):
    def stop(*_):
        if model.state.step == 4:
            raise RuntimeError("stop")

    model = Recorder()
    stopper = LambdaCallback(on_train_batch_end=stop)
    with pytest.raises(RuntimeError, match="stop"):
        model.fit(X, Y, epochs=2, batch_size=4, callbacks=[stopper], resume=tmp_path, verbose=0)
    model = Recorder()
    model.seen = []
    model.fit(X, Y, epochs=2, batch_size=4, resume=tmp_path, verbose=0)
    assert model.seen[-2:] == pytest.approx([4 / 6, 5 / 6])
