"""Mistakes on purpose: the message states what is wrong and what to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from easytorch import EarlyStopping, LambdaCallback, Model, ModelCheckpoint, TerminateOnNaN, data
from easytorch.callbacks.advice import WarnOnNonFiniteLoss
from easytorch.callbacks.base import CallbackList
from tests.loops import blobs, mlp
from tests.usability.common_answers import Row, check

X, Y = blobs(48)
NUMBERS = X[:, :1] * 0.1
BINARY = (Y > 0).float()[:, None]
IMAGES, DIGITS = torch.rand(16, 1, 28, 28), torch.arange(16) % 10
SEQUENCES = torch.randn(48, 7, 8)
WITH_NAN = X.clone()
WITH_NAN[40, 3] = float("nan")


def net(inputs=8, outputs=3):
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, outputs))


def fit(module, *args, loss="cross_entropy", compiled=None, metrics=(), lr=None, **options):
    compiled = compiled or Model(module, device="cpu").compile("sgd", loss, metrics, lr=lr)
    return compiled.fit(*args, **({"verbose": 0} | options))


def fit_xy(module=None, **options):
    return fit(module or net(), X, Y, **options)


def predict(module, x):
    return Model(module, device="cpu").compile("sgd", "cross_entropy").predict(x, verbose=0)


def loader(*tensors, **options):
    return DataLoader(TensorDataset(*tensors), **({"batch_size": 16} | options))


def module(forward, init=None, base=nn.Module):
    """Return an object of a class with these methods."""

    def create_body(self):
        nn.Module.__init__(self)
        self.body = net()

    return type("Net", (base,), {"__init__": init or create_body, **({"forward": forward} if forward else {})})()


def image():
    pil = pytest.importorskip("PIL.Image")
    return pil.fromarray(np.zeros((28, 28), dtype="uint8"))


class Images(Dataset):
    """A dataset of images without a transform."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return image(), 0


class LSTM(nn.Module):
    def __init__(self, with_state=False):
        super().__init__()
        self.lstm, self.head, self.with_state = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3), with_state

    def forward(self, x):
        output = self.lstm(x)
        return self.head(output if self.with_state else output[0])


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = [nn.Linear(8, 8)], nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layers[0](x))


def samples():
    yield from zip(X, Y, strict=True)


def wrong_optimizer():
    return Model(net()).compile(torch.optim.SGD(net().parameters(), lr=0.1), "cross_entropy")


def frozen():
    return Model(net().requires_grad_(False)).compile("sgd", "cross_entropy")


def without_init(self):
    self.scale = 2


# The 58 mistakes of the survey.
SURVEY = [
    Row("image to Linear(784)", lambda: fit(net(784, 10), IMAGES, DIGITS),
        r"Put nn\.Flatten\(\) before it: 1 x 28 x 28 = 784\.$"),
    Row("image to Linear(28)", lambda: fit(net(28, 10), IMAGES, DIGITS),
        r"\[16, 1, 28, 10\].*Put nn\.Flatten\(\) before the first"),
    Row("image to Linear(100)", lambda: fit(net(100, 10), IMAGES, DIGITS), r"in_features=784: 1 x 28 x 28 = 784"),
    Row("wrong flat size", lambda: fit(nn.Sequential(nn.Flatten(), net(100, 10)), IMAGES, DIGITS), r"Use in_features=784"),
    Row("channels last", lambda: fit(nn.Conv2d(3, 3, 1), torch.rand(4, 8, 8, 3), DIGITS[:4]), r"movedim\(-1, 1\)"),
    Row("uint8 images", lambda: fit(nn.Conv2d(1, 3, 1), (IMAGES * 255).byte(), DIGITS), "Divide images by 255"),
    Row("gray without channel", lambda: fit(nn.Conv2d(1, 3, 1), IMAGES[:, 0], DIGITS), "Add the channel dimension"),
    Row("no batch dimension", lambda: predict(nn.Sequential(nn.Flatten(), net(784)), IMAGES[0, 0]), r"x\[None\]"),
    Row("labels from 1", lambda: fit(net(), X, Y + 1), "start at 0. Use y - 1"),
    Row("too many labels", lambda: fit(net(outputs=2), X, Y), "Give the last layer 3 outputs"),
    Row("float labels", lambda: fit(net(), X, Y + 0.5), "not integers.*loss='mse'"),
    Row("no compile: fit", lambda: Model(net()).fit(X, Y), r"Call model\.compile"),
    Row("no compile: evaluate", lambda: Model(net()).evaluate(X, Y), r"Call model\.compile"),
    Row("loss typo", lambda: fit_xy(loss="cross_entrpy"), "Did you mean 'cross_entropy'"),
    Row("metric typo", lambda: fit_xy(metrics=["acuracy"]), "Did you mean 'accuracy'"),
    Row("optimizer typo", lambda: Model(net()).compile("adm", "mse"), "Did you mean 'adam'"),
    Row("empty loader", lambda: fit(net(), loader(X[:3], Y[:3], drop_last=True)), "data is empty.*drop_last"),
    Row("empty arrays", lambda: fit(net(), X[:0], Y[:0]), "data is empty.*Check how it was read"),
    Row("lengths differ", lambda: fit(net(), X, Y[:40]), r"one row per sample"),
    Row("no targets", lambda: fit(net(), X), r"needs targets.*Pass \(x, y\)"),
    Row("softmax before cross-entropy", lambda: fit_xy(nn.Sequential(net(), nn.Softmax(1))), "Remove the softmax"),
    Row("sigmoid before its own", lambda: fit(nn.Sequential(net(outputs=1), nn.Sigmoid()), X, BINARY, loss="bce_with_logits"),
        "Remove the sigmoid"),
    Row("ReLU at the end", lambda: fit_xy(nn.Sequential(nn.Linear(8, 3), nn.ReLU())), "Remove the last ReLU"),
    Row("logits to bce", lambda: fit(net(outputs=1), X * 9, BINARY, loss="bce"), "Use loss='bce_with_logits'"),
    Row("logits to nll", lambda: fit_xy(loss="nll"), "LogSoftmax"),
    Row("one output with cross-entropy", lambda: fit(net(outputs=1), X, Y * 0), "use loss='bce_with_logits'"),
    Row("class labels to mse", lambda: fit_xy(loss="mse"), "use loss='cross_entropy'"),
    Row("ints to Linear", lambda: fit(net(), X.long(), Y), r"Pass x\.float\(\)"),
    Row("floats to Embedding", lambda: fit(nn.Embedding(9, 3), X[:, 0], Y), r"Pass x\.long\(\)"),
    Row("Embedding out of range", lambda: fit(nn.Embedding(9, 3), torch.arange(48), Y), "Use num_embeddings=|renumber"),
    Row("LSTM's tuple", lambda: fit(LSTM(with_state=True), SEQUENCES, Y), r"output, _ = self\.lstm\(x\)"),
    Row("LSTM, last step", lambda: fit(LSTM(), SEQUENCES, Y), r"output\[:, -1\]"),
    Row("forward without return", lambda: fit_xy(module(lambda self, x: None)), "Add the missing return statement"),
    Row("layers in a list", lambda: Model(Plain()), r"Use nn\.ModuleList"),
    Row("class instead of object", lambda: Model(Plain.__base__), "Create an object of the class first"),
    Row("wrong size in the middle", lambda: fit_xy(nn.Sequential(nn.Linear(8, 8), nn.Linear(9, 3))),
        "Layer '1'.*Use in_features=8"),
    Row("detach", lambda: fit_xy(module(lambda self, x: self.body(x).detach())), r"remove \.detach\(\)"),
    Row("argmax in forward", lambda: fit_xy(module(lambda self, x: self.body(x).argmax(1))), "Remove argmax from forward"),
    Row("everything frozen", frozen, "requires_grad_"),
    Row("optimizer of another net", wrong_optimizer, "Create the optimizer from the parameters of the module"),
    Row("val_loss without validation", lambda: fit_xy(callbacks=[EarlyStopping("val_loss")]), "Pass validation_data"),
    Row("BatchNorm with one sample", lambda: fit(nn.Sequential(nn.BatchNorm1d(8), net()), X[:1], Y[:1]),
        "Use another batch_size"),
    Row("PIL without transform", lambda: fit(net(), Images()), r"transform=torchvision\.transforms\.ToTensor\(\)"),
    Row("epochs 2.5", lambda: fit_xy(epochs=2.5), "Use epochs=3"),
    Row("loss that is no scalar", lambda: fit_xy(loss=lambda y_pred, target: "a"), "returned|not a tensor"),
    Row("shuffled loader to predict", lambda: predict(net(), loader(X, Y, shuffle=True)), "shuffle=False"),
    Row("NaN in arrays", lambda: fit(net(), WITH_NAN, Y), r"columns '3' \(1 rows\)\. Fill them"),
    Row("NaN in a loader", lambda: fit(net(), loader(WITH_NAN, Y)), "sample 40 of the data.*remove or fill"),
    Row("NaN in targets", lambda: fit(net(outputs=1), X, NUMBERS / 0 * 0, loss="mse"),
        "targets have values that are not finite"),
    Row("accuracy for a regression", lambda: fit(net(), X, NUMBERS, loss="mse", metrics=["accuracy"]),
        "Use 'mae', 'rmse' or 'r2'"),
    Row("narrow validation data", lambda: fit_xy(validation_data=(X[:, :5], Y)),
        r"^The validation data does not fit .*, but the training data does.*\[32, 8\] in training.*\[32, 5\] in validation"),
    Row("narrow training data", lambda: fit(net(), X[:, :5], Y, validation_data=(X, Y)), "^The training data does not fit"),
    Row("both data too narrow", lambda: fit(net(), X[:, :5], Y, validation_split=0.25), "^Layer '0'.*Use in_features=5"),
    Row("images without Flatten, validated", lambda: fit(net(784, 10), IMAGES, DIGITS, validation_data=(IMAGES, DIGITS)),
        r"^Layer '0'.*Put nn\.Flatten\(\) before it"),
    Row("x and y swapped", lambda: fit(net(), Y, X), "Are x and y swapped"),
    Row("x and y swapped, regression", lambda: fit(net(outputs=1), NUMBERS, X, loss="mse"), "Are x and y swapped"),
    Row("x and y swapped, loader", lambda: fit(net(), loader(Y, X)), "Are x and y swapped"),
    Row("loss in Keras' order", lambda: fit_xy(loss=lambda y, p: F.cross_entropy(p, y)), "Swap the arguments"),
    Row("loss in Keras' order, other names", lambda: fit_xy(loss=lambda a, b: F.cross_entropy(b, a)), "Swap the arguments"),
    Row("metric in Keras' order", lambda: fit_xy(metrics=[lambda a, b: (b.argmax(1) == a).float()]), "Swap the arguments"),
    Row("no forward", lambda: fit_xy(module(None)), r"^Net has no forward\(\)\. Define forward\(self, x\)"),
    Row("no super().__init__()", lambda: Model(module(lambda self, x: x, init=without_init)),
        r"does not call super\(\)\.__init__"),
    Row("learning rate far too high", lambda: fit_xy(lr=1e30, batch_size=4), r"Use a lower learning rate than lr=1e\+30"),
    Row("list of samples", lambda: fit(net(), list(zip(X, Y, strict=True))), r"Pass DataLoader\(samples"),
    Row("generator of samples", lambda: fit(net(), samples()), r"received single samples.*Pass DataLoader\(list\(samples\)"),
    Row("function of samples", lambda: fit(net(), samples), r"received single samples"),
    Row("generator of samples in NumPy", lambda: fit(net(), ((x.numpy(), y.numpy()) for x, y in samples())), "single samples"),
    Row("fit('train.csv')", lambda: fit(net(), "train.csv"), r"frame = pandas\.read_csv\('train\.csv'\)"),
    Row("evaluate('test.parquet')", lambda: Model(net()).compile("sgd", "mse").evaluate("test.parquet"), "read_parquet"),
    Row("predict('three.png')", lambda: predict(net(), "three.png"), r"to_tensor\(image\)\[None\]"),
    Row("predict(image)", lambda: predict(net(), image()), r"PIL image\. Convert it.*to_tensor"),
    Row("predict([image])", lambda: predict(net(), [image()]), r"PIL image\. Convert it.*to_tensor"),
    Row("fit([image], [0])", lambda: fit(net(), [image()], [0]), r"PIL image\. Convert it.*to_tensor"),
    Row("fit('folder')", lambda: fit(net(), "images/train"), "ImageFolder"),
    Row("inputs up to 1e6", lambda: fit(net(), X * 1e6, Y), r"The inputs go up to .* Scale the columns"),
    Row("stop_trainig", lambda: setattr(Model(net()), "stop_trainig", True), "Did you mean 'stop_training'"),
    Row("restore_best_weights='no'", lambda: EarlyStopping(restore_best_weights="no"), "must be True or False, received 'no'"),
    Row("summary(input_shape=)", lambda: Model(net()).summary(input_shape=(1, 8)), r"Use summary\(\(1, 20\)\)"),
]  # fmt: skip


@pytest.mark.parametrize("row", SURVEY, ids=lambda row: row.name)
def test_mistake_is_answered(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(row)


# 30 more


class State(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.gru(x)[1])


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][-1])


class Samples(Dataset):
    def __init__(self, sample):
        self.sample = sample

    def __len__(self):
        return 32

    def __getitem__(self, index):
        return self.sample(index)


def fit_step(step):
    own = type("Own", (Model,), {"train_step": lambda self, batch: step(self, *batch)})
    return own(net(), device="cpu").compile("sgd", "cross_entropy").fit(loader(X, Y), verbose=0)


def compile_sgd(loss="cross_entropy", **options):
    return Model(net(), device="cpu").compile("sgd", loss, **options)


MORE = [
    Row("loss and optimizer swapped", lambda: Model(net()).compile("cross_entropy", "adam"),
        r"compile\('adam', 'cross_entropy'\)"),
    Row("kernel larger than the image", lambda: fit(nn.Conv2d(1, 3, 50), IMAGES, DIGITS), "a kernel of .* larger than"),
    Row("Flatten(0)", lambda: fit(nn.Sequential(net(), nn.Flatten(0)), X[:, :8], Y),
        r"Keep the first dimension.*nn\.Flatten\(0\)"),
    Row("view(-1, 6)", lambda: fit_xy(module(lambda self, x: self.body(x).view(-1, 6))),
        r"\[16, 6\] for a batch of 32 samples"),
    Row("Softmax(0)", lambda: fit_xy(nn.Sequential(net(), nn.Softmax(0))), r"Remove nn\.Softmax\(0\)"),
    Row("LogSoftmax(0)", lambda: fit_xy(nn.Sequential(net(), nn.LogSoftmax(0)), loss="nll"), r"by nn\.LogSoftmax\(1\)"),
    Row("LSTM without batch_first", lambda: fit(TimeFirst(), SEQUENCES, Y), "for a batch of 32 samples.*batch_first=True"),
    Row("state of a GRU", lambda: fit(State(), SEQUENCES, Y), r"h\[-1\]"),
    Row("LayerNorm", lambda: fit_xy(nn.Sequential(nn.LayerNorm(16), net())), r"Use nn\.LayerNorm\(8\)"),
    Row("attention", lambda: fit(nn.TransformerEncoderLayer(16, 2, batch_first=True), SEQUENCES, SEQUENCES, loss="mse"),
        r"Put nn\.Linear\(8, 16\) before it"),
    Row("BatchNorm2d of a table", lambda: fit_xy(nn.Sequential(nn.BatchNorm2d(8), net())), r"Use nn\.BatchNorm1d\(8\)"),
    Row("Conv1d, channels last", lambda: fit(nn.Conv1d(8, 3, 1), SEQUENCES, Y), r"movedim\(-1, 1\)"),
    Row("forward(x, y)", lambda: fit_xy(module(lambda self, x, y: self.body(x))), "remove its argument 'y'"),
    Row("forward returns NumPy", lambda: fit_xy(module(lambda self, x: self.body(x).detach().numpy())),
        r"remove .*\.numpy\(\)"),
    Row("forward returns one number", lambda: fit_xy(module(lambda self, x: self.body(x).mean())),
        r"Remove sum\(\) or mean\(\)"),
    Row("in-place operation", lambda: fit_xy(module(lambda self, x: self.body(x).exp().relu_())), "Replace operations such as"),
    Row("text labels in a dataset", lambda: fit(net(), Samples(lambda i: (X[i], "cat"))), "text, 'cat'.*class_names"),
    Row("None in a dataset", lambda: fit(net(), Samples(lambda i: None)), r"Return \(x, y\) from __getitem__"),
    Row("two columns of labels", lambda: fit(net(), X, torch.stack([Y, Y], 1)), "2 columns, but the module has 3 outputs"),
    Row("validation_split=(x, y)", lambda: fit_xy(validation_split=(X, Y)), r"received \(float32 \[48, 8\], int64 \[48\]\)"),
    Row("batch_size='32'", lambda: fit_xy(batch_size="32"), "Use batch_size=32, without quotes"),
    Row("lr='1e-3'", lambda: compile_sgd(lr="1e-3"), "received '1e-3'. Use a number"),
    Row("Model('resnet18')", lambda: Model("resnet18"), r"torchvision\.models\.resnet18\(\)"),
    Row("compile(nn.Linear)", lambda: Model(net()).compile(nn.Linear, "mse"),
        "Expected an optimizer.*Pass a name such as 'adam'"),
    Row("fit(net, x)", lambda: fit(net(), net(), X), "Expected data, received the module Sequential"),
    Row("callbacks='early_stopping'", lambda: fit_xy(callbacks="early_stopping"),
        "received 'early_stopping'.*Pass an instance"),
    Row("EarlyStopping(3)", lambda: EarlyStopping(3), "such as 'val_loss', received 3. Pass other arguments by name"),
    Row("summary of a wrong width", lambda: compile_sgd().summary(X[:, :5]), "^Layer '0'.*Use in_features=5"),
    Row("fit(loader, val_loader)", lambda: fit(net(), loader(X, Y), loader(X, Y)),
        r"pass fit\(first, validation_data=second\)"),
    Row("train_step returns a float", lambda: fit_step(lambda self, x, y: {"loss": self.loss(self(x), y).item()}),
        "not a tensor"),
    Row("validation_data='val.csv'", lambda: fit_xy(validation_data="val.csv"),
        r"In validation_data: .*read_csv\('val\.csv'\)"),
    Row("validation without targets", lambda: fit_xy(validation_data=X), r"^The validation data failed.*Pass \(x, y\)"),
    Row("validation x and y swapped", lambda: fit_xy(validation_data=(Y, X)), "^The validation data failed.*swapped"),
    Row("weights of another length", lambda: fit_xy(sample_weight=torch.ones(9)), "received 9 and 48 rows"),
    Row("outputs in a dict", lambda: fit_xy(module(lambda self, x: {"a": self.body(x), "b": self.body(x)})),
        "loss={'a': 'cross_entropy', 'b': ...}|loss={'a': 'cross_entropy'"),
    Row("text in an array of objects", lambda: fit(net(2), np.array([[1, 2.0], [3, "n/a"]], dtype=object), [0, 1]),
        "received 'n/a' in row 1, column 1"),
    Row("shuffle='yes'", lambda: fit_xy(shuffle="yes"), "shuffle must be True or False"),
]  # fmt: skip


@pytest.mark.parametrize("row", MORE, ids=lambda row: row.name)
def test_further_mistake_is_answered(row):
    check(row)


# Programs near a mistake that are right


NO_MISTAKES = [
    Row("inputs of 1e6 before a BatchNorm", lambda: fit(nn.Sequential(nn.BatchNorm1d(8), net()), X * 1e6, Y)),
    Row("images up to 255", lambda: fit(nn.Sequential(nn.Flatten(), net(784, 10)), IMAGES * 255, DIGITS, lr=1e-9)),
    Row("images of other sizes in validation", lambda: fit(
        nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), IMAGES, DIGITS,
        validation_data=(torch.rand(4, 1, 9, 9), DIGITS[:4]))),
    Row("targets of more dimensions", lambda: fit(nn.Linear(8, 8), X, X, loss="mse")),
    Row("a Linear over the last dimension", lambda: fit(nn.Linear(8, 8), SEQUENCES, SEQUENCES, loss="mse")),
    Row("a symmetric custom loss", lambda: fit(net(outputs=1), X, NUMBERS, loss=lambda a, b: (a - b).abs().mean())),
    Row("a list of one callback", lambda: fit_xy(callbacks=[LambdaCallback()])),
    Row("another attribute", lambda: setattr(Model(net()), "stop_words", ["a"])),
    Row("restore_best_weights=1", lambda: EarlyStopping(restore_best_weights=1)),
    Row("save_best_only of NumPy", lambda: ModelCheckpoint("m.pt", save_best_only=np.bool_(True))),
]  # fmt: skip


@pytest.mark.parametrize("row", NO_MISTAKES, ids=lambda row: row.name)
def test_a_right_program_gets_no_message(row):
    check(row)


def test_a_failing_module_is_unchanged_after_the_search_for_the_cause():
    module = nn.Sequential(nn.BatchNorm1d(8), net())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match="swapped"):
        fit(module, Y, X)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_a_loss_of_nan_is_reported_within_a_long_epoch(monkeypatch):
    monkeypatch.setattr(WarnOnNonFiniteLoss, "FIRST_SECONDS", 0.0)
    seen = []
    hook = LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(len(caught)))
    with pytest.warns(UserWarning, match=r"The loss after update \d+ of epoch 1 is nan.*lr=1e\+30") as caught:
        fit_xy(lr=1e30, batch_size=4, callbacks=[hook], epochs=2)
    assert seen == [1, 1]


def test_a_loss_is_not_read_within_an_epoch_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(WarnOnNonFiniteLoss, "FIRST_SECONDS", 0.0)
    check_loss, model = WarnOnNonFiniteLoss(), Model(net(), device="cpu").compile("sgd", "cross_entropy")
    model.device, model.callbacks = torch.device("meta"), CallbackList([check_loss], model, {})
    model.callbacks.on_train_begin({})
    model.callbacks.on_train_batch_end(0, {"loss": float("nan")})
    assert not check_loss.has_warned


def test_terminate_on_nan_reports_alone(monkeypatch):
    monkeypatch.setattr(WarnOnNonFiniteLoss, "FIRST_SECONDS", 0.0)
    with pytest.warns(UserWarning, match="not finite in update") as caught:
        fit_xy(lr=1e30, batch_size=4, callbacks=[TerminateOnNaN()])
    assert len(caught) == 1


def test_split_reports_the_name_of_a_file():
    with pytest.raises(TypeError, match="read_csv"):
        data.split("train.csv")


def test_a_custom_step_gets_no_hint_about_inputs():
    class Own(Model):
        def train_step(self, batch):
            x, y, _ = self.unpack(batch)
            return {"loss": self.loss(self(x / 1e6), y)}

    Own(mlp(), device="cpu").compile("sgd", "cross_entropy").fit(X * 1e6, Y, verbose=0)
