"""A dataset that is run once: the same samples as tensors, or a refusal that says why not."""

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
    """Samples that are made when they are asked for, and counts how often."""

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


def test_samples_order_and_dtypes_are_those_of_the_dataset():
    dataset = Counted()
    kept = in_memory(dataset, verbose=0)
    loads = dataset.loads
    assert len(kept) == 50
    for i in (0, 17, 49):
        x, y = kept[i]
        assert torch.equal(x, dataset[i][0])
        assert y == dataset[i][1]
        assert y.dtype == torch.int64
    assert dataset.loads == loads + 6  # by this test: the kept one loads nothing any more


def test_small_integers_stay_small():
    kept = in_memory(Counted(change=lambda i, x: (x * 10).to(torch.uint8)), verbose=0)
    assert kept[3][0].dtype == torch.uint8


def test_samples_in_dicts_stay_dicts():
    kept = in_memory([{"image": np.full((2, 2), i, dtype="float32"), "label": i % 2} for i in range(9)], verbose=0)
    assert kept[4]["image"].tolist() == [[4, 4], [4, 4]]
    assert kept[5]["label"] == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_it_is_training_on_the_dataset_bit_for_bit(workers):
    one, other = twins(mlp(FEATURES))
    dataset = Counted()
    for net, data in ((one, dataset), (other, in_memory(dataset, num_workers=workers, verbose=0))):
        torch.manual_seed(0)
        model = Model(net, device="cpu").compile("sgd", "cross_entropy", lr=0.1)
        model.fit(DataLoader(data, 8, shuffle=True), 2, verbose=0)
    assert same_weights(one, other)


def test_a_loader_of_it_and_of_its_parts_is_sliced():
    kept = in_memory(Counted(), verbose=0)
    assert isinstance(as_tensor_batches(DataLoader(kept, 8, shuffle=True)), TensorBatches)
    assert isinstance(as_tensor_batches(DataLoader(Subset(kept, range(5, 20)), 8)), TensorBatches)
    first, second = split(kept)
    assert (len(first), len(second)) == (40, 10)


def test_values_of_the_dataset_are_there_and_what_loads_is_not():
    kept = in_memory(Counted(), verbose=0)
    assert kept.classes == ("a", "b", "c")
    assert targets_of(kept).tolist() == [i % 3 for i in range(50)]
    assert not hasattr(kept, "change")


def test_no_random_number_of_the_program_is_drawn():
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
def test_random_samples_are_refused(library, workers):
    with pytest.raises(ValueError, match=r"Loading Counted draws random numbers.*train_step"):
        in_memory(Counted(change=DRAWS[library]), num_workers=workers, verbose=0)


def test_samples_that_change_by_another_generator_are_refused():
    own = np.random.default_rng(0)
    with pytest.raises(ValueError, match="gives other values the second time"):
        in_memory(Counted(change=lambda i, x: x + own.random()), verbose=0)


def test_samples_of_different_shape_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"differ in shape.*\[3\].*\[6\]|differ in shape.*\[6\].*\[3\]"):
        in_memory(Counted(600, change=lambda i, x: x[:3] if i > 500 else x), verbose=0)
    with pytest.raises(ValueError, match=r"differ in shape.*\[3\]"):
        in_memory(Counted(600, change=lambda i, x: x[:3] if i == 300 else x), verbose=0)


def test_samples_of_different_dtype_are_refused_instead_of_rounded():
    samples = [(torch.zeros(1), 1)] * 256 + [(torch.zeros(1), 2.5)] * 44  # which are loaded 256 at a time
    with pytest.raises(TypeError, match=r"differ in dtype: torch\.int64 and torch\.float64"):
        in_memory(samples, verbose=0)


def test_what_is_no_number_is_refused():
    with pytest.raises(TypeError, match=r"something else than numbers.*ToTensor"):
        in_memory(Counted(change=lambda i, x: object()), verbose=0)
    with pytest.raises(TypeError, match="something else than numbers"):
        in_memory([("text", 1)] * 4, verbose=0)


def test_streams_and_empty_data_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([1, 2])

    with pytest.raises(TypeError, match="a dataset with a length and an index"):
        in_memory(Stream(), verbose=0)
    with pytest.raises(ValueError, match="The data is empty"):
        in_memory(Counted(0), verbose=0)


def test_more_than_the_machine_has_is_refused_after_the_first_samples():
    class Huge(Dataset):
        def __len__(self):
            return 10**12

        def __getitem__(self, index):
            return torch.zeros(1000), 0

    with pytest.raises(MemoryError, match=r"needs 4,000.* GB.*num_workers"):
        in_memory(Huge(), verbose=0)


def test_the_cache_is_used_the_next_time(tmp_path):
    cache = tmp_path / "kept.pt"
    first = in_memory(Counted(), cache=cache, verbose=0)
    dataset = Counted()
    again = in_memory(dataset, cache=cache, verbose=0)
    assert dataset.loads == 16  # eight samples, twice
    assert all(torch.equal(a, b) for a, b in zip(first.tree, again.tree, strict=True))


@pytest.mark.parametrize("other", [Counted(49), Counted(change=lambda i, x: x + 1)], ids=["length", "values"])
def test_the_cache_of_other_data_is_made_anew(tmp_path, other):
    cache = tmp_path / "kept.pt"
    in_memory(Counted(), cache=cache, verbose=0)
    with pytest.warns(UserWarning, match="made from other data"):
        kept = in_memory(other, cache=cache, verbose=0)
    assert torch.equal(kept[7][0], other[7][0])
    assert torch.equal(in_memory(other, cache=cache, verbose=0)[7][0], other[7][0])


def test_a_file_that_is_no_cache_is_left_alone(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "mine.pt")
    (tmp_path / "mine.txt").write_text("mine")
    for name in ("mine.pt", "mine.txt"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ValueError, match=name):
            in_memory(Counted(), cache=tmp_path / name, verbose=0)
        assert (tmp_path / name).read_bytes() == before


def test_it_says_what_it_did_unless_told_not_to(capsys):
    in_memory(Counted())
    assert capsys.readouterr().out.startswith("Loaded into memory: 50 samples, 0.0 MB")
    in_memory(Counted(), verbose=0)
    assert capsys.readouterr().out == ""


def test_a_cache_without_a_folder_is_told_before_anything_is_loaded(tmp_path):
    dataset = Counted()
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        in_memory(dataset, cache=tmp_path / "missing" / "cache.pt", verbose=0)
    assert dataset.loads == 0


def test_targets_that_only_the_samples_have_are_known_afterwards():
    kept = in_memory(TensorDataset(torch.zeros(9, 2), torch.arange(9) % 3), verbose=0)
    assert targets_of(kept).tolist() == [0, 1, 2] * 3
