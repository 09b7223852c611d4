"""The table of layers: torchinfo's, of the sizes that the data has, and without a trace in the model."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

from easytorch import Model
from tests.loops import blobs, mlp


class SharedConvolution(nn.Module):
    """The network of article 000: one convolution is called five times."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = F.relu(self.conv2(F.relu(self.conv2(F.max_pool2d(x, 2)))))
        x = F.relu(self.conv2(F.relu(self.conv2(F.max_pool2d(x, 2)))))
        return self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1).flatten(1))))


def test_the_table_of_a_small_network_fits_in_80_columns_whole(capsys):
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model = Model(net.append(nn.Linear(64, 10)), device="cpu").compile("adam", "cross_entropy")
    model.summary(torch.zeros(64, 1, 28, 28))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "├─AdaptiveAvgPool2d (4)  [64, 64, 1, 1]" in out
    assert "143,233,024" in out


def test_the_longest_name_in_the_table_is_followed_by_its_values(capsys):
    net = nn.Sequential(OrderedDict(a_very_long_name_of_a_layer_that_is_never_cut=nn.Sequential(nn.Linear(8, 3))))
    Model(net, device="cpu").summary(torch.zeros(4, 8), row_settings=("var_names", "depth"))
    out = capsys.readouterr().out
    assert "├─Sequential (a_very_long_name_of_a_layer_that_is_never_cut): 1-1  [4, 3]" in out


def test_a_shared_layer_is_counted_once_and_calculates_as_often_as_it_is_called(capsys):
    table = Model(SharedConvolution(), device="cpu").summary(torch.zeros(1, 1, 28, 28))
    assert table.total_params == 42_378
    assert 47.4e6 < table.total_mult_adds < 47.6e6  # conv2 once at 28 x 28, twice at 14 x 14, twice at 7 x 7
    assert "42,378" in capsys.readouterr().out


def test_the_input_size_is_that_of_the_last_fit(capsys):
    x, y = blobs()
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    model.fit(x, y, batch_size=25, verbose=0)
    model.summary()
    out = capsys.readouterr().out
    assert "[25, 8]" in out or "[25, 16]" in out
    assert "[25, 3]" in out


def test_without_data_the_table_has_the_parameters_alone(capsys):
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


def test_a_summary_leaves_modes_weights_and_random_states_as_they_are():
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout())
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    states = torch.get_rng_state()
    Model(net, device="cpu").summary(blobs()[0])
    assert net.training
    assert not net[1].training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states)


def test_what_summary_returns_does_not_show_the_table_again(capsys):
    table = Model(mlp(), device="cpu").summary(blobs()[0])
    assert "Units" not in capsys.readouterr().out
    assert repr(table) == "<statistics: 195 parameters, 195 trainable>"
    assert "Total mult-adds (M)" in str(table)


def test_the_options_of_torchinfo_may_bring_the_inputs():
    model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
    model.fit(*blobs(), verbose=0)
    assert model.summary(input_size=(1, 8)).total_params == 195
