"""Promise 4: every error says what was expected, what was received and what to do, and bad input loses nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.errors.common import BINARY, IMAGES, TwoInputs, X, Y, compiled, fit, refused
from tests.loops import mlp


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


# Modules


@pytest.mark.parametrize(
    ("net", "parts"),
    [
        (nn.Flatten(), ("no parameters", "Flatten", r"nn\.ModuleList", "optimizer=None")),
        (mlp().requires_grad_(False), ("frozen", "requires_grad=False", "Unfreeze")),
        (nn.Sequential(nn.LazyLinear(3)), ("lazy", "no shape yet", r"net\(x")),
    ],
    ids=["without parameters", "all frozen", "lazy"],
)
def test_a_module_that_cannot_be_trained_says_why(net, parts):
    refused(lambda: compiled(net), *parts, kind=ValueError)


def test_a_module_that_was_frozen_after_compile_says_so():
    model = compiled()
    model.module.requires_grad_(False)
    refused(lambda: fit(model, X, Y), "no gradient", "frozen", kind=ValueError)


def convolutional(channels):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(144, 3))


def embedding():
    return nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("net", "x", "parts"),
    [
        (lambda: mlp(9), X, ("'0'", "Linear", "9 features", "received 8", "in_features=8")),
        (lambda: mlp(64), IMAGES, ("'0'", "Linear", "64 features", "received 8", r"nn\.Flatten")),
        (lambda: convolutional(3), IMAGES, ("'0'", "Conv2d", "3 channels", "received 1", "in_channels=1")),
        (lambda: convolutional(3), IMAGES.expand(-1, 3, -1, -1).movedim(1, -1), ("'0'", "Conv2d", "channels are last")),
        (lambda: convolutional(1), IMAGES.squeeze(1), ("'0'", "Conv2d", "4 dimensions", "received 3", "unsqueeze")),
        (Recurrent, torch.randn(10, 5, 3), ("'lstm'", "LSTM", "4 features", "received 3", "input_size=3")),
        (embedding, torch.full((10, 2), 8), ("'0'", "Embedding", "0 to 4", "to 8", "num_embeddings=9")),
        (embedding, torch.full((10, 2), -1), ("'0'", "Embedding", "down to -1", "rows count from 0", "Renumber")),
        (embedding, torch.randn(10, 2), ("'0'", "Embedding", "float32", "whole numbers", r"x\.long\(\)")),
        (lambda: nn.BatchNorm2d(8), X, ("BatchNorm2d", "got 2D", r"Use nn\.BatchNorm1d\(8\)")),
        (lambda: nn.BatchNorm1d(64), IMAGES, ("BatchNorm1d", "got 4D", r"Put nn\.Flatten\(\) before it")),
        (lambda: nn.BatchNorm1d(1), IMAGES, ("BatchNorm1d", "got 4D", r"Use nn\.BatchNorm2d\(1\)")),
        (lambda: mlp(1), X[:, 0], ("one", r"x\[:, None\]")),
        (mlp, X.mul(9).byte(), ("'0'", "Linear", "uint8", "float32", r"x\.float\(\)")),
        (mlp, X.mul(9).long(), ("'0'", "Linear", "int64", "float32", r"x\.float\(\)")),
        (lambda: convolutional(1), IMAGES.byte(), ("'0'", "Conv2d", "uint8", r"x\.float\(\)")),
    ],
    ids=[
        "Linear",
        "Linear on an image",
        "Conv2d channels",
        "Conv2d channels last",
        "Conv2d without a channel",
        "LSTM",
        "Embedding out of range",
        "Embedding of negative numbers",
        "Embedding of floats",
        "BatchNorm2d behind Flatten",
        "BatchNorm1d before Flatten",
        "BatchNorm1d of images",
        "Linear of single numbers",
        "Linear of uint8",
        "Linear of int64",
        "Conv2d of uint8",
    ],
)
@pytest.mark.parametrize("verb", ["fit", "predict"])
def test_a_layer_that_does_not_fit_its_input_is_named(verb, net, x, parts):
    run = {
        "fit": lambda: fit(compiled(net(), metrics=["accuracy"]), x, Y[: len(x)]),
        "predict": lambda: compiled(net()).predict(x, verbose=0),
    }
    refused(run[verb], *parts, kind=(ValueError, TypeError, IndexError))


def test_a_state_that_is_kept_from_batch_to_batch_is_told_to_be_detached():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head, self.state = nn.GRU(8, 4), nn.Linear(4, 3), None

        def forward(self, x):
            output, self.state = self.gru(x, self.state)
            return self.head(output)

    refused(lambda: fit(compiled(Keeping()), X, Y), "LSTM or GRU", r"state\.detach\(\)", kind=RuntimeError)


class Inner(nn.Module):
    """A module with one part, to be called by ``forward`` in a way of its own."""

    def __init__(self, part, call):
        super().__init__()
        self.part, self.call = part, call

    def forward(self, inputs):
        return self.call(self.part, inputs)


def test_a_call_inside_forward_that_fails_is_not_taken_for_that_of_forward():
    net = Inner(nn.Linear(8, 3), lambda part, inputs: part(inputs["a"], 3))
    with pytest.raises(TypeError, match=r"takes 2 positional arguments but 3 were given$"):
        fit(compiled(net), {"a": X}, Y)


def test_a_layer_of_floats_with_one_row_of_doubles_is_told_of_its_type_and_not_of_its_shape():
    net = Inner(nn.Linear(8, 3), lambda part, x: part(x[0].double()))
    told = refused(lambda: fit(compiled(net), X, Y), "'part'", "Linear", "float64", kind=(ValueError, RuntimeError))
    assert "rows of features" not in told


def test_a_convolution_of_doubles_that_its_padding_saves_is_not_told_of_its_kernel():
    net = Inner(nn.Conv2d(1, 4, 3, padding=1), lambda part, x: part(x.double()))
    told = refused(lambda: fit(compiled(net), torch.randn(50, 1, 2, 2), Y), "'part'", "Conv2d", "float64")
    assert "larger than what is left" not in told


def test_attention_of_another_width_is_named():
    net = Inner(nn.MultiheadAttention(6, 2), lambda part, x: part(x, x, x)[0])
    refused(lambda: fit(compiled(net), X, Y), "'part'", "MultiheadAttention", r"\[32, 8\]", "6")


def test_an_assertion_of_ones_own_stays_what_it_is():
    def call(part, x):
        assert x.shape[1] == 9, "nine features"

    with pytest.raises(AssertionError, match=r"^nine features"):
        fit(compiled(Inner(nn.Linear(9, 3), call)), X, Y)


def test_an_inner_layer_is_named_by_its_path():
    net = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(5, 3)))
    refused(lambda: fit(compiled(net), X, Y), r"'1\.2'", "Linear", "5 features", "received 6")


def test_a_batch_of_one_sample_for_batchnorm_says_what_to_do():
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    refused(lambda: fit(compiled(net), X[:9], Y[:9], batch_size=8), "'1'", "BatchNorm", "one sample", "drop_last")


@pytest.mark.parametrize(
    ("net", "x", "parts"),
    [
        (TwoInputs, X, ("TwoInputs", "'left', 'right'", r"float32 \[")),
        (TwoInputs, (X, X, X), ("TwoInputs", "'left', 'right'", r"float32 \[")),
        (TwoInputs, {"left": X, "write": X}, ("TwoInputs", "'left', 'right'", "'write'")),
        (mlp, (X, X), ("Sequential", "'input'", r"\(float32 \[")),
        (mlp, {"a": X, "b": X}, ("Sequential", "'input'", "'a': float32")),
    ],
    ids=["one of two", "three of two", "other names", "two of one", "a dict for one"],
)
def test_a_batch_that_forward_does_not_take_is_told_with_its_arguments(net, x, parts):
    refused(lambda: fit(compiled(net()), x, Y), *parts, kind=TypeError)


# Modules that return something else than a tensor of all rows


class Ending(nn.Module):
    """A linear layer whose output something happens to."""

    def __init__(self, end, outputs=1):
        super().__init__()
        self.layer, self.end = nn.Linear(8, outputs), end

    def forward(self, x):
        return self.end(self.layer(x))


@pytest.mark.parametrize(
    "after", [nn.Linear(4, 3), nn.ReLU(), nn.Conv1d(4, 3, 1)], ids=lambda layer: type(layer).__name__
)
@pytest.mark.parametrize("verb", ["fit", "predict"])
def test_a_layer_behind_an_lstm_is_told_what_that_returns(after, verb):
    model, x = compiled(nn.Sequential(nn.LSTM(8, 4, batch_first=True), after)), X[:, None]
    run = {"fit": lambda: fit(model, x, Y), "predict": lambda: model.predict(x, verbose=0)}
    refused(run[verb], "Layer '1'", r"LSTM or GRU returns \(output, state\)", kind=TypeError)


def test_a_layer_behind_a_forward_without_return_is_told():
    net = nn.Sequential(Ending(lambda x: None), nn.Linear(1, 3))
    refused(lambda: fit(compiled(net), X, Y), "Layer '1'", "received nothing", "lack its return", kind=TypeError)


@pytest.mark.parametrize(("loss", "metrics"), [("cross_entropy", ()), ("cross_entropy", ["accuracy"]), ("mse", ())])
def test_a_forward_without_return_is_told(loss, metrics):
    model = compiled(Ending(lambda x: None), loss, metrics=metrics)
    refused(lambda: fit(model, X, Y), "returned None", "lack a return", kind=TypeError)
    refused(lambda: model.predict(X, verbose=0), "no outputs", "return", kind=TypeError)


@pytest.mark.parametrize(
    ("loss", "outputs", "y"), [("mse", 1, X[:, 0]), ("bce_with_logits", 1, BINARY), ("cross_entropy", 3, Y)]
)
def test_a_squeeze_that_drops_the_dimension_of_a_batch_of_one_is_told(loss, outputs, y):
    model = compiled(Ending(torch.squeeze, outputs), loss)
    refused(
        lambda: fit(model, X[:33], y[:33]), "batch of one sample", r"squeeze\(1\)", "drop_last=True", kind=ValueError
    )


def test_a_squeeze_that_fails_on_the_validation_data_is_told():
    model = compiled(Ending(torch.squeeze), "mse")
    refused(lambda: fit(model, X[:32], X[:32, 0], validation_data=(X[:1], X[:1, 0])), r"squeeze\(1\)", kind=ValueError)


def test_a_squeeze_is_told_by_predict_too():
    refused(lambda: compiled(Ending(torch.squeeze)).predict(X[:33], verbose=0), r"batch of 1 ", r"squeeze\(1\)")
