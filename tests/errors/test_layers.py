"""Promise 4: errors state what was expected, what was received and the fix, and wrong input loses nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from tests.errors.common import BINARY, IMAGES, TwoInputs, X, Y, compiled, fit, refused
from tests.loops import Recurrent, mlp

# Modules


@pytest.mark.parametrize(
    ("net", "parts"),
    [
        (nn.Flatten(), ("no parameters", "Flatten", r"nn\.ModuleList", "optimizer=None")),
        (mlp().requires_grad_(False), ("frozen", "requires_grad=False", r"requires_grad_\(True\)")),
        (nn.Sequential(nn.LazyLinear(3)), ("lazy", "no shape yet", r"net\(x")),
    ],
    ids=["without parameters", "all frozen", "lazy"],
)
def test_an_untrainable_module_is_explained(net, parts):
    refused(lambda: compiled(net), *parts, kind=ValueError)


def test_a_module_frozen_after_compile_is_explained():
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
        (lambda: convolutional(1), IMAGES.squeeze(1), ("'0'", "Conv2d", "4 dimensions", "received 3", r"x\[:, None\]")),
        (Recurrent, torch.randn(10, 5, 3), ("'lstm'", "LSTM", "4 features", "received 3", "input_size=3")),
        (embedding, torch.full((10, 2), 8), ("'0'", "Embedding", "0 to 4", "to 8", "num_embeddings=9")),
        (embedding, torch.full((10, 2), -1), ("'0'", "Embedding", "rows 0 to 4", "from -1 to -1", "Renumber")),
        (embedding, torch.randn(10, 2), ("'0'", "Embedding", "float32", "expects integers", r"x\.long\(\)")),
        (lambda: nn.BatchNorm2d(8), X, ("BatchNorm2d", "expects 4D", "received 2D", r"Use nn\.BatchNorm1d\(8\)")),
        (lambda: nn.BatchNorm1d(64), IMAGES, ("BatchNorm1d", "received 4D", r"Add nn\.Flatten\(\) before it")),
        (
            lambda: nn.BatchNorm1d(1),
            IMAGES,
            ("BatchNorm1d", "expects 2D or 3D input", "received 4D", r"Use nn\.BatchNorm2d\(1\)"),
        ),
        (lambda: mlp(1), X[:, 0], ("one number", r"x\[:, None\]")),
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
        "BatchNorm2d after Flatten",
        "BatchNorm1d before Flatten",
        "BatchNorm1d of images",
        "Linear of single numbers",
        "Linear of uint8",
        "Linear of int64",
        "Conv2d of uint8",
    ],
)
@pytest.mark.parametrize("method", ["fit", "predict"])
def test_a_layer_that_does_not_fit_its_input_is_named(method, net, x, parts):
    run = {
        "fit": lambda: fit(compiled(net(), metrics=["accuracy"]), x, Y[: len(x)]),
        "predict": lambda: compiled(net()).predict(x, verbose=0),
    }
    refused(run[method], *parts, kind=(ValueError, TypeError, IndexError))


def test_a_state_stored_between_batches_must_be_detached():
    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head, self.state = nn.GRU(8, 4), nn.Linear(4, 3), None

        def forward(self, x):
            output, self.state = self.gru(x, self.state)
            return self.head(output)

    refused(lambda: fit(compiled(Stateful()), X, Y), "LSTM or GRU", r"state\.detach\(\)", kind=RuntimeError)


class Inner(nn.Module):
    """A module with one layer, which ``forward`` calls by a function."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, inputs):
        return self.call(self.layer, inputs)


def test_a_failing_call_inside_forward_keeps_its_error():
    net = Inner(nn.Linear(8, 3), lambda layer, inputs: layer(inputs["a"], 3))
    with pytest.raises(TypeError, match=r"takes 2 positional arguments but 3 were given$"):
        fit(compiled(net), {"a": X}, Y)


def test_one_row_of_doubles_is_reported_by_type_not_by_shape():
    net = Inner(nn.Linear(8, 3), lambda layer, x: layer(x[0].double()))
    message = refused(lambda: fit(compiled(net), X, Y), "'layer'", "Linear", "float64", kind=(ValueError, RuntimeError))
    assert "two dimensions" not in message


def test_doubles_in_a_padded_convolution_are_reported_by_type():
    net = Inner(nn.Conv2d(1, 4, 3, padding=1), lambda layer, x: layer(x.double()))
    message = refused(lambda: fit(compiled(net), torch.randn(50, 1, 2, 2), Y), "'layer'", "Conv2d", "float64")
    assert "larger than" not in message


def test_attention_with_a_wrong_width_is_named():
    net = Inner(nn.MultiheadAttention(6, 2), lambda layer, x: layer(x, x, x)[0])
    refused(lambda: fit(compiled(net), X, Y), "'layer'", "MultiheadAttention", r"\[32, 8\]", "6")


def test_an_assertion_of_the_module_stays_unchanged():
    def call(layer, x):
        assert x.shape[1] == 9, "nine features"

    with pytest.raises(AssertionError, match=r"^nine features"):
        fit(compiled(Inner(nn.Linear(9, 3), call)), X, Y)


def test_an_inner_layer_is_named_by_its_path():
    net = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(5, 3)))
    refused(lambda: fit(compiled(net), X, Y), r"'1\.2'", "Linear", "5 features", "received 6")


def test_a_batch_of_one_sample_for_batchnorm_gets_a_fix():
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
def test_wrong_inputs_are_reported_with_forward_arguments(net, x, parts):
    refused(lambda: fit(compiled(net()), x, Y), *parts, kind=TypeError)


# Modules that do not return a tensor with one row per sample


class Ending(nn.Module):
    """A linear layer, followed by a function."""

    def __init__(self, end, outputs=1):
        super().__init__()
        self.layer, self.end = nn.Linear(8, outputs), end

    def forward(self, x):
        return self.end(self.layer(x))


@pytest.mark.parametrize(
    "after", [nn.Linear(4, 3), nn.ReLU(), nn.Conv1d(4, 3, 1)], ids=lambda layer: type(layer).__name__
)
@pytest.mark.parametrize("method", ["fit", "predict"])
def test_a_layer_after_an_lstm_explains_its_tuple(after, method):
    model, x = compiled(nn.Sequential(nn.LSTM(8, 4, batch_first=True), after)), X[:, None]
    run = {"fit": lambda: fit(model, x, Y), "predict": lambda: model.predict(x, verbose=0)}
    refused(run[method], "Layer '1'", r"LSTM or GRU returns \(output, state\)", kind=TypeError)


def test_a_missing_return_before_a_layer_is_reported():
    net = nn.Sequential(Ending(lambda x: None), nn.Linear(1, 3))
    refused(lambda: fit(compiled(net), X, Y), "Layer '1'", "received nothing", "missing return", kind=TypeError)


@pytest.mark.parametrize(("loss", "metrics"), [("cross_entropy", ()), ("cross_entropy", ["accuracy"]), ("mse", ())])
def test_a_missing_return_in_forward_is_reported(loss, metrics):
    model = compiled(Ending(lambda x: None), loss, metrics=metrics)
    refused(lambda: fit(model, X, Y), "returned None", "missing return", kind=TypeError)
    refused(lambda: model.predict(X, verbose=0), "no outputs", "return", kind=TypeError)


@pytest.mark.parametrize(
    ("loss", "outputs", "y"), [("mse", 1, X[:, 0]), ("bce_with_logits", 1, BINARY), ("cross_entropy", 3, Y)]
)
def test_a_squeeze_of_a_batch_of_one_is_reported(loss, outputs, y):
    model = compiled(Ending(torch.squeeze, outputs), loss)
    refused(
        lambda: fit(model, X[:33], y[:33]), "batch of one sample", r"squeeze\(1\)", "drop_last=True", kind=ValueError
    )


def test_a_squeeze_of_validation_data_is_reported():
    model = compiled(Ending(torch.squeeze), "mse")
    refused(lambda: fit(model, X[:32], X[:32, 0], validation_data=(X[:1], X[:1, 0])), r"squeeze\(1\)", kind=ValueError)


def test_a_squeeze_is_reported_by_predict():
    refused(lambda: compiled(Ending(torch.squeeze)).predict(X[:33], verbose=0), r"batch of 1 ", r"squeeze\(1\)")


def test_forward_without_an_input_is_explained():
    class WithoutInput(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self):
            return self.layer(torch.ones(8))

    refused(
        lambda: fit(compiled(WithoutInput()), X, Y), r"^WithoutInput.forward takes no input", "forward\\(self, x\\)"
    )


class FileNames(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return f"{index}.png", index % 3


class Custom(nn.Module):
    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x):
        return self.function(self.layer, x)


@pytest.mark.parametrize(
    "net",
    [
        nn.Linear(8, 3),
        nn.Sequential(nn.Flatten(), nn.Linear(8, 3)),
        Custom(nn.Linear(8, 3), lambda layer, x: layer(x)),
        Custom(nn.Embedding(8, 3), lambda layer, x: layer(x)),
        Custom(nn.Linear(8, 3), lambda layer, x: layer(x.flatten(1))),
        Custom(nn.Linear(8, 3), lambda layer, x: layer(x / 255)),
    ],
    ids=["layer", "sequential", "module", "embedding", "method", "operator"],
)
def test_text_as_inputs_is_explained(net):
    refused(
        lambda: compiled(net).fit(FileNames(), shuffle=False, verbose=0),
        "inputs of a batch are text, '0.png'",
        "__getitem__",
        kind=TypeError,
    )


def test_a_module_that_takes_text_may_fail_for_another_reason():
    def fail(layer, x):
        raise TypeError("unknown word")

    refused(
        lambda: compiled(Custom(nn.Linear(8, 3), fail)).fit(FileNames(), verbose=0), "^unknown word$", kind=TypeError
    )


def test_a_module_may_take_text():
    def encode(layer, names):
        return layer(torch.tensor([[float(ord(name[0]))] * 8 for name in names]) / 255)

    compiled(Custom(nn.Linear(8, 3), encode)).fit(FileNames(), verbose=0)
