"""A dataset in memory has the same samples, or an error names the reason."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from easytorch import Model
from easytorch.data import in_memory, split, targets_of
from easytorch.data.fast_loaders import TensorBatches, as_tensor_batches
from tests.loops import mlp, same_weights, twins

FEATURES = 6


class Counted(Dataset):
    """A dataset that counts how often it loads a sample."""

    classes = ("a", "b", "c")

    def __init__(self, size=50, change=lambda i, x: x):
        self.size, self.change, self.loads = size, change, 0
        self.targets = [i % 3 for i in range(size)]

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.loads += 1
        generator = torch.Generator().manual_seed(int(index))
        return self.change(index, torch.randn(FEATURES, generator=generator)), self.targets[index]


def test_samples_order_and_dtypes_match_the_dataset():
    dataset = Counted()
    data = in_memory(dataset, verbose=0)
    loads = dataset.loads
    assert len(data) == 50
    for i in (0, 17, 49):
        x, y = data[i]
        assert torch.equal(x, dataset[i][0])
        assert y == dataset[i][1]
        assert y.dtype == torch.int64
    assert dataset.loads == loads + 6


def test_small_integer_dtypes_are_preserved():
    data = in_memory(Counted(change=lambda i, x: (x * 10).to(torch.uint8)), verbose=0)
    assert data[3][0].dtype == torch.uint8


def test_dict_samples_stay_dicts():
    data = in_memory([{"image": np.full((2, 2), i, dtype="float32"), "label": i % 2} for i in range(9)], verbose=0)
    assert data[4]["image"].tolist() == [[4, 4], [4, 4]]
    assert data[5]["label"] == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_training_matches_the_dataset_bit_for_bit(workers):
    first, second = twins(mlp(FEATURES))
    dataset = Counted()
    for net, samples in ((first, dataset), (second, in_memory(dataset, num_workers=workers, verbose=0))):
        torch.manual_seed(0)
        model = Model(net, device="cpu").compile("sgd", "cross_entropy", lr=0.1)
        model.fit(DataLoader(samples, 8, shuffle=True), 2, verbose=0)
    assert same_weights(first, second)


def test_loaders_of_it_and_its_subsets_use_tensor_batches():
    data = in_memory(Counted(), verbose=0)
    assert isinstance(as_tensor_batches(DataLoader(data, 8, shuffle=True)), TensorBatches)
    assert isinstance(as_tensor_batches(DataLoader(Subset(data, range(5, 20)), 8)), TensorBatches)
    first, second = split(data)
    assert (len(first), len(second)) == (40, 10)


def test_value_attributes_are_forwarded_but_not_methods():
    data = in_memory(Counted(), verbose=0)
    assert data.classes == ("a", "b", "c")
    assert targets_of(data).tolist() == [i % 3 for i in range(50)]
    assert not hasattr(data, "change")


def test_loading_leaves_the_global_random_state_unchanged():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    in_memory(Counted(), verbose=0)
    assert torch.equal(before, torch.get_rng_state())


DRAWS = {
    "torch": lambda i, x: x + torch.rand(1),
    "NumPy": lambda i, x: x + float(np.random.rand()),
    "Python": lambda i, x: x + random.random(),
    "rarely": lambda i, x: x + (torch.rand(1) if i == 31 else 0),
}


@pytest.mark.parametrize("library", DRAWS)
@pytest.mark.parametrize("workers", [0, 2])
def test_random_samples_raise_an_error(library, workers):
    with pytest.raises(ValueError, match=r"Loading Counted draws random numbers.*train_step"):
        in_memory(Counted(change=DRAWS[library]), num_workers=workers, verbose=0)


def test_samples_from_a_custom_generator_raise_an_error():
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="gives other values the second time"):
        in_memory(Counted(change=lambda i, x: x + generator.random()), verbose=0)


def test_different_shapes_are_reported_with_both_shapes():
    with pytest.raises(ValueError, match=r"differ in shape.*\[3\].*\[6\]|differ in shape.*\[6\].*\[3\]"):
        in_memory(Counted(600, change=lambda i, x: x[:3] if i > 500 else x), verbose=0)
    with pytest.raises(ValueError, match=r"differ in shape.*\[3\]"):
        in_memory(Counted(600, change=lambda i, x: x[:3] if i == 300 else x), verbose=0)


def test_different_dtypes_are_reported_instead_of_rounded():
    # Both dtypes are in different chunks of 256 samples.
    samples = [(torch.zeros(1), 1)] * 256 + [(torch.zeros(1), 2.5)] * 44
    with pytest.raises(TypeError, match=r"differ in dtype: torch\.int64 and torch\.float64"):
        in_memory(samples, verbose=0)


def test_samples_that_are_not_numeric_raise_an_error():
    with pytest.raises(TypeError, match=r"Expected samples of numbers.*ToTensor"):
        in_memory(Counted(change=lambda i, x: object()), verbose=0)
    with pytest.raises(TypeError, match="Expected samples of numbers"):
        in_memory([("text", 1)] * 4, verbose=0)


def test_streams_and_empty_datasets_raise_an_error():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([1, 2])

    with pytest.raises(TypeError, match="a dataset with a length and an index"):
        in_memory(Stream(), verbose=0)
    with pytest.raises(ValueError, match="The data is empty"):
        in_memory(Counted(0), verbose=0)


def test_too_large_dataset_is_reported_after_first_samples():
    class Huge(Dataset):
        def __len__(self):
            return 10**12

        def __getitem__(self, index):
            return torch.zeros(1000), 0

    with pytest.raises(MemoryError, match=r"needs 4,000.* GB.*num_workers"):
        in_memory(Huge(), verbose=0)


def test_cache_is_used_by_the_next_call(tmp_path):
    cache = tmp_path / "cache.pt"
    first = in_memory(Counted(), cache=cache, verbose=0)
    dataset = Counted()
    again = in_memory(dataset, cache=cache, verbose=0)
    # Eight samples, twice
    assert dataset.loads == 16
    assert all(torch.equal(a, b) for a, b in zip(first.tree, again.tree, strict=True))


@pytest.mark.parametrize("other", [Counted(49), Counted(change=lambda i, x: x + 1)], ids=["length", "values"])
def test_cache_of_other_data_is_recreated(tmp_path, other):
    cache = tmp_path / "cache.pt"
    in_memory(Counted(), cache=cache, verbose=0)
    with pytest.warns(UserWarning, match="made from other data"):
        data = in_memory(other, cache=cache, verbose=0)
    assert torch.equal(data[7][0], other[7][0])
    assert torch.equal(in_memory(other, cache=cache, verbose=0)[7][0], other[7][0])


def test_file_that_is_not_a_cache_is_not_overwritten(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "mine.pt")
    (tmp_path / "mine.txt").write_text("mine")
    for name in ("mine.pt", "mine.txt"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ValueError, match=name):
            in_memory(Counted(), cache=tmp_path / name, verbose=0)
        assert (tmp_path / name).read_bytes() == before


def test_verbose_prints_one_line_and_zero_prints_nothing(capsys):
    in_memory(Counted())
    assert capsys.readouterr().out.startswith("Loaded into memory: 50 samples, 0.0 MB")
    in_memory(Counted(), verbose=0)
    assert capsys.readouterr().out == ""


def test_missing_cache_folder_is_reported_before_loading(tmp_path):
    dataset = Counted()
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        in_memory(dataset, cache=tmp_path / "missing" / "cache.pt", verbose=0)
    assert dataset.loads == 0


def test_targets_of_samples_are_readable_after_loading():
    data = in_memory(TensorDataset(torch.zeros(9, 2), torch.arange(9) % 3), verbose=0)
    assert targets_of(data).tolist() == [0, 1, 2] * 3
