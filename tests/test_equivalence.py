"""Bit-for-bit equality of fit and the training loop of the tutorials."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from tests.loops import Recurrent, blob_loader, blobs, furthest, hand_loop, mlp, same_weights, twins


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3))
        self.head = nn.Linear(4 * 6 * 6, 3)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


NETWORKS = {
    "mlp": (mlp, (8,)),
    "cnn with dropout and batchnorm": (Convolutional, (1, 8, 8)),
    "lstm": (Recurrent, (5, 4)),
}
OPTIMIZERS = {
    "sgd with momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


def new_loader(shape, custom_generator):
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(53, *shape, generator=generator), torch.randint(3, (53,), generator=generator)
    loader_generator = torch.Generator().manual_seed(11) if custom_generator else None
    return DataLoader(TensorDataset(x, y), 8, shuffle=True, generator=loader_generator)


def train_by_fit_and_by_hand(
    net, shape, make_optimizer, custom_generator=False, make_scheduler=None, per_update=False, clip=None
):
    by_fit, by_hand = twins(net)
    torch.manual_seed(3)
    optimizer = make_optimizer(by_hand.parameters())
    scheduler = make_scheduler(optimizer) if make_scheduler else None
    means = hand_loop(
        by_hand, new_loader(shape, custom_generator), optimizer, nn.CrossEntropyLoss(), 3, scheduler, per_update, clip
    )
    torch.manual_seed(3)
    model = Model(by_fit, device="cpu").compile(
        make_optimizer, "cross_entropy", metrics=["accuracy"], scheduler=make_scheduler, clip_grad_norm=clip
    )
    history = model.fit(new_loader(shape, custom_generator), 3, verbose=0)
    return by_fit, by_hand, history["loss"], means


@pytest.mark.parametrize("custom_generator", [False, True], ids=["global generator", "custom generator"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_weights_equal_the_hand_written_loop(network, optimizer, custom_generator):
    make, shape = NETWORKS[network]
    by_fit, by_hand, losses, means = train_by_fit_and_by_hand(make(), shape, OPTIMIZERS[optimizer], custom_generator)
    assert same_weights(by_fit, by_hand)
    assert losses == pytest.approx(means, rel=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_clipping_equals_the_hand_written_loop(network):
    make, shape = NETWORKS[network]
    by_fit, by_hand, *_ = train_by_fit_and_by_hand(make(), shape, OPTIMIZERS["sgd with momentum"], clip=0.1)
    assert same_weights(by_fit, by_hand)


@pytest.mark.parametrize(
    ("make_scheduler", "per_update"),
    [
        (lambda optimizer: lr_scheduler.StepLR(optimizer, 1, gamma=0.5), False),
        (lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=21), True),
    ],
    ids=["per epoch", "per update"],
)
def test_scheduler_steps_equal_the_hand_written_loop(make_scheduler, per_update):
    by_fit, by_hand, *_ = train_by_fit_and_by_hand(
        mlp(), (8,), OPTIMIZERS["sgd with momentum"], make_scheduler=make_scheduler, per_update=per_update
    )
    assert same_weights(by_fit, by_hand)


def test_validation_leaves_training_bit_equal():
    by_fit, by_hand = twins(Convolutional())
    x, y = torch.randn(40, 1, 8, 8), torch.randint(3, (40,))

    def loaders():
        torch.manual_seed(3)
        return DataLoader(TensorDataset(x, y), 8, shuffle=True), DataLoader(TensorDataset(x[:20], y[:20]), 8)

    train, validation = loaders()
    hand_loop(
        by_hand, train, torch.optim.SGD(by_hand.parameters(), lr=0.05), nn.CrossEntropyLoss(), 3, validation=validation
    )
    train, validation = loaders()
    model = Model(by_fit, device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.05), "cross_entropy")
    model.fit(train, 3, validation_data=validation, verbose=0)
    assert same_weights(by_fit, by_hand)


class AugmentedDataset(TensorDataset):
    """Draws noise from a generator of the dataset."""

    def __init__(self, *columns):
        super().__init__(*columns)
        self.generator = torch.Generator().manual_seed(3)

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(8, generator=self.generator), y


def test_the_check_of_validation_data_draws_no_random_numbers():
    x, y = blobs(50)
    validation_rows, net = AugmentedDataset(x, y), mlp()
    expected = (
        Model(net, device="cpu").compile("sgd", "cross_entropy", lr=0.0).evaluate(AugmentedDataset(x, y), verbose=0)
    )
    model = Model(net, device="cpu").compile("sgd", "cross_entropy", lr=0.0)
    history = model.fit(x, y, validation_data=validation_rows, verbose=0)
    assert history["val_loss"] == [expected.loss]


def test_batches_of_workers_equal_the_hand_written_loop():
    by_fit, by_hand = twins(mlp())
    torch.manual_seed(3)
    loader = blob_loader(shuffle=True, num_workers=2)
    hand_loop(by_hand, loader, torch.optim.SGD(by_hand.parameters(), lr=0.05), nn.CrossEntropyLoss(), 1)
    torch.manual_seed(3)
    Model(by_fit, device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.05), "cross_entropy").fit(loader, verbose=0)
    assert same_weights(by_fit, by_hand)


def test_arrays_are_shuffled_like_a_loader_of_the_same_rows():
    by_fit, by_hand = twins(mlp())
    x, y = blobs()
    torch.manual_seed(3)
    loader = DataLoader(TensorDataset(x, y), 8, shuffle=True)
    hand_loop(by_hand, loader, torch.optim.SGD(by_hand.parameters(), lr=0.05), nn.CrossEntropyLoss(), 2)
    torch.manual_seed(3)
    model = Model(by_fit, device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.05), "cross_entropy")
    model.fit(x.numpy(), y.numpy(), epochs=2, batch_size=8, verbose=0)
    assert same_weights(by_fit, by_hand)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "nadam", "adagrad"])
def test_an_optimizer_by_name_is_close_to_the_torch_optimizer(name):
    by_fit, by_hand = twins(mlp())
    loader = blob_loader()
    torch_class = {
        cls.lower(): getattr(torch.optim, cls) for cls in ("SGD", "Adam", "AdamW", "RMSprop", "NAdam", "Adagrad")
    }[name]
    hand_loop(by_hand, loader, torch_class(by_hand.parameters(), lr=0.01), nn.CrossEntropyLoss(), 3)
    Model(by_fit, device="cpu").compile(name, "cross_entropy", lr=0.01).fit(loader, 3, verbose=0)
    assert furthest(by_fit, by_hand) < 1e-5


def test_two_fits_equal_one_fit_of_all_epochs():
    once, twice = twins(mlp())
    torch.manual_seed(3)
    model = Model(once, device="cpu").compile("adam", "cross_entropy")
    model.fit(blob_loader(shuffle=True), 4, verbose=0)
    torch.manual_seed(3)
    other, loader = Model(twice, device="cpu").compile("adam", "cross_entropy"), blob_loader(shuffle=True)
    other.fit(loader, 1, verbose=0)
    other.fit(loader, 3, verbose=0)
    assert same_weights(once, twice)
    assert other.history.epoch == [0, 1, 2, 3]
    assert other.history["loss"] == model.history["loss"]
