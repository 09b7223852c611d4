"""fit(dry_run=True): one batch of everything, and no trace."""

from __future__ import annotations

import os
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from easytorch import Model
from easytorch.callbacks import (
    EMA,
    Callback,
    CSVLogger,
    EarlyStopping,
    Every,
    Freeze,
    LambdaCallback,
    ModelCheckpoint,
    ReduceLROnPlateau,
    StopAfter,
)
from tests.distributed.common_ranks import attempt, both_fail, new_model, rank
from tests.loops import blobs
from tests.many import run_ranks

X, Y = blobs(60)
SEEN = []


class Counts(nn.Module):
    """Changes a buffer, a number, a list and a dict in each call, and registers a buffer late."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 3))
        self.calls, self.sizes, self.memory = 0, [], {"last": torch.zeros(3)}

    def forward(self, x):
        self.calls += 1
        self.sizes.append(len(x))
        y = self.layers(x) + self.memory["last"]
        self.memory["last"].add_(y.detach().mean(0))
        self.memory[self.calls] = random.random() + np.random.rand()
        if not hasattr(self, "late"):
            self.register_buffer("late", x.detach().mean(0)[:3])
        return y + self.late


class Records(Callback):
    """Has a list, a tensor, a generator and a custom object."""

    def __init__(self):
        self.losses, self.total, self.generator = [], torch.zeros(()), torch.Generator().manual_seed(3)

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])
        self.total += torch.rand((), generator=self.generator)
        self.last = batch


class Noisy(Dataset):
    """Draws numbers from its own generators, and counts its calls."""

    def __init__(self):
        self.generator, self.numpy, self.reads = torch.Generator().manual_seed(1), np.random.default_rng(1), 0

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        self.reads += 1
        noise = torch.randn(8, generator=self.generator) + float(self.numpy.normal())
        return X[index] + 0.1 * noise + 1e-3 * self.reads, Y[index]


class Stream(IterableDataset):
    """Starts where it stopped."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        for _ in range(len(X)):
            self.position = (self.position + 7) % len(X)
            yield X[self.position], Y[self.position]


DATA = {
    "tensors": lambda: DataLoader(TensorDataset(X, Y), 8, shuffle=True),
    "own generator": lambda: DataLoader(
        TensorDataset(X, Y), 8, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "dataset with generators": lambda: DataLoader(Noisy(), 8, shuffle=True),
    "stream": lambda: DataLoader(Stream(), 8),
    "batches": lambda: [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 60, 8)],
    "function": lambda: lambda: ((X[i : i + 8], Y[i : i + 8]) for i in range(0, 60, 8)),
    "workers": lambda: DataLoader(TensorDataset(X, Y), 8, shuffle=True, num_workers=1, persistent_workers=True),
}


def program(folder, dry, *, data="tensors", optimizer="adam", **options):
    """Run the program of a user, and return all that it can read at its end."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    SEEN.clear()
    closure = []
    net, records, ema = Counts(), Records(), EMA(0.9)
    model = Model(net, device="cpu").compile(optimizer, "cross_entropy", ["accuracy"], **options)
    model.counter = {"epochs": 0}

    def count(epoch, logs):
        model.counter["epochs"] += 1
        closure.append(logs["loss"])
        SEEN.append(logs["val_loss"])

    callbacks = [
        ema, records, EarlyStopping("val_loss", patience=9, restore_best_weights=True), CSVLogger(folder / "log.csv"),
        ModelCheckpoint(str(folder / "best-{epoch}.pt"), save_best_only=True, keep=1), LambdaCallback(on_epoch_end=count),
        Freeze("layers.0", until=1),
    ]  # fmt: skip
    train, validation = DATA[data](), DataLoader(TensorDataset(X, Y), 16, shuffle=True)
    records.loaders = [train, validation]
    arguments = {"epochs": 3, "validation_data": validation, "callbacks": callbacks, "resume": folder / "run"}
    if dry:
        before = sorted(os.listdir(folder))
        model.fit(train, **arguments, dry_run=True)
        assert sorted(os.listdir(folder)) == before
        assert not closure
        assert not SEEN
    model.fit(train, **arguments, verbose=0)
    return {
        "weights": dict(net.state_dict()), "average": dict(ema.average.module.state_dict()), "memory": net.memory,
        "counts": (net.calls, net.sizes, model.counter), "optimizer": model.optimizer.state_dict(),
        "callback": [records.losses, records.total, records.generator.get_state(), records.last],
        "logs": [dict(model.history.history), list(closure), list(SEEN)], "state": vars(model.state),
        "random": [random.random(), np.random.rand(), torch.rand(1)], "csv": (folder / "log.csv").read_text(),
        "files": sorted(path.name for path in folder.rglob("*")),
    }  # fmt: skip


def assert_equal(a, b, path=""):
    """Compare two trees bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_equal(left, right, f"{path}[{i}]")
    else:
        assert a == b, path


def compare(tmp_path, **options):
    results = []
    for dry in (False, True):
        folder = tmp_path / str(dry)
        folder.mkdir()
        results.append(program(folder, dry, **options))
    assert_equal(*results)


@pytest.mark.filterwarnings("ignore:.*cannot hold.*")
@pytest.mark.parametrize("data", DATA)
def test_a_run_after_a_dry_run_is_equal_bit_for_bit(tmp_path, data):
    compare(tmp_path, data=data)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "momentum": 0.9, "gradient_accumulation_steps": 3},
        {"precision": "bf16", "scheduler": "one_cycle"},
        {"optimizer": "adagrad", "clip_grad_norm": 0.1, "scheduler": "warmup_cosine"},
    ],
    ids=str,
)
def test_schedules_and_settings_start_again_after_a_dry_run(tmp_path, options):
    compare(tmp_path, **options)


def test_a_dry_run_leaves_no_trace_in_the_model(tmp_path):
    torch.manual_seed(0)
    net = Counts()
    net.layers[1].eval()
    net.layers[0].weight.requires_grad_(False)
    net.layers[0].bias.grad = torch.ones(16)
    model = Model(net, device="cpu").compile("adam", "cross_entropy", ["accuracy"])
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    attributes, random_state = dict(vars(model)), torch.get_rng_state()
    labels = np.array(["cat", "dog", "fox"])[Y.numpy()]
    history = model.fit(
        X.numpy(), labels, dry_run=True, validation_split=0.2, callbacks=[Freeze("layers.3")], verbose=0
    )
    assert_equal(dict(net.state_dict()), weights)
    assert vars(model) == attributes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not history.history
    assert model.class_names is None
    assert model.last_fit == {}
    assert not model.optimizer.state
    assert torch.equal(net.layers[0].bias.grad, torch.ones(16))
    assert [parameter.requires_grad for parameter in net.parameters()] == [False, True, True, True, True, True]
    assert net.training
    assert not net.layers[1].training
    assert (net.calls, net.sizes, len(net.memory), hasattr(net, "late")) == (0, [], 1, False)


def test_a_dry_run_prints_what_was_checked(tmp_path, capsys):
    model = Model(nn.Linear(8, 3), device="cpu").compile("adam", "cross_entropy")
    model.fit(X, Y, epochs=9, batch_size=8, validation_data=(X, Y), resume=tmp_path / "run", dry_run=True)
    out = capsys.readouterr().out
    assert out.startswith("Dry run passed: an update with 8 samples (")
    assert "a validation batch and checkpoints (0.0 MB)" in out
    assert out.endswith("Nothing was changed.\n")
    assert out.count("\n") == 1
    assert not (tmp_path / "run").exists()
    model.fit(X, Y, dry_run=True, verbose=0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("limit", [{"updates": 1}, {"minutes": 1e-9}])
def test_a_dry_run_is_not_ended_by_a_limit(limit, capsys):
    model = Model(nn.Linear(8, 3), device="cpu").compile("adam", "cross_entropy")
    model.fit(X, Y, batch_size=8, validation_data=(X, Y), callbacks=[StopAfter(**limit)], dry_run=True)
    assert "Dry run passed: an update with 8 samples (" in capsys.readouterr().out


def test_a_dry_run_has_one_update_and_one_validation_batch(tmp_path):
    calls = []
    hooks = {
        hook: lambda *_, hook=hook: calls.append(hook)
        for hook in ("on_train_batch_end", "on_test_batch_end", "on_epoch_end", "on_train_end", "on_epoch_begin")
    }
    counts = []

    class Recorder(Callback):
        def on_train_end(self, logs=None):
            counts.extend(calls)
            path.write_text("\n".join(calls))

    path = tmp_path / "calls"
    model = Model(nn.Linear(8, 3), device="cpu").compile("adam", "cross_entropy", gradient_accumulation_steps=2)
    model.fit(
        X, Y, epochs=9, batch_size=8, validation_data=(X, Y), validation_freq=4, dry_run=True, verbose=0,
        callbacks=[LambdaCallback(**hooks), Recorder()],
    )  # fmt: skip
    assert path.read_text().split() == [
        "on_epoch_begin", "on_train_batch_end", "on_test_batch_end", "on_epoch_end", "on_train_end",
    ]  # fmt: skip
    assert calls == counts == []  # lists that functions of the callbacks use are restored too


def test_a_rare_checkpoint_is_written_in_a_dry_run(tmp_path):
    class Unsaved(nn.Linear):
        """Its state is no problem until a checkpoint is written."""

        saved = False

        def state_dict(self, *args, **options):
            if self.saved:
                raise OSError("the disk is full")
            return super().state_dict(*args, **options)

    net = Unsaved(8, 3)
    model = Model(net, device="cpu").compile("adam", "cross_entropy")
    checkpoint = ModelCheckpoint(tmp_path / "{epoch}.pt", save_freq=Every(epochs=50))
    start = LambdaCallback(on_train_batch_begin=lambda *_: setattr(net, "saved", True))
    with pytest.warns(UserWarning, match="the disk is full"), pytest.raises(OSError, match="the disk is full"):
        model.fit(X, Y, epochs=100, callbacks=[checkpoint, start], dry_run=True)
    assert not net.saved
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_is_not_writable_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    model = Model(nn.Linear(8, 3), device="cpu").compile("adam", "cross_entropy")
    with pytest.raises(PermissionError):
        model.fit(X, Y, callbacks=[ModelCheckpoint(tmp_path / "a.pt")], dry_run=True)


def test_an_error_in_a_dry_run_leaves_no_trace(tmp_path):
    model = Model(Counts(), device="cpu").compile("adam", "cross_entropy")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    fail = LambdaCallback(on_epoch_end=lambda epoch, logs: logs["f1"])
    with pytest.raises(KeyError, match="f1"):
        model.fit(X, Y, callbacks=[fail, ReduceLROnPlateau("loss")], resume=tmp_path / "run", dry_run=True)
    assert_equal(dict(model.module.state_dict()), before)
    assert model.state.step == 0
    assert os.listdir(tmp_path) == []


def test_a_dry_run_resumes_but_does_not_change_the_run(tmp_path):
    def run(epochs, dry=False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 3))
        model = Model(net, device="cpu").compile("adam", "cross_entropy")
        options = {"validation_data": (X, Y), "batch_size": 8, "resume": folder, "verbose": 0}
        if dry:
            files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
            model.fit(X, Y, epochs=epochs, dry_run=True, **options)
            assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == files
            assert model.state.step == 0
        model.fit(X, Y, epochs=epochs, **options)
        return dict(model.module.state_dict())

    results = []
    for dry in (False, True):
        folder = tmp_path / str(dry)
        run(2)
        results.append(run(4, dry))
    assert_equal(*results)


def test_a_dry_run_of_a_complete_run_says_so(tmp_path, capsys):
    for _ in range(2):
        model = Model(nn.Linear(8, 3), device="cpu").compile("adam", "cross_entropy")
        model.fit(X, Y, resume=tmp_path / "run", verbose=0)
    model.fit(X, Y, initial_epoch=0, epochs=1, resume=tmp_path / "run", dry_run=True)
    assert capsys.readouterr().out.startswith("Dry run: no update was tried, because the run to resume is complete.")


def test_a_generator_that_can_be_read_once_is_refused():
    batches = ((X[i : i + 8], Y[i : i + 8]) for i in range(0, 60, 8))
    model = Model(nn.Linear(8, 3), device="cpu").compile("adam", "cross_entropy")
    with pytest.raises(ValueError, match=r"first batches of x, a generator.*Pass the function that creates it"):
        model.fit(batches, dry_run=True)
    with pytest.raises(ValueError, match="first batches of validation_data, a generator"):
        model.fit(X, Y, validation_data=batches, dry_run=True)
    assert len(list(batches)) == 8


class Hidden(IterableDataset):
    """Reads an iterator that its constructor has created."""

    def __init__(self):
        self.rows = iter(zip(X, Y, strict=True))

    def __iter__(self):
        return self.rows


def test_an_iterator_that_cannot_be_restored_is_refused():
    model = Model(nn.Linear(8, 3), device="cpu").compile("adam", "cross_entropy")
    dataset = Hidden()
    with pytest.raises(
        ValueError, match=r"cannot restore Hidden\.rows, of type zip.*Create the iterator where it is used"
    ):
        model.fit(DataLoader(dataset, 8), dry_run=True)
    assert len(list(dataset.rows)) == len(X)
    numbers = iter(range(100))
    callbacks = [LambdaCallback(on_epoch_end=lambda epoch, logs: next(numbers))]
    with pytest.raises(ValueError, match="a variable of <lambda>"):
        model.fit(X, Y, callbacks=callbacks, dry_run=True)
    with pytest.raises(TypeError, match="dry_run"):
        model.fit(X, Y, dry_run="yes")


class TwoOptimizers(Model):
    """Has a further optimizer, which a custom update steps, and a counter of the class."""

    count = 0

    def update(self, window):
        super().update(window)
        for x, _ in window:
            self.second.zero_grad()
            self.teacher(x).square().mean().backward()
            self.second.step()
        self.count += 1


def test_optimizers_and_networks_of_the_user_are_restored():
    results = []
    for dry in (False, True):
        torch.manual_seed(0)
        model = TwoOptimizers(nn.Linear(8, 3), device="cpu")
        model.teacher = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
        model.second = torch.optim.Adam(model.teacher.parameters(), lr=0.01)
        model.compile("adam", "cross_entropy")
        if dry:
            model.fit(X, Y, batch_size=8, dry_run=True, verbose=0)
            assert not model.second.state
        model.fit(X, Y, epochs=2, batch_size=8, verbose=0)
        results.append([dict(model.teacher.state_dict()), model.second.state_dict(), model.count])
    assert_equal(*results)


def test_a_dry_run_reports_nothing_to_a_study():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    from easytorch.callbacks import OptunaPruning

    trial = optuna.create_study().ask()
    model = Model(nn.Linear(8, 3), device="cpu").compile("adam", "cross_entropy")
    callbacks = [OptunaPruning(trial, "loss")]
    model.fit(X, Y, callbacks=callbacks, dry_run=True, verbose=0)
    assert trial.study.get_trials()[0].intermediate_values == {}
    model.fit(X, Y, callbacks=callbacks, verbose=0)
    assert list(trial.study.get_trials()[0].intermediate_values) == [0]


def test_the_import_of_the_progress_bar_draws_no_random_number(monkeypatch):
    from easytorch.callbacks.progress import progress_callbacks

    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    before = random.getstate()
    progress_callbacks("auto")
    assert "rich.style" in sys.modules
    assert random.getstate() == before


# Several processes


def rank_program(strategy, dry, folder):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.Linear(16, 3))
    model = Model(net, device="cpu").compile("adam", "cross_entropy", ["accuracy"], strategy=strategy)
    arguments = {"epochs": 2, "validation_data": (X, Y), "batch_size": 8, "resume": folder, "verbose": 0}
    if dry:
        model.fit(X, Y, **arguments, dry_run=True)
        assert not folder.exists()
        assert model.strategy.group.rank or os.listdir(folder.parent) == []
    model.fit(X, Y, **arguments)
    return model.evaluate(X, Y, verbose=0, return_dict=True), dict(model.history.history)


def disagree():
    return attempt(lambda: new_model().fit(X, Y, dry_run=rank() == 0, verbose=0))


@pytest.mark.distributed
def test_ranks_that_disagree_about_a_dry_run_fail():
    both_fail(run_ranks(disagree), "dry_run")


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_dry_run_of_two_processes_leaves_no_trace(tmp_path, strategy):
    results = []
    for dry in (False, True):
        (tmp_path / str(dry)).mkdir()
        results.append(run_ranks(rank_program, strategy, dry, tmp_path / str(dry) / "run"))
    assert_equal(*results)
