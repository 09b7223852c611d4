"""Checks judge the targets that the loss is called with, not those of the dataset."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from easytorch import Model
from easytorch.callbacks import Callback
from easytorch.data import all_targets, split
from easytorch.data.batch import Batch
from tests.cases import slow_after_first

torch.manual_seed(0)
X = torch.randn(64, 8)
Y = torch.arange(64) % 10
GROUP = torch.arange(64) % 2
RARE = (torch.arange(64) >= 56).long()  # 56 of class 0, 8 of class 1


class Pair(nn.Module):
    """A module of two inputs, of which one is not used."""

    def __init__(self, outputs=2):
        super().__init__()
        self.layer = nn.Linear(8, outputs)

    def forward(self, x, other):
        return self.layer(x)


def shifted(rows):
    x, y = default_collate(rows)
    return x, y - 1


def paired(rows):
    x, other, y = default_collate(rows)
    return (x, other), y


class Autoencoder(Model):
    def train_step(self, batch):
        x = self.unpack(batch).x
        return {"loss": self.loss(self(x), x)}


class ShiftInStep(Model):
    def train_step(self, batch):
        x, y = batch
        return {"loss": self.loss(self(x), y - 1)}


class ShiftInUnpack(Model):
    def unpack(self, batch):
        x, y = batch
        return Batch(x, y - 1)


class ShiftedLoader(DataLoader):
    def __iter__(self):
        for x, y in super().__iter__():
            yield x, y - 1


class Samples(Dataset):
    """Samples of a label and a sequence, as in text classification."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return int(RARE[index]), torch.arange(index % 3 + 1)


def count_tokens(rows):
    lengths = torch.tensor([len(tokens) for _, tokens in rows]).float()
    return lengths[:, None].expand(-1, 8), torch.tensor([label for label, _ in rows])


def linear(outputs=10):
    torch.manual_seed(1)
    return nn.Linear(8, outputs)


def loader(*tensors, kind=DataLoader, **options):
    return kind(TensorDataset(*tensors), batch_size=16, **options)


# For each program: the model, the data, and the loss of its first epoch at learning rate 0.
PROGRAMS = {
    "collate_fn": lambda: (Model(linear()), loader(X, Y + 1, collate_fn=shifted)),
    "unpack": lambda: (ShiftInUnpack(linear()), loader(X, Y + 1)),
    "train_step": lambda: (ShiftInStep(linear()), loader(X, Y + 1)),
    "loader": lambda: (Model(linear()), loader(X, Y + 1, kind=ShiftedLoader)),
    "list": lambda: (Model(linear()), DataLoader(list(zip(X, Y + 1, strict=True)), 16, collate_fn=shifted)),
}


class TestRange:
    @pytest.mark.parametrize("name", PROGRAMS)
    @pytest.mark.parametrize("validated", slow_after_first([True, False]))
    def test_labels_that_the_program_changes_are_trained(self, name, validated):
        model, data = PROGRAMS[name]()
        model.compile("sgd", "cross_entropy", lr=0.0)
        history = model.fit(data, validation_data=data if validated else None, verbose=0)
        expected = functional.cross_entropy(linear()(X), Y).item()
        assert history["loss"] == [pytest.approx(expected)]
        assert model.evaluate(data, verbose=0)["loss"] == pytest.approx(expected)

    def test_the_labels_of_an_autoencoder_are_not_judged(self):
        torch.manual_seed(0)
        net, images = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()), torch.rand(64, 8)
        expected = functional.binary_cross_entropy(net(images), images).item()
        model = Autoencoder(net).compile("sgd", "bce", lr=0.0)
        history = model.fit(images, Y, validation_data=(images, Y), verbose=0)
        assert history["loss"] == history["val_loss"] == [pytest.approx(expected)]

    def test_the_second_of_three_tensors_is_not_judged(self):
        data = loader(X, torch.randn(64, 4), RARE[:, None].float(), collate_fn=paired)
        model = Model(Pair(1)).compile("sgd", "bce_with_logits")
        assert len(model.fit(data, validation_data=data, verbose=0)["val_loss"]) == 1

    def test_wrong_labels_from_a_collate_function_are_still_an_error(self):
        model = Model(linear()).compile("sgd", "cross_entropy")
        with pytest.raises(ValueError, match="labels go from"):
            model.fit(loader(X, Y + 3, collate_fn=shifted), verbose=0)

    def test_wrong_labels_of_plain_data_are_found_before_training(self):
        labels = Y.clone()
        labels[-1] = 10  # in the last batch
        model = Model(linear()).compile("sgd", "cross_entropy")
        with pytest.raises(ValueError, match="from 0 to 10"):
            model.fit(loader(X, labels), verbose=0)
        assert model.state.step == 0

    def test_targets_of_a_custom_collate_function_are_unknown(self):
        assert all_targets(loader(X, Y, collate_fn=shifted)) is None
        assert torch.equal(all_targets(loader(X, Y)), Y)


class Weights(Callback):
    """Reads the weights of the samples in each batch."""

    def __init__(self):
        self.by_label = {}

    def on_train_batch_end(self, batch, logs=None):
        parts = self.model.unpack(self.model.train_data.window[0])
        self.by_label.update(zip(parts.y.tolist(), parts.sample_weight.tolist(), strict=True))


class TestBalanced:
    @pytest.mark.parametrize(
        "data",
        [
            loader(X, GROUP, RARE, collate_fn=paired),
            DataLoader(TensorDataset(X, GROUP, RARE), 16, collate_fn=paired, shuffle=True),
            DataLoader(TensorDataset(X, GROUP, RARE), 16, collate_fn=paired, drop_last=True),
        ],
        ids=["ordered", "shuffled", "drop_last"],
    )
    def test_balanced_weights_count_the_labels_of_the_batches(self, data):
        weights = Weights()
        Model(Pair()).compile("sgd", "cross_entropy").fit(data, class_weight="balanced", callbacks=[weights], verbose=0)
        assert weights.by_label == {0: pytest.approx(64 / (2 * 56)), 1: pytest.approx(64 / (2 * 8))}

    def test_balanced_weights_of_labels_before_a_sequence(self):
        weights, data = Weights(), DataLoader(Samples(), 16, collate_fn=count_tokens)
        model = Model(linear(2)).compile("sgd", "cross_entropy")
        model.fit(data, class_weight="balanced", callbacks=[weights], verbose=0)
        assert weights.by_label == {0: pytest.approx(64 / (2 * 56)), 1: pytest.approx(64 / (2 * 8))}

    def test_balanced_weights_count_what_unpack_returns(self):
        class Rare(Model):
            def unpack(self, batch):
                x, *others = batch
                return Batch(x, RARE[others[0]], *others[1:])

        weights = Weights()
        model = Rare(linear(2)).compile("sgd", "cross_entropy")
        model.fit(X, torch.arange(64), class_weight="balanced", callbacks=[weights], verbose=0)
        assert weights.by_label == {0: pytest.approx(64 / (2 * 56)), 1: pytest.approx(64 / (2 * 8))}

    def test_counting_draws_no_random_numbers(self):
        def noisy(rows):
            torch.rand(3)
            return paired(rows)

        torch.manual_seed(3)
        state = torch.get_rng_state()
        model = Model(Pair()).compile("sgd", "cross_entropy")
        losses = [
            model.fit(loader(X, GROUP, RARE, collate_fn=noisy), class_weight=weight, verbose=0)
            and torch.get_rng_state().sum().item()
            for weight in ("balanced", {0: 1.0})
            if torch.set_rng_state(state) is None
        ]
        assert losses[0] == losses[1]

    def test_balanced_weights_of_no_classes_are_refused(self):
        model = Model(Pair()).compile("sgd", "cross_entropy")

        def nested(rows):
            x, other, y = default_collate(rows)
            return (x, other), {"label": y}

        with pytest.raises(ValueError, match="needs one tensor of class numbers"):
            model.fit(loader(X, GROUP, RARE, collate_fn=nested), class_weight="balanced", verbose=0)


class TestStratified:
    def test_a_split_is_stratified_by_the_labels_of_the_batches(self):
        _, second = split(loader(X, GROUP, RARE, collate_fn=paired), 0.25)
        assert sum(int(y.sum()) for _, y in second) == 2  # a quarter of 8

    def test_validation_split_is_stratified_by_what_unpack_returns(self):
        class Rare(Model):
            def unpack(self, batch):
                return Batch(batch[0], RARE[batch[1]])

        model = Rare(linear(2)).compile("sgd", "cross_entropy")
        model.fit(X, torch.arange(64), validation_split=0.25, verbose=0)
        labels = [model.unpack(batch).y for batch in model.last_fit["validation"]]
        assert torch.cat(labels).sum() == 2

    def test_a_split_of_mixed_labels_is_stratified_by_the_samples(self):
        def mixed(rows):
            x, y = default_collate(rows)
            return x, functional.one_hot(y, 2).float() * 0.9 + 0.05

        _, second = split(loader(X, RARE, collate_fn=mixed), 0.25)
        assert sum(int((y[:, 1] > 0.5).sum()) for _, y in second) == 2
