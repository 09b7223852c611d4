"""find_batch_size: doubles the batch size, and suggests the knee of the throughput."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from easytorch import Model
from easytorch.tuning.sizes import search
from easytorch.tuning.timing import Timing
from tests.callbacks.test_out_of_memory import Limited
from tests.loops import blobs

X, Y = blobs(200)


def saturating(size):
    """Each update takes 10 ms, and each sample 1 ms."""
    return Timing(0.010 + 0.001 * size, size)


def limited(limit):
    def measure(size):
        if size > limit:
            raise torch.OutOfMemoryError("out of memory")
        return saturating(size)

    return measure


def test_the_suggestion_is_the_knee_of_the_throughput():
    found = search(saturating, 1, 4096)
    assert found.suggestion == 128
    assert found.largest is None
    assert [row["batch_size"] for row in found.rows] == [2**i for i in range(11)]
    assert "It reaches 9" in found.reason
    assert "Larger batches are no faster." in found.reason


def test_the_largest_size_that_fits_is_found():
    found = search(limited(100), 8, 4096, finds_largest=True)
    assert 96 <= found.largest <= 100
    assert found.suggestion <= found.largest
    assert f"The largest batch size that fits is {found.largest}." in str(found)
    assert "does not fit in memory" in str(found)
    assert search(limited(10), 8, 4096).largest == 10
    with pytest.raises(torch.OutOfMemoryError, match="Pass a smaller min_size, such as min_size=1"):
        search(limited(7), 8, 4096)


def test_the_search_ends_at_the_last_size_and_in_time():
    assert [row["batch_size"] for row in search(saturating, 8, 20).rows] == [8, 16, 20]
    times = iter(range(0, 10_000, 40))
    found = search(saturating, 1, 4096, clock=lambda: next(times))
    assert "after 60 seconds" in found.reason


def test_a_slow_moment_does_not_decide():
    calls = []

    def measure(size):
        calls.append(size)
        factor = 5.0 if len(calls) == 3 else 1.0
        return Timing(factor * (0.010 + 0.001 * size), size)

    assert search(measure, 16, 64).suggestion == 64
    assert calls.count(16) == 3


def test_a_slow_moment_that_ends_the_search_is_reported():
    calls = []

    def measure(size):
        calls.append(size)
        return Timing(0.05 if len(calls) in (3, 4) else 0.01, size)

    found = search(measure, 8, 4096)
    assert max(calls) == found.suggestion == 64
    assert "Sizes above 64 were not measured and may be faster. To measure them, pass min_size=64." in found.reason


def model_of(net):
    return Model(net, device="cpu").compile("adam", "cross_entropy")


@pytest.mark.parametrize("data", ["arrays", "dataset", "loader"])
def test_a_simulated_limit_of_memory_is_found(data, monkeypatch):
    monkeypatch.setattr("easytorch.tuning.sizes.SECONDS", 0.0)
    net = Limited(50)
    model = model_of(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    dataset = TensorDataset(X, Y)
    arguments = {"arrays": (X, Y), "dataset": (dataset,), "loader": (DataLoader(dataset, 16, shuffle=True),)}[data]
    found = model.find_batch_size(*arguments)
    # The search may end at the knee before the limit.
    assert found.suggestion <= 50
    assert found.largest is None or 44 <= found.largest <= 50
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not model.optimizer.state
    assert len(model.history) == 0
    assert ("DataLoader(..., batch_size=" in str(found)) == (data == "loader")


def test_batches_that_cannot_be_changed_are_refused():
    model = model_of(nn.Linear(8, 3))
    batches = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 200, 8)]
    with pytest.raises(ValueError, match="cannot change the batches of a list"):
        model.find_batch_size(batches)
    with pytest.raises(ValueError, match="cannot change the batches of a function"):
        model.find_batch_size(lambda: iter(batches))
    loader = DataLoader(TensorDataset(X, Y), batch_sampler=BatchSampler(SequentialSampler(X), 8, False))
    assert loader.batch_size is None or loader.batch_size == 1
    with pytest.raises(ValueError, match=r"cannot be changed, because its batch_sampler"):
        model.find_batch_size(loader)
    with pytest.raises(ValueError, match=r"min_size=500 is larger than the data"):
        model.find_batch_size(X, Y, min_size=500)


def test_sizes_are_a_table_a_frame_a_dict_and_a_picture(tmp_path):
    found = search(limited(100), 8, 4096, finds_largest=True)
    assert list(found.to_frame().columns) == ["batch_size", "samples_per_second", "seconds_per_update", "note"]
    assert found.to_dict()["largest"] == found.largest
    assert "<table" in found._repr_html_()
    found.plot(path=tmp_path / "sizes.png")
    assert (tmp_path / "sizes.png").stat().st_size > 1000
