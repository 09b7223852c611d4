"""Each planted mistake is found, and no other one is reported as an error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import easytorch
from tests.checks.common import Reading, digits, large_digits, mlp, scaled, tumors

MISTAKES = []


def mistake(*names, also=()):
    """Plant a mistake: one of the findings ``names`` must appear; no error but these and ``also``."""

    def register(function):
        MISTAKES.append(pytest.param(function, names, also, id=function.__name__))
        return function

    return register


def compiled(net, loss="cross_entropy", optimizer="adam", **options):
    return easytorch.Model(net).compile(optimizer, loss, **options)


def linear_data(count=200, width=8):
    x = torch.randn(count, width)
    return x, (x @ torch.linspace(-1, 1, width) + 0.1 * torch.randn(count))[:, None]


class Function(nn.Module):
    """A network whose forward is given."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.function(self, x)


# Inputs


@mistake("non_finite_data")
def nan_in_a_column():
    x, y = linear_data()
    x[5, 3] = float("nan")
    return compiled(mlp(8, 1), "mse"), (x, y)


@mistake("non_finite_data")
def infinite_value():
    x, y = linear_data()
    x[7, 0] = float("inf")
    return compiled(mlp(8, 1), "mse"), (TensorDataset(x, y),)


@mistake("non_finite_data")
def nan_in_targets():
    x, y = linear_data()
    y[::10] = float("nan")
    return compiled(mlp(8, 1), "mse"), (x, y)


@mistake("non_finite_data")
def nan_in_validation():
    (x, y), (x_val, y_val) = linear_data(), linear_data()
    x_val[3] = float("nan")
    return compiled(mlp(8, 1), "mse"), (x, y), {"validation_data": (x_val, y_val)}


@mistake("unscaled_images")
def pixels_of_0_to_255():
    x, y = large_digits()
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10))
    return compiled(net), ((x * 255).round(), y)


@mistake("unscaled_inputs")
def table_without_scaling():
    x, y = tumors()
    return compiled(mlp(30, 2)), (x, y)


@mistake("tiny_inputs")
def images_scaled_twice():
    x, y = digits()
    return compiled(mlp()), (x / 255, y)


@mistake("constant_columns")
def constant_column():
    x, y = linear_data()
    x[:, 4] = 1.5
    return compiled(mlp(8, 1), "mse"), (x, y)


@mistake("constant_columns")
def empty_column_of_a_frame():
    pandas = pytest.importorskip("pandas")
    x, y = linear_data()
    frame = pandas.DataFrame(x.numpy(), columns=list("abcdefgh"))
    frame["c"] = 0.0
    return compiled(mlp(8, 1), "mse"), (frame, y)


class FirstSample(Dataset):
    def __init__(self):
        self.x, self.y = digits()

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.x[0], self.y[index]


@mistake("identical_samples")
def dataset_that_ignores_its_index():
    return compiled(mlp()), (FirstSample(),)


class Buffer(FirstSample):
    """Batches of one buffer, which the next sample overwrites."""

    def __iter__(self):
        buffer = torch.zeros(1, 8, 8)
        for labels in self.y.split(32)[:20]:
            rows = [buffer.copy_(self.x[int(label)]) for label in labels]
            yield torch.stack(rows), labels


@mistake("identical_samples", also=("cannot_fit_batch",))
def buffer_that_is_overwritten():
    return compiled(mlp()), (list(Buffer()),)


class Unreadable(FirstSample):
    def __getitem__(self, index):
        raise OSError("file missing")


@mistake("training_step")
def dataset_that_raises():
    return compiled(mlp()), (Unreadable(),)


# Labels


@mistake("constant_targets")
def labels_all_zero():
    x, y = digits()
    return compiled(mlp()), (x, torch.zeros_like(y))


@mistake("unbalanced_labels")
def rare_class():
    x = torch.randn(1000, 8)
    y = torch.zeros(1000, dtype=torch.int64)
    y[:20] = 1
    return compiled(mlp(8, 2)), (x, y)


@mistake("unbalanced_labels")
def rare_positives():
    x, y = torch.randn(1000, 8), torch.zeros(1000, 1)
    y[:30] = 1
    return compiled(mlp(8, 1), "bce_with_logits"), (x, y)


@mistake("leaking_column")
def label_among_the_inputs():
    x, y = tumors()
    return compiled(mlp(31, 2)), (np.column_stack([scaled(x), y]), y)


@mistake("leaking_column")
def one_hot_label_among_the_inputs():
    x, y = digits()
    return compiled(mlp(74)), (torch.cat([x.flatten(1), F.one_hot(y, 10)], dim=1), y)


@mistake("leaking_column")
def multiple_of_the_target():
    x, y = linear_data()
    x[:, 2] = 2 * y[:, 0] - 1
    return compiled(mlp(8, 1), "mse"), (x, y)


@mistake("leaking_column")
def target_among_the_steps_of_a_series():
    x = torch.randn(200, 5, 2)
    return compiled(mlp(10, 1), "mse"), (x, x[:, 4, :1] * 2 + 1)


@mistake("unscaled_targets", "loss_at_start")
def targets_in_thousands():
    x, y = linear_data()
    return compiled(mlp(8, 1), "mse"), (x, 5000 * y + 200_000)


@mistake("loss_at_start")
def targets_far_from_zero():
    x, y = linear_data()
    return compiled(mlp(8, 1), "mse"), (x, y + 20)


# Order and sets


@mistake("sorted_samples")
def sorted_labels_without_shuffle():
    x, y = digits()
    order = y.argsort()
    return compiled(mlp()), (DataLoader(TensorDataset(x[order], y[order]), 32),)


@mistake("sorted_samples")
def sorted_list_of_batches():
    x, y = digits()
    order = y.argsort()
    return compiled(mlp()), (list(zip(x[order].split(32), y[order].split(32), strict=True)),)


class Loaded(FirstSample):
    def __getitem__(self, index):
        return self.x[index], int(self.y.sort().values[index])


@mistake("sorted_samples")
def sorted_dataset_without_known_labels():
    return compiled(mlp()), (DataLoader(Loaded(), 32),)


@mistake("sorted_samples")
def sorted_targets_of_a_regression():
    x, y = linear_data()
    order = y[:, 0].argsort()
    return compiled(mlp(8, 1), "mse"), (x[order], y[order]), {"shuffle": False}


@mistake("shared_samples")
def validation_in_training():
    x, y = digits()
    return compiled(mlp()), (x, y), {"validation_data": (x[:300], y[:300])}


@mistake("shared_samples")
def some_validation_samples_in_training():
    x, y = linear_data(400)
    return compiled(mlp(8, 1), "mse"), (x[:300], y[:300]), {"validation_data": (x[280:], y[280:])}


@mistake("shared_samples")
def duplicates_before_the_split():
    x, y = (torch.cat([part, part]) for part in digits())
    order = torch.randperm(len(x))
    train, val = order[:3000], order[3000:]
    return compiled(mlp()), (x[train], y[train]), {"validation_data": (x[val], y[val])}


@mistake("shared_samples")
def training_loader_as_validation():
    loader = DataLoader(TensorDataset(*digits()), 32, shuffle=True)
    return compiled(mlp()), (loader,), {"validation_data": loader}


# Layers


@mistake("untrained_parameters")
def layer_outside_the_optimizer():
    net = mlp()
    return compiled(net, optimizer=torch.optim.Adam(net[1].parameters())), digits()


@mistake("unregistered_parameters", also=("cannot_fit_batch",))
def layers_in_a_list():
    layers = [nn.Linear(64, 32), nn.Linear(32, 32)]
    net = Function(lambda net, x: net.head(layers[1](layers[0](x.flatten(1)).relu()).relu()), head=nn.Linear(32, 10))
    return compiled(net), digits()


@mistake("unused_layers")
def unused_layer():
    net = Function(lambda net, x: net.body(x), body=mlp(), second=nn.Linear(10, 10))
    return compiled(net), digits()


@mistake("detached_layers")
def detached_features():
    net = Function(lambda net, x: net.head(net.body(x).detach().relu()), body=mlp(64, 32), head=nn.Linear(32, 10))
    return compiled(net), digits()


@mistake("detached_layers")
def features_through_numpy():
    def forward(net, x):
        features = torch.from_numpy(net.body(x).detach().numpy()).relu()
        return net.head(features)

    return compiled(Function(forward, body=mlp(64, 32), head=nn.Linear(32, 10))), digits()


@mistake("training_step")
def outputs_detached():
    return compiled(Function(lambda net, x: net.body(x).detach(), body=mlp())), digits()


@mistake("dead_units", also=("constant_outputs", "cannot_fit_batch"))
def dead_relu():
    net = mlp()
    nn.init.constant_(net[1].bias, -100.0)
    return compiled(net), digits()


@mistake("linear_layers")
def no_activation():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Dropout(0.1), nn.Linear(64, 10))
    return compiled(net), digits()


@mistake("linear_layers")
def normalization_without_activation():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 10))
    return compiled(net), digits()


@mistake("linear_layers")
def convolutions_without_activation():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    return compiled(net), digits()


@mistake("idle_activations")
def activation_is_not_called():
    net = Function(
        lambda net, x: net.second(net.norm(net.first(x.flatten(1)))),
        first=nn.Linear(64, 32), norm=nn.LayerNorm(32), relu=nn.ReLU(), second=nn.Linear(32, 10),
    )  # fmt: skip
    return compiled(net), digits()


@mistake("equal_weights", also=("constant_outputs", "dead_units", "cannot_fit_batch"))
def weights_of_zero():
    net = mlp()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return compiled(net), digits()


@mistake("equal_weights")
def weights_of_one_value():
    net = mlp()
    nn.init.constant_(net[1].weight, 0.01)
    return compiled(net), digits()


def normalized():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


@mistake("small_batches")
def tiny_batches():
    return compiled(normalized()), digits(), {"batch_size": 4}


@mistake("small_batches")
def last_batch_of_one_sample():
    x, y = digits()
    return compiled(normalized()), (x[:129], y[:129])


@mistake("layers_in_eval_mode")
def normalization_in_eval_mode():
    net = normalized()
    net[2].eval()
    return compiled(net), digits()


@mistake("high_dropout")
def keep_probability_as_dropout():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.95), nn.Linear(64, 10))
    return compiled(net), digits()


# Outputs


@mistake("double_activation")
def softmax_before_cross_entropy():
    return compiled(nn.Sequential(mlp(), nn.Softmax(1))), digits()


@mistake("double_activation")
def softmax_of_pixels_before_cross_entropy():
    x, _ = digits()
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1), nn.Softmax(1))
    return compiled(net), (x, (x[:, 0] > 0.5).long())


@mistake("double_activation")
def sigmoid_before_bce_with_logits():
    x, y = tumors()
    net = nn.Sequential(mlp(30, 1), nn.Sigmoid())
    return compiled(net, "bce_with_logits"), (scaled(x), y.astype(np.float32)[:, None])


@mistake("double_activation")
def relu_before_cross_entropy():
    return compiled(nn.Sequential(mlp(), nn.ReLU())), digits()


@mistake("double_activation")
def logits_for_nll():
    return compiled(mlp(), "nll"), digits()


@mistake("constant_outputs", also=("cannot_fit_batch", "mixed_samples"))
def mean_over_the_batch():
    net = Function(lambda net, x: net.body(x).mean(0, keepdim=True).expand(len(x), -1), body=mlp())
    return compiled(net), digits()


@mistake("output_range", also=("cannot_fit_batch",))
def tanh_for_large_targets():
    x, y = linear_data()
    return compiled(nn.Sequential(mlp(8, 1), nn.Tanh()), "mse"), (x, 3 * y)


@mistake("output_range", also=("cannot_fit_batch",))
def relu_for_negative_targets():
    x, y = linear_data()
    return compiled(nn.Sequential(mlp(8, 1), nn.ReLU()), "mse"), (x, y)


@mistake("mixed_samples")
def mean_of_the_batch_subtracted():
    net = Function(lambda net, x: net.body(x - x.mean(0)), body=mlp())
    return compiled(net), digits()


@mistake("mixed_samples")
def lstm_without_batch_first():
    x, y = digits()
    return compiled(Reading(batch_first=False)), (x[:, 0], y)


@mistake("softmax_over_samples", also=("mixed_samples",))
def attention_over_samples():
    net = Function(lambda net, x: net.head(net.body(x) * net.score(x.flatten(1)).softmax(0)),
                   body=mlp(64, 32), score=nn.Linear(64, 32), head=nn.Linear(32, 10))  # fmt: skip
    return compiled(net), digits(), {}


@mistake("fixed_batch_size")
def batch_size_in_forward():
    x, y = digits()
    return compiled(Function(lambda net, x: net.body(x.view(32, 64)), body=mlp())), (x, y)


@mistake("dropout_in_eval_mode")
def dropout_without_training():
    net = Function(
        lambda net, x: net.head(F.dropout(net.body(x).relu(), 0.3)), body=mlp(64, 32), head=nn.Linear(32, 10)
    )
    return compiled(net), digits()


@mistake("evaluation_gap")
def running_statistics_that_stay():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32, momentum=0.0), nn.ReLU(), nn.Linear(32, 10))
    nn.init.constant_(net[1].bias, 5.0)
    model = compiled(net, lr=0.01)
    model.fit(*digits(), epochs=3, verbose=0)
    return model, digits()


@mistake("saturated_layers", "vanishing_gradients", also=("cannot_fit_batch",))
def large_weights_before_tanh():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    nn.init.normal_(net[1].weight, std=100.0)
    return compiled(net), digits()


@mistake("saturated_outputs", "loss_at_start")
def large_last_layer():
    net = mlp()
    nn.init.normal_(net[3].weight, std=100.0)
    return compiled(net), digits()


@mistake("training_step")
def labels_from_1():
    x, y = digits()
    return compiled(mlp()), (x, y + 1)


@mistake("training_step")
def wrong_width():
    return compiled(mlp(inputs=32)), digits()


@mistake("other_warnings", also=("cannot_fit_batch",))
def broadcast_in_a_custom_loss():
    x, y = linear_data()
    return compiled(mlp(8, 1), lambda y_pred, y: (y_pred - y).square().mean()), (x, y[:, 0])


# Gradients


@mistake("vanishing_gradients", also=("cannot_fit_batch", "constant_outputs"))
def ten_sigmoid_layers():
    layers = [layer for _ in range(10) for layer in (nn.Linear(64, 64), nn.Sigmoid())]
    return compiled(nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))), digits()


@mistake("exploding_gradients", "loss_at_start")
def large_weights_in_many_layers():
    layers = [layer for _ in range(8) for layer in (nn.Linear(64, 64), nn.ReLU())]
    net = nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=1.0)
    return compiled(net), digits(), {}


@mistake("non_finite_gradients")
def root_of_zero():
    net = Function(lambda net, x: net.body(x) + (x.flatten(1)[:, :1] * net.scale.weight[0, 0]).sqrt(),
                   body=mlp(), scale=nn.Linear(1, 1))  # fmt: skip
    nn.init.ones_(net.scale.weight)
    x, y = digits()
    return compiled(net), (x * (x > 0.5), y), {}


@mistake("non_finite_outputs", "non_finite_gradients")
def logarithm_of_zero():
    net = Function(lambda net, x: net.head(torch.log(x.flatten(1))), head=nn.Linear(64, 10))
    return compiled(net), digits()


@mistake("zero_gradients")
def rounded_features():
    net = Function(lambda net, x: net.head((3 * net.body(x)).round()), body=mlp(64, 32), head=nn.Linear(32, 10))
    return compiled(net), digits()


# Learning


@mistake("high_learning_rate")
def rate_of_1000():
    return compiled(mlp(), optimizer="sgd", lr=1000.0), digits()


@mistake("high_learning_rate")
def adam_with_a_rate_of_3():
    return compiled(mlp(), lr=3.0), digits()


@mistake("low_learning_rate")
def adam_with_a_rate_of_a_millionth():
    return compiled(mlp(), lr=3e-7), digits()


@mistake("low_learning_rate")
def rate_of_a_billionth():
    return compiled(mlp(), optimizer="sgd", lr=1e-9), digits()


@mistake("cannot_fit_batch", "constant_outputs")
def inputs_are_lost():
    net = Function(lambda net, x: net.body(1e-9 * x), body=mlp())
    return compiled(net), digits()


@mistake("cannot_fit_batch")
def outputs_are_clipped():
    x, y = linear_data()
    return compiled(Function(lambda net, x: net.body(x).clamp(-0.01, 0.01), body=mlp(8, 1)), "mse"), (x, y)


@mistake("loss_at_start", "unscaled_targets")
def diabetes_without_scaling():
    x, y = load_diabetes(return_X_y=True)
    return compiled(mlp(10, 1), "mse"), (x, y.astype(np.float32))


@pytest.mark.parametrize(("program", "names", "also"), MISTAKES)
def test_planted_mistake_is_found(program, names, also):
    torch.manual_seed(0)
    model, data, *settings = program()
    report = model.check(*data, **(settings[0] if settings else {}))
    found = {finding.name for finding in report.problems}
    assert found & {*names}, report
    unrelated = [finding for finding in report.errors if finding.name not in (*names, *also)]
    assert not unrelated
    assert not [finding for finding in report if "could not run" in finding.message]


def test_the_fix_of_an_error_is_separate_from_its_message():
    net = nn.Sequential(nn.EmbeddingBag(50, 8), nn.Linear(8, 2))
    report = compiled(net).check(torch.full((40, 3), 55), torch.arange(40) % 2)
    assert report["training_step"].message.endswith("has rows 0 to 49, received indices from 55 to 55.")
    assert report["training_step"].fix == "Use num_embeddings=56, or renumber the indices."
    report = compiled(mlp(64, 1)).check(*digits())
    assert report["training_step"].fix.startswith("For two classes, use loss='bce_with_logits'")


def test_at_least_40_mistakes_are_planted():
    assert len(MISTAKES) >= 40


def test_all_columns_with_nan_are_counted():
    x = torch.randn(60, 4)
    x[:10, 1], x[10:30, 2], x[30:35, 3] = torch.nan, torch.nan, torch.inf
    model = easytorch.Model(nn.Linear(4, 2), device="cpu").compile("adam", "cross_entropy")
    message = model.check(x, torch.arange(60) % 2)["non_finite_data"].message
    assert "35 of 60 samples" in message
    assert "column 1 and 2 other columns that are NaN or infinite" in message
