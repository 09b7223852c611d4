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


class Detector(nn.Module):
    """Returns one dict for each image, as torchvision's detectors do in eval mode."""

    def forward(self, x):
        counts = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
        return [{"boxes": row.new_ones(int(n), 4), "labels": row[: int(n)]} for n, row in zip(counts, x, strict=True)]


class Decoder(nn.Module):
    """Returns a sequence of another length for each sample."""

    def forward(self, x):
        return [row[row > 0] for row in x]


class TestOneEntryPerSample:
    @pytest.mark.parametrize("size", [1, 4, 7, 50])
    @pytest.mark.parametrize("net", [Detector(), Decoder()])
    def test_lists_are_joined_in_the_order_of_the_samples(self, net, size):
        outputs = Model(net, device="cpu").predict(X, batch_size=size, verbose=0)
        expected = net(X)
        assert len(outputs) == 50
        for output, sample in zip(outputs, expected, strict=True):
            pairs = (
                zip(output.values(), sample.values(), strict=True) if isinstance(sample, dict) else [(output, sample)]
            )
            assert all(np.array_equal(a, b) for a, b in pairs)

    def test_images_without_a_box_are_joined_too(self):
        outputs = Model(Detector(), device="cpu").predict(-X.abs(), batch_size=16, verbose=0)
        assert [output["boxes"].shape for output in outputs] == [(0, 4)] * 50

    def test_texts_are_joined_to_one_list(self):
        class Texts(nn.Module):
            def forward(self, x):
                return [str(i) for i in range(len(x))]

        outputs = Model(Texts(), device="cpu").predict(X, batch_size=30, verbose=0)
        assert outputs == [str(i) for i in [*range(30), *range(20)]]

    def test_a_list_of_outputs_with_rows_is_joined_by_output(self):
        class Pair(nn.Module):
            def forward(self, x):
                return [x, x[:, 0]]

        first, second = Model(Pair(), device="cpu").predict(X, batch_size=2, verbose=0)
        assert np.array_equal(first, X)
        assert np.array_equal(second, X[:, 0])

    def test_a_file_cannot_contain_such_a_list(self, tmp_path):
        with pytest.raises(ValueError, match="Leave out to="):
            Model(Detector(), device="cpu").predict(X, to=tmp_path / "out.npy", verbose=0)
        assert not list(tmp_path.iterdir())
