"""Outputs that do not fit in memory go to files: whole or absent, and the same numbers."""

from __future__ import annotations

import dataclasses
import resource

import numpy as np
import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.data import predictions
from tests.loops import blobs, mlp

X, Y = blobs(50)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        y = self.net(x)
        return {"logits": y, "pair": (y.argmax(1), y.double().sum(1))}


def model_of(net):
    return Model(net, device="cpu").compile(loss="cross_entropy")


def test_a_file_holds_what_predict_would_have_returned(tmp_path):
    model = model_of(mlp())
    wanted = model.predict(X, batch_size=16, verbose=0)
    found = model.predict(X, batch_size=16, to=tmp_path / "out.npy", verbose=0)
    assert isinstance(found, np.memmap)
    assert np.array_equal(found, wanted)
    assert found.dtype == wanted.dtype
    assert np.array_equal(np.load(tmp_path / "out.npy"), wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


def test_several_outputs_are_several_files_in_one_structure(tmp_path):
    model = model_of(Two())
    wanted = model.predict(X, verbose=0)
    found = model.predict(X, to=tmp_path / "out.npy", verbose=0)
    assert np.array_equal(found["logits"], wanted["logits"])
    assert all(np.array_equal(a, b) for a, b in zip(found["pair"], wanted["pair"], strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.logits.npy", "out.pair.0.npy", "out.pair.1.npy"]


@dataclasses.dataclass
class Found:
    logits: torch.Tensor
    sizes: torch.Tensor


def test_the_fields_of_a_dataclass_are_several_files(tmp_path):
    class Finder(nn.Module):
        def forward(self, x):
            return Found(x, x.sum(1))

    found = model_of(Finder()).predict(X, to=tmp_path / "out.npy", verbose=0)
    assert np.array_equal(found.logits, X.numpy())
    assert np.array_equal(found.sizes, X.sum(1).numpy())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.logits.npy", "out.sizes.npy"]


def test_an_error_on_the_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "out.npy"
    np.save(path, np.arange(3))

    def batches():
        yield X[:8]
        raise FileNotFoundError("a picture is missing")

    with pytest.raises(FileNotFoundError, match="a picture is missing"):
        model_of(mlp()).predict(batches, to=path, verbose=0)
    assert np.load(path).tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_with_the_path(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=r"Cannot write .*out\.npy"):
            model_of(mlp()).predict(torch.zeros(5000, 8), batch_size=100, to=tmp_path / "out.npy", verbose=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_an_error_at_the_very_end_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predictions.GrowingNpyFile, "finish", full)
    with pytest.raises(OSError, match="No space left") as caught:  # whose traceback keeps all that it has seen
        model_of(mlp()).predict(X, to=tmp_path / "y.npy", verbose=0)
    assert caught.value.errno == 28
    assert list(tmp_path.iterdir()) == []


class Ragged(nn.Module):
    def forward(self, x):
        return x[:, : 2 + int(x[0, 0])]


def test_outputs_in_memory_that_differ_in_shape_are_told():
    x = torch.zeros(32, 8)
    x[16:] = 1
    with pytest.raises(ValueError, match=r"outputs of the batches differ in shape.*predict_step"):
        model_of(Ragged()).predict(x, batch_size=16, verbose=0)


def test_what_does_not_fit_in_one_array_is_told(tmp_path):
    x = torch.zeros(32, 8)
    x[16:] = 1
    with pytest.raises(ValueError, match=r"outputs of the batches differ.*\[2\].*\[3\].*predict_step"):
        model_of(Ragged()).predict(x, batch_size=16, to=tmp_path / "out.npy", verbose=0)
    assert list(tmp_path.iterdir()) == []


def test_another_ending_and_empty_data_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"written as NumPy's .npy, received .*out\.txt"):
        model_of(mlp()).predict(X, to=tmp_path / "out.txt", verbose=0)
    with pytest.raises(ValueError, match="not one batch"):
        model_of(mlp()).predict(lambda: iter(()), to=tmp_path / "out.npy", verbose=0)
    assert list(tmp_path.iterdir()) == []
