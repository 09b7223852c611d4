"""Outputs in files are complete or absent, and equal to those in memory."""

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


def test_file_contains_the_outputs_of_predict(tmp_path):
    model = model_of(mlp())
    expected = model.predict(X, batch_size=16, verbose=0)
    outputs = model.predict(X, batch_size=16, to=tmp_path / "out.npy", verbose=0)
    assert isinstance(outputs, np.memmap)
    assert np.array_equal(outputs, expected)
    assert outputs.dtype == expected.dtype
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


def test_several_outputs_are_written_to_several_files(tmp_path):
    model = model_of(Two())
    expected = model.predict(X, verbose=0)
    outputs = model.predict(X, to=tmp_path / "out.npy", verbose=0)
    assert np.array_equal(outputs["logits"], expected["logits"])
    assert all(np.array_equal(a, b) for a, b in zip(outputs["pair"], expected["pair"], strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.logits.npy", "out.pair.0.npy", "out.pair.1.npy"]


@dataclasses.dataclass
class Found:
    logits: torch.Tensor
    sizes: torch.Tensor


def test_dataclass_fields_are_written_to_several_files(tmp_path):
    class Finder(nn.Module):
        def forward(self, x):
            return Found(x, x.sum(1))

    outputs = model_of(Finder()).predict(X, to=tmp_path / "out.npy", verbose=0)
    assert np.array_equal(outputs.logits, X.numpy())
    assert np.array_equal(outputs.sizes, X.sum(1).numpy())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.logits.npy", "out.sizes.npy"]


def test_error_during_predict_preserves_the_old_file(tmp_path):
    path = tmp_path / "out.npy"
    np.save(path, np.arange(3))

    def batches():
        yield X[:8]
        raise FileNotFoundError("a picture is missing")

    with pytest.raises(FileNotFoundError, match="a picture is missing"):
        model_of(mlp()).predict(batches, to=path, verbose=0)
    assert np.load(path).tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_reported_with_the_path(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=r"Cannot write .*out\.npy"):
            model_of(mlp()).predict(torch.zeros(5000, 8), batch_size=100, to=tmp_path / "out.npy", verbose=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_error_while_closing_removes_all_files(tmp_path, monkeypatch):
    def full(rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predictions.GrowingNpyFile, "finish", full)
    with pytest.raises(OSError, match="No space left") as caught:
        model_of(mlp()).predict(X, to=tmp_path / "y.npy", verbose=0)
    assert caught.value.errno == 28
    assert list(tmp_path.iterdir()) == []


class Ragged(nn.Module):
    def forward(self, x):
        return x[:, : 2 + int(x[0, 0])]


def test_outputs_of_different_shape_in_memory_are_reported():
    x = torch.zeros(32, 8)
    x[16:] = 1
    with pytest.raises(ValueError, match=r"outputs of the batches differ in shape.*predict_step"):
        model_of(Ragged()).predict(x, batch_size=16, verbose=0)


def test_outputs_of_different_shape_in_a_file_are_reported(tmp_path):
    x = torch.zeros(32, 8)
    x[16:] = 1
    with pytest.raises(ValueError, match=r"outputs of the batches differ.*\[2\].*\[3\].*predict_step"):
        model_of(Ragged()).predict(x, batch_size=16, to=tmp_path / "out.npy", verbose=0)
    assert list(tmp_path.iterdir()) == []


def test_wrong_suffix_and_empty_data_are_reported(tmp_path):
    with pytest.raises(ValueError, match=r"written as \.npy files.*received .*out\.txt.*out\.npy"):
        model_of(mlp()).predict(X, to=tmp_path / "out.txt", verbose=0)
    with pytest.raises(ValueError, match="The data is empty"):
        model_of(mlp()).predict(lambda: iter(()), to=tmp_path / "out.npy", verbose=0)
    assert list(tmp_path.iterdir()) == []
