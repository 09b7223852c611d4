"""Several data sets in a validation, and validations in the middle of epochs."""

from __future__ import annotations

import contextlib
import os
import signal
import warnings

import pandas
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from easytorch import EMA, Every, Model
from easytorch.callbacks import (
    BackupAndRestore,
    Callback,
    CSVLogger,
    EarlyStopping,
    LambdaCallback,
    ModelCheckpoint,
    ReduceLROnPlateau,
)
from easytorch.data.data_sets import DataSets, as_data_sets
from tests.cases import slow_except
from tests.common_resume import CrashAfter, SimulatedCrash
from tests.loops import blobs, same_weights
from tests.many import run_ranks

X, Y = blobs(50)
ROWS = TensorDataset(X, Y)
CLEAN, NOISY = (X[:20], Y[:20]), (X[20:50] + 0.5, Y[20:50])


class Net(nn.Module):
    """Uses random numbers and running statistics."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 3))

    def forward(self, x):
        return self.layers(x)


def new_model(**options):
    torch.manual_seed(0)
    options = {"metrics": ["accuracy"], "lr": 0.1, **options}
    return Model(Net(), device="cpu").compile("sgd", "cross_entropy", **options)


def loader(rows=ROWS, shuffle=True):
    return DataLoader(rows, 8, shuffle=shuffle)


def fit(model=None, epochs=2, **options):
    options = {"validation_data": {"clean": CLEAN, "noisy": NOISY}, "verbose": 0, **options}
    model = new_model() if model is None else model
    model.fit(loader(), epochs, **options)
    return model


# Several data sets


def test_each_data_set_has_its_own_logs():
    model = fit()
    names = ["loss", "accuracy", "val_clean_loss", "val_clean_accuracy", "val_noisy_loss", "val_noisy_accuracy", "lr"]
    assert list(model.history) == names
    for name, data in (("clean", CLEAN), ("noisy", NOISY)):
        loss, accuracy = model.evaluate(*data, batch_size=8, verbose=0)
        assert model.history[f"val_{name}_loss"][-1] == pytest.approx(loss)
        assert model.history[f"val_{name}_accuracy"][-1] == accuracy


def test_weights_equal_a_loop_that_validates_on_both():
    model = fit(validation_data={"clean": loader(TensorDataset(*CLEAN)), "noisy": loader(TensorDataset(*NOISY))})
    torch.manual_seed(0)
    net = Net()
    optimizer, train_loader = torch.optim.SGD(net.parameters(), lr=0.1), loader()
    val_loaders = [loader(TensorDataset(*CLEAN)), loader(TensorDataset(*NOISY))]
    for _ in range(2):
        net.train()
        for x, y in train_loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            for val_loader in val_loaders:
                for x, _ in val_loader:
                    net(x)
    assert same_weights(model.module, net)


def test_one_data_set_in_a_dict_trains_as_without_the_dict():
    alone, named = fit(validation_data=CLEAN), fit(validation_data={"clean": CLEAN})
    assert same_weights(alone.module, named.module)
    assert alone.history["val_loss"] == named.history["val_clean_loss"]


def generate():
    yield from loader(TensorDataset(*CLEAN))


KINDS = {
    "loader": lambda: loader(TensorDataset(*CLEAN), shuffle=False),
    "dataset": lambda: TensorDataset(*CLEAN),
    "tuple": lambda: CLEAN,
    "arrays of NumPy": lambda: (CLEAN[0].numpy(), CLEAN[1].numpy()),
    "function": lambda: lambda: iter(loader(TensorDataset(*CLEAN), shuffle=False)),
    "list of batches": lambda: list(loader(TensorDataset(*CLEAN), shuffle=False)),
    "labels as lists": lambda: (CLEAN[0], CLEAN[1].tolist()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_set_may_be_of_any_kind(kind):
    history = fit(
        validation_data={"first": KINDS[kind](), "second": loader(TensorDataset(*CLEAN), shuffle=False)}
    ).history
    assert history["val_first_loss"] == pytest.approx(history["val_second_loss"])
    assert history["val_first_accuracy"] == history["val_second_accuracy"]


LOADER = loader()
MEANINGS = [
    ({"a": LOADER, "b": ROWS}, True),
    ({"a": CLEAN, "b": NOISY}, True),
    ({"a": CLEAN, "b": LOADER}, True),
    ({"a": generate, "b": CLEAN}, True),
    ({"a": {"x": X, "y": Y}, "b": LOADER}, True),
    ({"x": X, "y": Y}, False),
    ({"left": X, "right": X, "labels": Y}, False),
    ({"image": (X, X), "labels": (Y, Y)}, False),
    ({"x": (X, X), "other": (Y, Y)}, False),
    ({"key": (X, X), "other": (Y, Y)}, False),
    ({"image": (X, X), "other": Y}, False),
    ({"numbers": [1, 2, 3], "labels": [0, 1, 0]}, False),
]


@pytest.mark.parametrize(("data", "is_several"), MEANINGS)
def test_a_dict_is_one_data_set_or_several(data, is_several):
    result = as_data_sets(data, "validation_data", ("x",), {"key": X})
    assert isinstance(result, DataSets) == is_several
    assert list(result) == list(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": LOADER, "b": X}, "mixes columns and data sets: 'b' is a Tensor, and 'a' is a DataLoader"),
        ({"a": {"p": X, "q": Y}, "b": {"p": X, "q": Y}}, "may be columns of one data set or several data sets"),
        ({"a b": LOADER}, "must consist of letters, digits and underscores"),
        ({1: CLEAN}, "must consist of letters, digits and underscores"),
        ({"a": LOADER, "a_clean": LOADER}, "the name 'val_a_clean_loss'. Rename a data set"),
        (
            {"a": LOADER, "b": torch.utils.data.TensorDataset(X[:0], Y[:0])},
            r"In validation_data\['b'\]: The data is empty",
        ),
        ({"a": CLEAN, "b": (X[:, :3], Y)}, r"In validation_data\['b'\]"),
        ({"a": CLEAN, "b": None}, r"validation_data\['b'\] is None"),
        ([LOADER, LOADER], "name them: fit"),
    ],
)
def test_an_unclear_or_wrong_dict_is_an_error_before_training(data, message):
    model = new_model(metrics=[clean_loss]) if "a_clean" in data else new_model()
    with pytest.raises((ValueError, TypeError), match=message):
        fit(model, validation_data=data)
    assert model.state.step == 0


def clean_loss(y_pred, y):
    return (y_pred.argmax(1) == y).float().mean()


def test_callbacks_monitor_one_of_the_data_sets(tmp_path):
    stopping = EarlyStopping("val_noisy_accuracy", patience=9, restore_best_weights=True)
    best = ModelCheckpoint(tmp_path / "{epoch}-{val_clean_loss:.2f}.pt", "val_clean_loss", save_best_only=True)
    plateau = ReduceLROnPlateau("val_noisy_accuracy", patience=1, min_delta=9.0)
    model = fit(epochs=4, callbacks=[stopping, best, plateau])
    assert (stopping.direction, best.direction) == ("max", "min")
    assert (
        stopping.best
        == max(model.history["val_noisy_accuracy"])
        == model.history.best("val_noisy_accuracy")["val_noisy_accuracy"]
    )
    assert best.best == min(model.history["val_clean_loss"])
    assert model.history["lr"][-1] < 0.1


def test_the_name_of_no_data_set_is_refused_before_training():
    model = new_model()
    with pytest.raises(ValueError, match=r"monitors 'val_loss', which the logs will not contain.*'val_clean_loss'"):
        fit(model, callbacks=[EarlyStopping()])
    assert model.state.step == 0


def test_labels_that_are_text_have_numbers_in_every_data_set():
    names = ["cat", "dog", "eel"]
    text = [names[label] for label in Y.tolist()]
    model = new_model()
    data_sets = {"first": (X[:20], text[:20]), "second": (X, text)}
    model.fit(X, text, validation_data=data_sets, verbose=0)
    assert model.evaluate(data_sets, verbose=0).second_accuracy == model.history["val_second_accuracy"][-1]
    with pytest.raises(ValueError, match=r"In validation_data\['second'\]: .*'fox'"):
        model.fit(X, text, validation_data={"first": (X, text), "second": (X, ["fox"] * 50)}, verbose=0)


def test_evaluate_measures_each_data_set():
    model = fit()
    scores = model.evaluate({"clean": CLEAN, "noisy": loader(TensorDataset(*NOISY))}, verbose=0)
    assert scores.keys() == ["clean_loss", "clean_accuracy", "noisy_loss", "noisy_accuracy"]
    assert scores.noisy_loss == pytest.approx(model.evaluate(*NOISY, verbose=0).loss)
    again = model.evaluate(verbose=0)
    assert dict(again.items()) == pytest.approx(dict(scores.items()))
    with pytest.raises(ValueError, match="In x\\['noisy'\\]"):
        model.evaluate({"clean": CLEAN, "noisy": (X, Y[:3])}, verbose=0)


def test_a_dict_with_targets_is_one_data_set():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, batch):
            return self.layer(batch["pair"][0] + batch["pair"][1])

    model = Model(Pairs(), device="cpu").compile("sgd", "cross_entropy")
    assert model.evaluate({"pair": (X, X)}, Y, verbose=0).keys() == ["loss"]


def test_a_step_limit_holds_for_each_data_set():
    sizes = []
    count = LambdaCallback(on_test_batch_end=lambda batch, logs: sizes.append(batch))
    data_sets = {"clean": loader(TensorDataset(*CLEAN)), "noisy": loader(TensorDataset(*NOISY))}
    fit(epochs=1, validation_data=data_sets, validation_steps=2, callbacks=[count])
    assert sizes == [0, 1, 0, 1]


def test_an_exhausted_generator_ends_only_its_data_set():
    with pytest.warns(UserWarning, match="no validation after epoch 2"):
        model = fit(validation_data={"stream": generate(), "clean": loader(TensorDataset(*CLEAN))}, validation_steps=3)
    assert len(model.history["val_stream_loss"]) == 1
    assert len(model.history["val_clean_loss"]) == 2


def test_a_loss_that_is_not_finite_is_reported_for_each_data_set():
    broken = (X[:20] * float("inf"), Y[:20])
    with pytest.warns(UserWarning, match="'val_broken_loss' of epoch 1 is nan, but the training loss is finite"):
        fit(epochs=1, validation_data={"clean": CLEAN, "broken": DataLoader(TensorDataset(*broken), 8)})


def test_plots_show_the_data_sets_in_the_panel_of_training():
    figure = fit().history.plot()
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy"]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["training", "validation clean", "validation noisy"]


def test_plots_show_each_validation_between_updates():
    history = fit(**FREQUENT).history
    training, validation = history.plot("loss").axes[0].get_lines()
    assert training.get_xdata().tolist() == [1, 2]
    assert validation.get_xdata() == pytest.approx([3 / 7, 6 / 7, 9 / 7, 12 / 7])
    assert validation.get_ydata().tolist() == [row["val_loss"] for row in history.validations]


def test_log_files_have_columns_for_each_data_set(tmp_path):
    model = fit(callbacks=[CSVLogger(tmp_path / "log.csv")])
    frame = pandas.read_csv(tmp_path / "log.csv")
    assert frame["val_noisy_loss"].tolist() == pytest.approx(model.history["val_noisy_loss"])


class Interrupt(Callback):
    """Sends Ctrl-C in the evaluation batch with the number ``count``, over all evaluations."""

    def __init__(self, count):
        self.count = count

    def on_test_batch_begin(self, batch, logs=None):
        self.count -= 1
        if self.count == 0:
            os.kill(os.getpid(), signal.SIGINT)


def run(folder, *callbacks, epochs=2, save_freq=1, **options):
    """Run the program of a user from its first line. It knows only the folder of earlier runs."""
    options = {
        "validation_data": {"clean": loader(TensorDataset(*CLEAN)), "noisy": loader(TensorDataset(*NOISY))},
        **options,
    }
    model, ema = new_model(), EMA(0.9)
    stopping = EarlyStopping("loss", patience=9)
    backup = BackupAndRestore(folder, save_freq, delete_checkpoint=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(
            loader(), epochs, callbacks=[ema, stopping, backup, *callbacks], on_interrupt="return", verbose=0, **options
        )
    return model


def same_run(first, second):
    rows = (first.history.rows, first.history.validations)
    return same_weights(first.module, second.module) and rows == (second.history.rows, second.history.validations)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 7, 11, 14])
def test_a_run_stopped_in_any_data_set_resumes_exactly(count, tmp_path):
    expected = run(tmp_path / "a")
    assert run(tmp_path / "b", Interrupt(count)).history.interrupted
    assert same_run(run(tmp_path / "b"), expected)


# Validations between updates


FREQUENT = {"validation_freq": Every(updates=3), "validation_data": CLEAN}


def test_validations_follow_updates():
    history = fit(**FREQUENT).history
    assert [(row["epoch"], row["update"]) for row in history.validations] == [(0, 3), (0, 6), (1, 9), (1, 12)]
    assert history["val_loss"] == [history.validations[1]["val_loss"], history.validations[3]["val_loss"]]
    assert fit(validation_data=CLEAN).history.validations[-1].keys() == {"epoch", "update", "val_loss", "val_accuracy"}


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"precision": "bf16"}])
def test_weights_equal_a_loop_that_validates_between_updates(options):
    model, values = new_model(**options), []
    record = LambdaCallback(on_validation_end=lambda logs: values.append(logs["val_loss"]))
    fit(model, validation_freq=Every(updates=3), validation_data=loader(TensorDataset(*CLEAN)), callbacks=[record])
    torch.manual_seed(0)
    net = Net()
    dtype = torch.bfloat16 if options.get("precision") else None
    size = options.get("gradient_accumulation_steps", 1)
    optimizer, train_loader, val_loader = (
        torch.optim.SGD(net.parameters(), lr=0.1),
        loader(),
        loader(TensorDataset(*CLEAN)),
    )
    step, losses = 0, []
    for _ in range(2):
        batches = iter(train_loader)
        while window := [batch for _, batch in zip(range(size), batches, strict=False)]:
            net.train()
            total = sum(len(x) for x, _ in window)
            for x, y in window:
                with torch.autocast("cpu", dtype, enabled=dtype is not None):
                    loss = nn.functional.cross_entropy(net(x), y)
                (loss * (len(x) / total)).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % 3 == 0:
                net.eval()
                with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
                    pairs = [(nn.functional.cross_entropy(net(x), y).item(), len(x)) for x, y in val_loader]
                losses.append(sum(value * count for value, count in pairs) / 20)
    assert same_weights(model.module, net)
    assert values == pytest.approx(losses, rel=1e-6)


def test_training_metrics_are_those_without_validation():
    batches = list(loader(TensorDataset(*CLEAN), shuffle=False))
    plain, frequent = fit(validation_data=None, epochs=1), fit(epochs=1, **FREQUENT | {"validation_data": batches})
    assert same_weights(plain.module, frequent.module)
    assert plain.history["accuracy"] == frequent.history["accuracy"]
    assert frequent.module.training == plain.module.training


@pytest.mark.parametrize("crash", slow_except(range(1, 15), 2, 3, 9))
def test_a_run_stopped_after_any_update_resumes_exactly(crash, tmp_path):
    expected = run(tmp_path / "a", validation_freq=Every(updates=3))
    for save_freq in (1, 2):
        folder = tmp_path / str(save_freq)
        with pytest.raises(SimulatedCrash):
            run(folder, CrashAfter(crash), save_freq=save_freq, validation_freq=Every(updates=3))
        assert same_run(run(folder, save_freq=save_freq, validation_freq=Every(updates=3)), expected)


class CrashInValidation(Interrupt):
    """Raises ``SimulatedCrash`` in the evaluation batch with the number ``count``."""

    def on_test_batch_begin(self, batch, logs=None):
        self.count -= 1
        if self.count == 0:
            raise SimulatedCrash


@pytest.mark.parametrize("stop", [Interrupt, CrashInValidation])
@pytest.mark.parametrize("count", slow_except(range(1, 29, 3), 4, 13, 28))
def test_a_run_stopped_in_any_validation_resumes_exactly(stop, count, tmp_path):
    options = {"validation_freq": Every(updates=7 if count % 2 else 3)}
    expected = run(tmp_path / "a", **options)
    with contextlib.suppress(SimulatedCrash):
        run(tmp_path / "b", stop(count), **options)
    assert same_run(run(tmp_path / "b", **options), expected)


class FailOnce(Callback):
    """Fails in ``on_validation_end``, before or after other callbacks have seen the validation."""

    def __init__(self, priority):
        self.priority = priority

    def on_validation_end(self, logs=None):
        if self.model.state.step == 6:
            raise OSError("no disk")


@pytest.mark.parametrize("priority", [-5, 60])
def test_a_run_that_failed_after_a_validation_resumes_exactly(priority, tmp_path):
    options = {"validation_freq": Every(updates=3), "validation_data": CLEAN}
    expected = run(tmp_path / "a", EarlyStopping(patience=9), **options)
    with pytest.raises(OSError, match="no disk"):
        run(tmp_path / "b", EarlyStopping(patience=9), FailOnce(priority), **options)
    assert same_run(run(tmp_path / "b", EarlyStopping(patience=9), **options), expected)


class Scripted(Callback):
    """Replaces the validation loss by given values."""

    def __init__(self, *values):
        self.values = list(values)

    def on_validation_end(self, logs=None):
        logs["val_loss"] = self.values.pop(0)


def test_an_epoch_counts_when_its_last_update_is_validated():
    steps = len(loader())
    for updates in (1, steps):
        stopping = EarlyStopping(target=1e9, min_epochs=2)
        frequency = {"validation_freq": Every(updates=updates), "validation_data": CLEAN}
        model = fit(epochs=9, callbacks=[stopping], **frequency)
        assert (model.state.step, stopping.stopped_epoch) == (2 * steps, 1)


@pytest.mark.parametrize("has_length", [True, False])
@pytest.mark.parametrize("updates", [1, 2, len(loader())])
def test_min_epochs_delays_a_stop_to_the_end_of_an_epoch(updates, has_length):
    stopping = EarlyStopping(target=1e9, min_epochs=2)
    batches = list(loader())
    data = batches if has_length else lambda: iter(batches)
    model = Model(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy")
    frequency = {"validation_freq": Every(updates=updates), "validation_data": CLEAN}
    model.fit(data, epochs=9, callbacks=[stopping], verbose=0, **frequency)
    assert (model.state.step, stopping.stopped_epoch) == (2 * len(batches), 1)
    assert len(model.history.rows) == 2


def test_early_stopping_counts_validations():
    stopping = EarlyStopping(patience=2, restore_best_weights=True)
    model = fit(epochs=9, callbacks=[Scripted(3.0, 1.0, 2.0, 2.0, 0.0), stopping], **FREQUENT)
    assert model.state.step == 12
    assert (stopping.best, stopping.best_epoch, stopping.stopped_epoch) == (1.0, 0, 1)
    assert model.history.stop_reason == "val_loss did not improve for 2 validations"
    assert model.history.validations[-1]["val_loss"] == 2.0


def test_early_stopping_may_stop_in_the_first_epoch():
    model = fit(epochs=9, callbacks=[Scripted(1.0, 2.0), EarlyStopping()], **FREQUENT)
    assert model.state.step == 6
    assert len(model.history.rows) == 1


def test_early_stopping_restores_the_weights_of_a_validation():
    weights = []
    copy = LambdaCallback(on_validation_end=lambda logs: weights.append(model.module.layers[0].weight.clone()))
    model = new_model()
    stopping = EarlyStopping(patience=9, restore_best_weights=True)
    fit(model, callbacks=[Scripted(3.0, 1.0, 2.0, 2.0), copy, stopping], **FREQUENT)
    assert torch.equal(model.module.layers[0].weight, weights[1])


def test_the_best_model_of_all_validations_is_saved(tmp_path):
    best = ModelCheckpoint(tmp_path / "{epoch}-{batch}-{val_loss:.0f}.pt", save_best_only=True, keep=9)
    model = fit(callbacks=[Scripted(3.0, 1.0, 2.0, 0.0), best], **FREQUENT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-3-3.pt", "1-6-1.pt", "2-5-0.pt"]
    assert Model(Net(), device="cpu").load(best.best_path).history.validations == model.history.validations


def test_a_file_name_with_a_value_of_training_is_refused(tmp_path):
    best = ModelCheckpoint(tmp_path / "{loss:.2f}.pt", save_best_only=True)
    with pytest.raises(ValueError, match=r"contains 'loss', which has no value .* validations follow updates"):
        fit(callbacks=[best], **FREQUENT)


def test_the_learning_rate_is_reduced_after_validations():
    rates = []
    record = LambdaCallback(on_train_batch_end=lambda batch, logs: rates.append(model.optimizer.lr))
    model = new_model()
    fit(model, callbacks=[Scripted(1.0, 2.0, 2.0, 2.0), ReduceLROnPlateau(patience=2), record], **FREQUENT)
    assert rates == pytest.approx([0.1] * 9 + [0.01] * 5)


def test_the_best_value_is_that_of_a_validation(capsys):
    model = fit(callbacks=[Scripted(3.0, 1.0, 0.5, 2.0), EarlyStopping(patience=9)], **FREQUENT | {"verbose": 2})
    assert model.history.best("val_loss")["update"] == 9
    assert "best val_loss 0.5000 in epoch 2" in capsys.readouterr().out
    assert model.history.best("loss")["loss"] == min(model.history["loss"])


def test_values_of_training_are_still_monitored_after_epochs():
    stopping = EarlyStopping("accuracy", patience=2, min_delta=9.0)
    assert len(fit(epochs=9, callbacks=[stopping], **FREQUENT).history.rows) == 3


def test_an_epoch_without_a_validation_has_no_value():
    history = fit(epochs=3, validation_data=CLEAN, validation_freq=Every(updates=12)).history
    assert [("val_loss" in row) for row in history.rows] == [False, True, False]


def test_minutes_count_from_the_end_of_the_last_validation(monkeypatch):
    model = new_model()
    monkeypatch.setattr(model.strategy.control, "now", lambda: 60.0 * model.state.step, raising=False)
    history = fit(model, validation_data=CLEAN, validation_freq=Every(minutes=4)).history
    assert [row["update"] for row in history.validations] == [4, 9, 14]


def test_frequencies_in_epochs_are_those_of_plain_numbers():
    every, plain = (fit(epochs=4, validation_freq=freq).history for freq in (Every(epochs=2), 2))
    assert every.rows == plain.rows
    assert len(every["val_clean_loss"]) == 2


def test_a_generator_needs_a_number_of_steps_between_updates():
    with pytest.raises(ValueError, match="validation_data is a generator, which can be read only once"):
        fit(validation_freq=Every(updates=3), validation_data=generate(), epochs=1)
    history = fit(validation_freq=Every(updates=7), validation_data=generate(), validation_steps=1).history
    assert len(history.validations) == 2


def test_steps_without_validation_have_no_additional_calls():
    hooks = []
    record = LambdaCallback(on_train_begin=lambda logs: hooks.append(dict(model.callbacks._connected)))
    model = new_model()
    fit(model, callbacks=[record])
    names = {type(callback).__name__ for callback in hooks[0]["on_train_batch_end"] + hooks[0]["on_train_batch_begin"]}
    assert "Validation" not in names
    assert "StopAfter" not in names


# Several processes


def plain_model(strategy, dtype=torch.float64):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    return Model(net, device="cpu").compile("sgd", "cross_entropy", metrics=["accuracy"], lr=0.1, strategy=strategy)


def validate_between_updates(strategy, size):
    model = plain_model(strategy)
    data_sets = {name: (x.double(), y) for name, (x, y) in (("clean", CLEAN), ("noisy", NOISY))}
    stopping = EarlyStopping("val_noisy_loss", patience=1, min_delta=9.0)
    model.fit(
        X.double(), Y, batch_size=size, epochs=3, shuffle=False, validation_data=data_sets, verbose=0, callbacks=[stopping],
        validation_freq=Every(updates=2),
    )  # fmt: skip
    weights = model.strategy.checkpoints.gather(model.module.state_dict())
    scores = model.evaluate(data_sets, verbose=0)
    return weights, model.history.validations, model.history.stop_reason, dict(scores.items())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_validate_at_the_updates_of_one(strategy):
    weights, validations, reason, scores = validate_between_updates("one", 12)
    assert [row["update"] for row in validations] == [2, 4]
    for other in run_ranks(validate_between_updates, strategy, 6):
        assert all(torch.allclose(other[0][name], value, rtol=1e-10) for name, value in weights.items())
        assert [row.keys() for row in other[1]] == [row.keys() for row in validations]
        for row, expected in zip(other[1], validations, strict=True):
            assert row == pytest.approx(expected, rel=1e-10)
        assert other[2] == reason == "val_noisy_loss did not improve for 1 validation"
        assert other[3] == pytest.approx(scores, rel=1e-10)


def stop_one_rank(strategy):
    model = plain_model(strategy)

    def stop(logs):
        model.stop_training |= model.strategy.group.rank == 1 and model.state.step == 4

    model.fit(
        X.double(), Y, batch_size=6, epochs=3, validation_data=(X.double(), Y), validation_freq=Every(updates=2), verbose=0,
        callbacks=[LambdaCallback(on_validation_end=stop)],
    )  # fmt: skip
    return model.state.step


def test_all_ranks_stop_after_the_validation_that_stops_one():
    assert run_ranks(stop_one_rank, "ddp") == [4, 4]


class CrashInValidationAfter(CrashAfter):
    """Raises ``SimulatedCrash`` on all ranks in the validation after the update ``step``."""

    def on_train_batch_end(self, batch, logs=None):
        pass

    def on_test_batch_begin(self, batch, logs=None):
        if self.model.state.step == self.step:
            raise SimulatedCrash


def resume_ranks(folder, strategy):
    def start(name, crash=None):
        model = plain_model(strategy)
        backup = BackupAndRestore(folder / name, save_freq=1, delete_checkpoint=False)
        callbacks = [backup, EarlyStopping("val_b_loss", patience=9), *([crash] if crash else [])]
        try:
            model.fit(
                DataLoader(TensorDataset(X.double(), Y), 6, shuffle=True), 2, callbacks=callbacks, verbose=0,
                validation_data={"a": (X.double(), Y), "b": (X[:20].double(), Y[:20])}, validation_freq=Every(updates=2),
            )  # fmt: skip
        except SimulatedCrash:
            return None
        return (
            model.strategy.checkpoints.gather(model.module.state_dict()),
            model.history.validations,
            model.history.rows,
        )

    expected, results = start("expected"), []
    for crash in (CrashAfter(2), CrashAfter(5), CrashInValidationAfter(2), CrashInValidationAfter(8)):
        name = f"{type(crash).__name__}-{crash.step}"
        assert start(name, crash) is None
        results.append(start(name))
    return expected, results


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_ranks_resume_exactly_around_validations(strategy, tmp_path):
    for expected, results in run_ranks(resume_ranks, tmp_path, strategy):
        for weights, validations, rows in results:
            assert all(torch.equal(weights[name], value) for name, value in expected[0].items())
            assert (validations, rows) == expected[1:]
