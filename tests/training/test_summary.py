"""The table of layers that summary prints."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from easytorch import Model
from tests.loops import blobs, mlp


class SharedConvolution(nn.Module):
    """A network that calls one convolution five times."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = F.relu(self.conv2(F.relu(self.conv2(F.max_pool2d(x, 2)))))
        x = F.relu(self.conv2(F.relu(self.conv2(F.max_pool2d(x, 2)))))
        return self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1).flatten(1))))


def test_the_table_of_a_small_network_fits_in_80_columns(capsys):
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model = Model(net.append(nn.Linear(64, 10)), device="cpu").compile("adam", "cross_entropy")
    model.summary(torch.zeros(64, 1, 28, 28))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "├─AdaptiveAvgPool2d (4)  [64, 64, 1, 1]" in out
    assert "143,233,024" in out


def test_a_long_name_does_not_cut_the_values_of_the_table(capsys):
    net = nn.Sequential(OrderedDict(a_very_long_name_of_a_layer_that_is_never_cut=nn.Sequential(nn.Linear(8, 3))))
    Model(net, device="cpu").summary(torch.zeros(4, 8), row_settings=("var_names", "depth"))
    out = capsys.readouterr().out
    assert "├─Sequential (a_very_long_name_of_a_layer_that_is_never_cut): 1-1  [4, 3]" in out


def test_a_shared_layer_has_parameters_once_and_many_mult_adds(capsys):
    table = Model(SharedConvolution(), device="cpu").summary(torch.zeros(1, 1, 28, 28))
    assert table.total_params == 42_378
    # conv2 runs once at 28 x 28, twice at 14 x 14 and twice at 7 x 7.
    assert 47.4e6 < table.total_mult_adds < 47.6e6
    assert "42,378" in capsys.readouterr().out


def test_the_input_size_is_from_the_last_fit(capsys):
    x, y = blobs()
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    model.fit(x, y, batch_size=25, verbose=0)
    model.summary()
    out = capsys.readouterr().out
    assert "[25, 8]" in out or "[25, 16]" in out
    assert "[25, 3]" in out


def test_without_data_the_table_has_only_parameters(capsys):
    assert Model(mlp(), device="cpu").summary().total_params == 195
    assert "Output Shape" not in capsys.readouterr().out


def test_inputs_by_name_are_passed_by_name():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, left, right):
            return self.net(left + right)

    x, _ = blobs()
    assert Model(Sum(), device="cpu").summary({"left": x, "right": x}).total_params == 195
    assert Model(Sum(), device="cpu").summary((x, x)).total_params == 195


def test_summary_changes_no_modes_weights_or_random_states():
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout())
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    states = torch.get_rng_state()
    Model(net, device="cpu").summary(blobs()[0])
    assert net.training
    assert not net[1].training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states)


def test_the_result_of_summary_does_not_repeat_the_table(capsys):
    table = Model(mlp(), device="cpu").summary(blobs()[0])
    assert "Units" not in capsys.readouterr().out
    assert repr(table) == "<statistics: 195 parameters, 195 trainable>"
    assert "Total mult-adds (M)" in str(table)


def test_input_size_of_torchinfo_replaces_the_input():
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    model.fit(*blobs(), verbose=0)
    assert model.summary(input_size=(1, 8)).total_params == 195


class FourParts(Model):
    def train_step(self, batch):
        x, y, _, _ = batch
        return {"loss": self.loss(self(x), y)}


class Mixed(Model):
    """Takes batches that only its own unpack understands."""

    def unpack(self, batch):
        raise RuntimeError("not for summary")

    def train_step(self, batch):
        return {"loss": self(batch[0]).mean()}


@pytest.mark.parametrize(
    ("kind", "batch"),
    [
        (FourParts, (torch.ones(8, 8), torch.ones(8, 1), torch.ones(8), torch.ones(8))),
        (Model, (torch.eye(8).to_sparse(), torch.ones(8, 1))),
        (Mixed, (torch.ones(8, 8), torch.ones(8, 1))),
    ],
)
def test_a_batch_that_summary_cannot_use_gives_a_table_without_shapes(kind, batch, capsys):
    model = kind(nn.Sequential(nn.Linear(8, 1)), device="cpu").compile("sgd", "mse")
    model.fit([batch], verbose=0)
    statistics = model.summary()
    assert statistics.total_params == 9
    text = capsys.readouterr().out
    assert text.startswith("Without shapes, since")
    assert "Trainable" in text
    assert not any(layer._forward_hooks for layer in model.module.modules())


def test_inputs_that_were_passed_to_summary_must_work():
    model = Model(nn.Linear(8, 1), device="cpu")
    with pytest.raises(ValueError, match=r"expects 8 features, received 3.*Use in_features=3"):
        model.summary(torch.ones(2, 3))
