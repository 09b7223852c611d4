"""What scripts contain, and what they refuse."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import easytorch
from easytorch import Every, Model
from easytorch.callbacks import (
    EMA,
    Callback,
    CSVLogger,
    EarlyStopping,
    LambdaCallback,
    LearningRateScheduler,
    ModelCheckpoint,
)
from easytorch.scripts import Script
from tests.loops import blob_loader, blobs, mlp, same_weights
from tests.scripts.common_scripts import fit_and_script, run_script
from tests.scripts.test_matrix import TwoInputs, halve, per_sample

X, Y = blobs(40)
COMPILED: dict[str, Any] = {"optimizer": "adam", "loss": "cross_entropy", "metrics": ["accuracy"]}


def compiled_model(**options):
    return Model(mlp(), device="cpu").compile(**{**COMPILED, **options})


# The text


def test_a_script_is_text_that_prints_as_the_program(tmp_path, monkeypatch):
    script = compiled_model().to_script(X, Y, epochs=2)
    assert isinstance(script, (str, Script))
    assert repr(script) == str(script)
    assert script.startswith('"""Train Sequential for 2 epochs with Adam and CrossEntropyLoss."""\n')
    assert "import torch" in script._repr_html_()
    assert script.save(tmp_path / "train.py").read_text() == script


def test_a_script_has_only_what_is_in_use():
    short = compiled_model(metrics=[]).to_script(X, Y)
    assert len(short.splitlines()) <= 40
    words = ("evaluate", "clip", "autocast", "scheduler", "best", "device", "itertools", "Subset", "weights")
    assert not [word for word in words if word in short]
    stopping = EarlyStopping(patience=3, restore_best_weights=True)
    options = {"clip_grad_norm": 1.0, "gradient_accumulation_steps": 2, "scheduler": "warmup_cosine"}
    long = compiled_model(**options).to_script(X, Y, epochs=9, validation_split=0.2, callbacks=stopping)
    assert 60 <= len(long.splitlines()) <= 110
    assert max(map(len, long.splitlines())) <= 120


@pytest.mark.slow
def test_a_saved_script_runs_as_a_file(tmp_path):
    data = "net = nn.Linear(8, 3)\nx, y = torch.randn(40, 8), torch.arange(40) % 3\n"
    script = compiled_model().to_script(X, Y, epochs=2)
    program = script.replace("\nepochs = ", f"\n{data}\nepochs = ")
    path = tmp_path / "train.py"
    path.write_text(program)
    result = subprocess.run([sys.executable, "-I", path], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert re.findall(r"^Epoch (\d)/2  loss [\d.]+  accuracy [\d.]+$", result.stdout, re.M) == ["1", "2"]


def test_to_script_leaves_no_trace():
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    model, twin = Model(net, device="cpu").compile(**COMPILED), copy.deepcopy(net)
    loader = blob_loader(shuffle=True)
    sampler, state = loader.batch_sampler, torch.get_rng_state()
    model.to_script(loader, 3, validation_data=(X, Y))
    model.explain(loader, 3, validation_data=(X, Y))
    assert same_weights(net, twin)
    assert torch.equal(torch.get_rng_state(), state)
    assert loader.batch_sampler is sampler
    assert model.last_fit == {}
    assert model.state.step == 0
    assert net.training == twin.training


class Counting(Dataset):
    def __init__(self):
        self.reads, self.noise = 0, torch.Generator()

    def __len__(self):
        return 40

    def __getitem__(self, i):
        self.reads += 1
        return X[i] + torch.randn(8, generator=self.noise), Y[i]


class Consuming(Counting):
    def __init__(self):
        super().__init__()
        self.numbers = iter(range(1000))

    def __getitem__(self, i):
        next(self.numbers)
        return X[i], Y[i]


@pytest.mark.parametrize("method", ["to_script", "explain"])
def test_datasets_do_not_see_the_reads_of_a_description(method):
    data, validation = Counting(), Counting()
    model = compiled_model()
    state = data.noise.get_state()
    getattr(model, method)(DataLoader(data, 8, shuffle=True), epochs=2, validation_data=DataLoader(validation, 8))
    assert (data.reads, validation.reads) == (0, 0)
    assert torch.equal(data.noise.get_state(), state)
    model.fit(data, verbose=0)
    reads = data.reads
    getattr(model, method)()
    assert data.reads == reads


def test_iterators_in_the_data_are_not_read():
    model, data, calls = compiled_model(), Consuming(), []

    def batches():
        calls.append(1)
        yield X[:8], Y[:8]

    generator = batches()
    model.explain(data)
    assert next(data.numbers) == 0
    with pytest.raises(ValueError, match="first batch cannot be read in advance, Consuming"):
        model.to_script(data)
    assert next(data.numbers) == 1
    model.explain(batches, steps_per_epoch=1)
    assert not calls
    model.explain(generator)
    assert len(list(generator)) == 1
    with pytest.raises(ValueError, match=r"data of this kind: generator\. Pass arrays"):
        model.to_script(generator)


def test_an_epoch_of_ignored_labels_is_nan_as_in_fit():
    y = torch.full((40,), -100)
    for metrics in ([], ["accuracy"]):
        model = Model(mlp(), device="cpu").compile("sgd", "cross_entropy", metrics=metrics)
        twin = copy.deepcopy(model.module)
        with pytest.warns(UserWarning, match="every label of this pass is ignored"):
            history = model.fit(X, y, epochs=2, verbose=0)
        script = model.to_script()
        names, lines = run_script(script, net=twin, x=X, y=y)
        assert lines[1].startswith("Epoch 2/2  loss nan")
        for name in ("loss", *metrics):
            assert str(names[f"train_{name}"]) == str(history[name][-1]) == "nan"
        assert same_weights(model.module, twin)


# Programs of users


def test_frames_and_text_labels_have_a_script():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X.numpy(), columns=list("abcdefgh"))
    labels = pandas.Series([["cat", "dog", "eel"][i] for i in Y])
    validation = (frame[list("hgfedcba")][:15], labels[:15])
    names = {"x": frame, "y": labels, "x_val": validation[0], "y_val": validation[1]}
    options = {"epochs": 2, "validation_data": validation}
    script = fit_and_script(mlp(), COMPILED, (frame, labels), options, names)
    assert 'class_names = ["cat", "dog", "eel"]' in script
    numbers = frame["a"] * 2
    fit_and_script(
        mlp(8, 1), {"optimizer": "sgd", "loss": "mse"}, (frame, numbers), {"epochs": 2}, {"x": frame, "y": numbers}
    )


class Rows(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index].double(), int(Y[index])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def test_custom_datasets_and_streams_have_a_script():
    script = fit_and_script(mlp(), COMPILED, (Rows(),), {"epochs": 2}, {"train_data": Rows()})
    assert "inputs = inputs.float()" in script
    fit_and_script(mlp(), COMPILED, (Stream(),), {"epochs": 2}, {"train_data": Stream()})


def test_several_inputs_of_a_loader_are_arguments():
    samples = [((X[i], X[i] * 2), Y[i]) for i in range(len(X))]

    def loader():
        return DataLoader(samples, 8, shuffle=True)

    script = fit_and_script(TwoInputs(), COMPILED, (loader(),), {"epochs": 2}, {"train_loader": loader()})
    assert "net(*inputs)" in script


def test_weights_in_the_batches_of_a_loader_are_used():
    weights = torch.rand(40)

    def loader():
        return DataLoader(TensorDataset(X, Y, weights.double()), 8, shuffle=True)

    fit_and_script(mlp(), COMPILED, (loader(),), {"epochs": 2}, {"train_loader": loader()})


def test_a_loss_of_shares_with_class_weights_is_a_mean_of_samples():
    y = torch.nn.functional.one_hot(Y, 3) * 0.7 + 0.1
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]))
    compiled = {"optimizer": "adam", "loss": loss, "metrics": ["accuracy"], "gradient_accumulation_steps": 3}
    fit_and_script(mlp(), compiled, (X, y), {"batch_size": 8, "validation_split": 0.2}, {"x": X, "y": y})


def test_parts_in_eval_mode_stay_there():
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    net[1].eval().requires_grad_(False)
    options = {"epochs": 3, "validation_split": 0.2}
    script = fit_and_script(net, COMPILED, (X, Y), options, {"x": X, "y": Y})
    assert 'net.get_submodule("1").eval()  # frozen' in script


def test_an_optimizer_of_some_parameters_clips_these():
    net = mlp()
    net[0].requires_grad_(False)
    compiled = {"optimizer": lambda _: torch.optim.SGD(net[2].parameters(), lr=0.5), "clip_grad_norm": 0.01}
    script = fit_and_script(net, COMPILED | compiled, (X, Y), {"epochs": 2}, {"x": X, "y": Y})
    assert 'clip_grad_norm_(net.get_submodule("2").parameters(), 0.01)' in script
    frozen = mlp()
    frozen[0].requires_grad_(False)
    optimizer = torch.optim.Adam((p for p in frozen.parameters() if p.requires_grad), lr=0.01)
    model = Model(frozen, device="cpu").compile(optimizer, "cross_entropy")
    assert 'torch.optim.Adam(net.get_submodule("2").parameters(), lr=0.01)' in model.to_script(X, Y)


def loss(y_pred, y):
    return nn.functional.cross_entropy(y_pred, y)


def test_a_function_with_the_name_of_a_variable_is_renamed():
    compiled = {"optimizer": "sgd", "loss": loss}
    script = fit_and_script(mlp(), compiled, (X, Y), {"epochs": 2}, {"x": X, "y": Y, "loss_function": loss})
    assert "# loss_function = ...  # your loss: loss" in script
    compiled["loss"] = lambda y_pred, y: loss(y_pred, y) * 2
    fit_and_script(mlp(), compiled, (X, Y), {"epochs": 2}, {"x": X, "y": Y, "custom_loss": compiled["loss"]})


class Doubled(nn.CrossEntropyLoss):
    def forward(self, input, target):
        return 2 * super().forward(input, target)


def test_a_subclass_of_a_loss_is_called_by_name():
    compiled = {**COMPILED, "loss": Doubled(), "metrics": []}
    fit_and_script(mlp(), compiled, (X, Y), {"epochs": 2}, {"x": X, "y": Y, "Doubled": Doubled()})


class Bias(easytorch.Metric):
    name, mode = "bias", None

    def reset(self):
        self.total, self.count = 0.0, 0

    def update(self, y_pred, y, sample_weight=None):
        self.total, self.count = self.total + float(y_pred.sum()), self.count + len(y)

    def compute(self):
        return self.total / self.count


def test_metric_objects_are_updated_by_name():
    torchmetrics = pytest.importorskip("torchmetrics")
    f1 = torchmetrics.classification.MulticlassF1Score(3)
    names = {"x": X, "y": Y, "bias_metric": Bias(), "multiclass_f1_score_metric": copy.deepcopy(f1)}
    options = {"epochs": 2, "validation_split": 0.2}
    fit_and_script(mlp(), COMPILED | {"metrics": [Bias(), f1, "accuracy"]}, (X, Y), options, names)


class Notes(Callback):
    def __init__(self):
        self.lines = []

    def on_train_begin(self, logs=None):
        self.lines.append("start")

    def on_epoch_end(self, epoch, logs=None):
        self.lines.append((epoch, {name: value for name, value in logs.items() if name != "lr"}))


def test_a_custom_callback_is_called_by_name():
    notes, copied = Notes(), Notes()
    options = {"epochs": 2, "validation_split": 0.2, "callbacks": [notes]}
    fit_and_script(mlp(), COMPILED, (X, Y), options, {"x": X, "y": Y, "notes": copied})
    assert notes.lines == copied.lines
    assert len(notes.lines) == 3
    script = compiled_model().to_script(X, Y, callbacks=LambdaCallback(on_epoch_end=lambda epoch, logs: None))
    assert "lambda_callback.on_epoch_end(epoch, {" in script


def test_the_files_of_a_script_have_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    best = ModelCheckpoint("a/{epoch}-{val_loss:.3f}.pt", save_best_only=True, save_weights_only=True)
    last = ModelCheckpoint("last.pt", save_freq=Every(epochs=2))
    options = {"epochs": 3, "validation_split": 0.2, "callbacks": [best, last]}
    net, twin = mlp(), None
    twin = copy.deepcopy(net)
    model = Model(net, device="cpu").compile(**COMPILED)
    torch.manual_seed(3)
    model.fit(X, Y, verbose=0, **options)
    files = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.pt"))}
    weights = [torch.load(path, weights_only=True) for path in files]
    for path in files:
        path.unlink()
    torch.manual_seed(3)
    run_script(model.to_script(), net=twin, x=X, y=Y)
    assert sorted(tmp_path.rglob("*.pt")) == list(files)
    for path, content in zip(files, weights, strict=True):
        written = torch.load(path, weights_only=True)
        first, second = (each.get("module", each) for each in (content, written))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_function_of_the_epoch_sets_the_rate():
    options = {"epochs": 3, "callbacks": LearningRateScheduler(halve)}
    fit_and_script(mlp(), COMPILED | {"optimizer": "sgd"}, (X, Y), options, {"x": X, "y": Y, "halve": halve})


def decay(epoch, lr):
    return 0.5 * lr if epoch else lr


def test_a_function_of_the_epoch_and_the_rate_sets_the_rate():
    options = {"epochs": 3, "callbacks": LearningRateScheduler(decay)}
    fit_and_script(mlp(), COMPILED | {"optimizer": "sgd"}, (X, Y), options, {"x": X, "y": Y, "decay": decay})


def test_a_rate_for_groups_of_different_rates_is_refused():
    net = mlp()
    first, *others = net.parameters()
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": others, "lr": 0.01}])
    model = Model(net, device="cpu").compile(optimizer, "cross_entropy")
    with pytest.raises(ValueError, match="LearningRateScheduler with learning rates that differ"):
        model.to_script(X, Y, epochs=2, callbacks=[LearningRateScheduler(halve)])


def test_a_new_run_is_described_from_its_start():
    model = compiled_model(scheduler=lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.5))
    before = model.to_script(X, Y, epochs=2)
    model.fit(X, Y, epochs=2, verbose=0)
    assert model.to_script(X, Y, epochs=2) == before
    assert model.to_script() == before
    model.fit(X, Y, epochs=2, verbose=0)
    with pytest.raises(
        ValueError, match=r"the state of the optimizer after earlier updates.*Call compile\(\) before fit"
    ):
        model.to_script()
    assert model.to_script(X, Y, epochs=2) == before


def test_a_fit_after_another_compile_counts_its_epochs_on():
    net = mlp()
    model = Model(net, device="cpu").compile(**COMPILED)
    model.fit(X, Y, epochs=2, verbose=0)
    twin = copy.deepcopy(net)
    model.compile(**COMPILED).fit(X, Y, epochs=2, verbose=0)
    _, lines = run_script(model.to_script(), net=twin, x=X, y=Y)
    assert [line[:9] for line in lines] == ["Epoch 3/4", "Epoch 4/4"]


# Refusals


class CustomStep(Model):
    def train_step(self, batch):
        return super().train_step(batch)


def rename(function, name):
    function.__name__ = name
    return function


def generator():
    yield X[:8], Y[:8]


DATA = {"y": Y, "x": X}
REFUSALS: dict[str, tuple[dict[str, Any], tuple[Any, ...], dict[str, Any], str]] = {
    "EMA": ({}, (X, Y), {"callbacks": EMA()}, "the callback EMA"),
    "CSVLogger": ({}, (X, Y), {"callbacks": CSVLogger("log.csv")}, "the callback CSVLogger"),
    "resume": ({}, (X, Y), {"resume": "run"}, "the callback BackupAndRestore"),
    "several validation sets": ({}, (X, Y), {"validation_data": {"a": Rows(), "b": Rows()}}, "several validation data sets"),
    "validation between updates": (
        {}, (X, Y), {"validation_split": 0.2, "validation_freq": Every(updates=3)}, "validation between two updates"
    ),
    "split of a dataset": ({}, (Rows(),), {"validation_split": 0.2}, "validation_split of data that is not arrays"),
    "weights of a dataset": ({}, (Rows(),), {"sample_weight": torch.ones(40)}, "sample_weight for a dataset"),
    "generator": ({}, (generator(),), {}, "generator"),
    "columns": ({}, (DATA,), {}, "batches that are {'y'"),
    "lbfgs": ({"optimizer": "lbfgs"}, (X, Y), {}, "LBFGS, which needs a closure"),
    "several optimizers": ({"optimizer": {"0": "sgd", "2": "adam"}}, (X, Y), {}, "several optimizers"),
    "several losses": ({"loss": ["cross_entropy"], "metrics": []}, (X, Y), {}, "losses of several outputs"),
    "keras": ({"loss": "log_cosh", "metrics": []}, (X, X[:, :3]), {}, "the loss log_cosh of Keras"),
    "f1": ({"metrics": ["f1"]}, (X, Y), {}, "the metric 'f1'"),
    "lambda": (
        {"scheduler": easytorch.callbacks.LRScheduler(lambda o: lr_scheduler.LambdaLR(o, lambda n: 1.0), "epoch")},
        (X, Y), {}, "the function of LambdaLR, which has no name",
    ),
    "cyclic": (
        {"optimizer": "sgd", "scheduler": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1)}, (X, Y), {}, "the scheduler CyclicLR"
    ),
    "minutes": ({}, (X, Y), {"callbacks": ModelCheckpoint("a.pt", save_freq=5)}, "files between two epochs"),
    "keep": ({}, (X, Y), {"callbacks": ModelCheckpoint("{epoch}.pt", keep=2)}, "which deletes files"),
    "hook": ({}, (X, Y), {"callbacks": LambdaCallback(on_test_begin=print)}, "LambdaCallback.on_test_begin"),
    "arguments of the loss": (
        {"loss": lambda y_pred, y, x: y_pred.sum(), "metrics": []}, (X, Y), {}, r"the arguments of <lambda>"
    ),
    "pair": ({"loss": lambda y_pred, y: (y_pred.sum(), 3), "metrics": []}, (X, Y), {}, r"a loss that returns \(sum, count\)"),
    "two callbacks": ({}, (X, Y), {"callbacks": [Notes(), Notes()]}, "several objects with the name 'notes'"),
    "two functions": (
        {"loss": per_sample, "metrics": [rename(lambda y_pred, y: y_pred.sum(), "per_sample")]},
        (X, Y), {}, "two functions with the name",
    ),
    "weighted number": ({"loss": loss, "metrics": []}, (X, Y), {"sample_weight": torch.ones(40)}, "weights for loss"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_no_script_does_exactly_is_refused_by_name(name):
    options, data, fit, message = REFUSALS[name]
    model = compiled_model(**options)
    with pytest.raises(ValueError, match=message) as caught:
        model.to_script(*data, **fit)
    assert "cannot write" in str(caught.value)
    assert model.explain(*data, **fit).to_dict()


def test_a_custom_step_is_refused_by_name():
    model = CustomStep(mlp(), device="cpu").compile("sgd", "cross_entropy")
    for loss in ("cross_entropy", None):
        model.compile("sgd", loss)
        with pytest.raises(
            ValueError, match=r"cannot write CustomStep\.train_step, which overrides a method of the loop"
        ) as error:
            model.to_script(X, Y)
        # What follows from the custom step is not listed as if it were another problem.
        assert str(error.value).endswith("Write the loop around it by hand.")


def test_optimizer_hooks_are_refused():
    model = compiled_model()
    model.optimizer.register_step_pre_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"the hooks of torch\.optim\.Adam"):
        model.to_script(X, Y)


def test_a_model_without_a_fit_asks_for_data():
    with pytest.raises(ValueError, match=r"has no fit to describe.*model\.to_script\(x, y, epochs=5\)"):
        compiled_model().to_script()
    with pytest.raises(RuntimeError, match="needs a compiled model"):
        Model(mlp(), device="cpu").to_script(X, Y)
    with pytest.raises(RuntimeError, match="needs an optimizer"):
        Model(mlp(), device="cpu").compile(None, "cross_entropy").to_script(X, Y)


@pytest.mark.parametrize("method", ["to_script", "explain"])
def test_wrong_arguments_are_errors_as_in_fit(method):
    call = getattr(compiled_model(), method)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'epoch'.*'epochs'"):
        call(X, Y, epoch=3)
    with pytest.raises(ValueError, match="epochs must be a positive integer"):
        call(X, Y, epochs=0)
    with pytest.raises(ValueError, match="different lengths"):
        call(X, Y[:3])
    with pytest.raises(TypeError, match="may mean epochs or batch_size"):
        call(X, Y, 32)
    assert call(X, Y, 16, 3) == call(X, Y, batch_size=16, epochs=3) or method == "explain"


class OnePair(TwoInputs):
    def forward(self, pair):
        first, second = pair.values() if isinstance(pair, dict) else pair
        return super().forward(first, second)


@pytest.mark.parametrize(
    ("network", "inputs", "call"),
    [
        (TwoInputs, {"a": X, "b": X}, "net(**inputs)"),
        (TwoInputs, (X, X), "net(*inputs)"),
        (OnePair, {"left": X, "right": X}, "net(inputs)"),
        (OnePair, (X, X), "net(inputs)"),
    ],
)
def test_a_script_calls_the_module_with_several_inputs_as_fit(network, inputs, call):
    batches = [(inputs, Y)]
    script = fit_and_script(
        network(),
        COMPILED,
        (batches,),
        {"epochs": 2, "validation_data": batches},
        {"train_loader": batches, "val_loader": batches},
    )
    assert call in script
