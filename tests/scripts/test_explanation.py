"""Sentences about what fit will do agree with what it does."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, TensorDataset, WeightedRandomSampler

from easytorch import Every, Model
from easytorch._utils import torch_private
from easytorch.callbacks import (
    CSVLogger,
    EarlyStopping,
    LambdaCallback,
    LearningRateScheduler,
    LivePlot,
    ModelCheckpoint,
    ReduceLROnPlateau,
    StopAfter,
    TensorBoard,
)
from tests.loops import blobs, mlp, same_weights, twins
from tests.scripts.test_matrix import MASK_WITH_HOLES, Pixels, draw, halve
from tests.scripts.test_scripts import CustomStep

X, Y = blobs(50)


def explain(compiled: dict[str, Any] | None = None, net: nn.Module | None = None, **options: Any) -> dict[str, str]:
    compiled = {"optimizer": "adam", "loss": "cross_entropy", **(compiled or {})}
    return Model(net or mlp(), device="cpu").compile(**compiled).explain(X, Y, **options).to_dict()


def test_an_explanation_prints_a_dozen_sentences():
    explanation = Model(mlp(), device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"]).explain(X, Y)
    lines = str(explanation).splitlines()
    assert 10 <= len(lines) <= 16
    assert repr(explanation) == str(explanation)
    assert list(explanation.to_dict().values()) == lines
    assert explanation._repr_html_().count("<tr>") == len(lines)


def test_without_arguments_the_sentences_are_about_compile():
    model = Model(mlp(), device="cpu").compile(
        "sgd", "cross_entropy", lr=0.5, scheduler="one_cycle", clip_grad_value=0.1
    )
    sentences = model.explain().sentences
    assert sentences["optimizer"] == "SGD updates 195 parameters with the learning rate 0.5."
    assert sentences["learning rate"] == "The schedule one_cycle changes the learning rate after each update."
    assert sentences["clipping"] == "Before each optimizer step, each gradient is clipped to 0.1."
    assert not {"data", "validation", "epochs", "files", "output"} & set(sentences)
    assert (
        Model(mlp(), device="cpu")
        .compile(None, "mse")
        .explain()
        .sentences["optimizer"]
        .startswith("There is no optimizer")
    )


def test_frozen_and_forgotten_parameters_are_counted():
    net = mlp()
    net[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(net[2].parameters(), lr=0.1)
    sentences = explain({"optimizer": optimizer}, net)
    assert sentences["module"] == "Sequential has 179 trainable parameters and 16 frozen ones."
    assert sentences["optimizer"].endswith(
        "No optimizer has the other 128 trainable parameters, which will not change."
    )


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        ("cross_entropy", "The loss of an update is the mean over all its samples."),
        (nn.CrossEntropyLoss(reduction="sum"), "It is a sum over all samples of an update, not a mean."),
        (
            nn.CrossEntropyLoss(weight=torch.ones(3)),
            "The loss of an update is the mean over its labels: it is divided by the sum of",
        ),
        (
            nn.CrossEntropyLoss(ignore_index=1),
            "The loss of an update is the mean over its labels that are not 1, which is ignored.",
        ),
    ],
)
def test_the_divisor_of_the_mean_is_named(loss, text):
    assert explain({"loss": loss})["mean"].startswith(text)


def test_ignored_labels_are_found_in_the_data():
    model = Model(Pixels(), device="cpu").compile("adam", "cross_entropy")
    assert "are not -100" in model.explain(draw(22, 1, 4, 4), MASK_WITH_HOLES).sentences["mean"]


def test_converted_targets_are_described():
    model = Model(mlp(8, 1), device="cpu").compile("adam", "bce_with_logits")
    text = model.explain(X, (Y > 0).long()).sentences["loss"]
    assert text.endswith("The targets are converted to the shape of the outputs and float32.")


def test_updates_are_counted_as_fit_makes_them():
    options = {"epochs": 3, "batch_size": 8}
    text = explain({"gradient_accumulation_steps": 3}, **options)
    assert text["updates"].endswith("An epoch has 3 updates, the last of 1 batch.")
    assert text["data"].endswith("The last batch has 2 samples.")
    assert text["epochs"] == "Training runs for 3 epochs with 9 updates."
    model = Model(mlp(), device="cpu").compile("adam", "cross_entropy", gradient_accumulation_steps=3)
    model.fit(X, Y, verbose=0, **options)
    assert model.state.step == 9
    again = model.explain(X, Y, steps_per_epoch=2).sentences
    assert again["epochs"] == "Training runs for 1 epoch with 2 updates, after 3 earlier epochs."
    assert "It continues with its state after earlier updates." in again["optimizer"]


def test_what_ends_saves_and_prints_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callbacks = [
        EarlyStopping("val_loss", patience=2, restore_best_weights=True), ReduceLROnPlateau(patience=1, factor=0.5),
        ModelCheckpoint("best.pt", save_best_only=True), CSVLogger("log.csv"), StopAfter(updates=100),
    ]  # fmt: skip
    text = explain({"metrics": ["accuracy"]}, validation_split=0.2, callbacks=callbacks, verbose=2, resume="run")
    assert "ends early when val_loss has not improved for 2 epochs" in text["epochs"]
    assert "It ends after 100 updates." in text["epochs"]
    assert text["learning rate"] == "The learning rate is multiplied by 0.5 when val_loss has not improved for 1 epoch."
    assert "The model is saved to best.pt after each epoch that improves val_loss." in text["files"]
    assert re.search(r"complete state of the run is saved in \S*run", text["files"])
    assert text["output"] == "One line per epoch shows loss, accuracy, val_loss, val_accuracy and lr."
    assert "(10 samples, 20% of the data, always the same, with the same share of each class)" in text["validation"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("frequency", "text"),
    [
        (1, "After each epoch"), (3, "After every 3 epochs"), ([1, 4], "After the epochs 1 and 4"),
        (Every(updates=5), "After every 5 updates"),
    ],
)  # fmt: skip
def test_the_moment_of_validation_is_named(frequency, text):
    assert explain(epochs=5, validation_split=0.2, validation_freq=frequency)["validation"].startswith(
        f"{text}, the val"
    )


def test_precision_steps_and_several_optimizers_are_described(monkeypatch):
    monkeypatch.setattr(torch_private, "cpu_has_bf16", lambda: True)
    assert "in bf16 under torch.autocast" in explain({"precision": "bf16"})["device"]
    text = explain({"optimizer": {"0": ("sgd", {"lr": 0.1}), "2": "adam"}})["optimizer"]
    assert text.startswith("SGD of '0' updates 144 parameters with the learning rate 0.1. Adam of '2'")
    model = CustomStep(mlp(), device="cpu").compile("sgd", "cross_entropy")
    sentences = model.explain(X, Y).sentences
    assert "replace train_step of the loop" in sentences["module"]
    assert sentences["loss"] == "A method of the subclass computes the loss."
    assert explain(callbacks=LearningRateScheduler(halve))["learning rate"] == (
        "halve sets the learning rate before each epoch."
    )


def test_explain_changes_nothing():
    net, twin = twins(mlp())
    model, state = Model(net, device="cpu").compile("adam", "cross_entropy"), torch.get_rng_state()
    model.explain(X, Y, epochs=5, validation_split=0.2, class_weight="balanced")
    assert same_weights(net, twin)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.last_fit == {}
    with pytest.raises(RuntimeError, match="needs a compiled model"):
        Model(mlp(), device="cpu").explain()


def test_a_sampler_and_dropped_samples_are_described():
    data = TensorDataset(X, Y)
    sampler = WeightedRandomSampler(torch.ones(50), 30)
    model = Model(mlp(), device="cpu").compile("adam", "cross_entropy")
    assert model.explain(DataLoader(data, 8, sampler=sampler, drop_last=True)).sentences["data"] == (
        "The training data has 50 samples in 3 batches, in the order of WeightedRandomSampler. An epoch draws 30 samples of it. "
        "The last 6 samples of an epoch are dropped."
    )
    text = model.explain(DataLoader(data, 8, shuffle=True, drop_last=True)).sentences["data"]
    assert text.endswith("in random order. The last 2 samples of an epoch are dropped.")
    text = model.explain(DataLoader(data, batch_sampler=BatchSampler(sampler, 8, False))).sentences["data"]
    assert text == "The training data has 50 samples in 4 batches, in the order of BatchSampler."
    assert "draws" not in model.explain(DataLoader(data, 8)).sentences["data"]


def test_files_of_loggers_and_plots_are_described(tmp_path):
    sentences = explain(callbacks=[TensorBoard(tmp_path / "logs"), LivePlot(path=tmp_path / "curves.png")])
    assert sentences["files"] == (
        f"Logs for TensorBoard are written to {tmp_path / 'logs'}. Curves are drawn to {tmp_path / 'curves.png'}."
    )
    assert "callbacks" not in sentences
    sentences = explain(callbacks=[LambdaCallback(on_epoch_end=print)])
    assert sentences["files"] == "No file is written, except by custom callbacks."


def test_conditions_of_early_stopping_are_described():
    stopping = EarlyStopping("loss", min_delta=0.1, patience=2, start_from_epoch=3)
    assert explain(callbacks=[stopping], epochs=9)["epochs"].endswith(
        "It ends early when loss has not improved by more than 0.1 for 2 epochs, not counting the first 3 epochs."
    )


def test_a_share_of_validation_is_not_rounded_to_percents():
    assert "12.5% of the data" in explain(validation_split=0.125)["validation"]


def test_a_custom_step_may_log_more_than_the_loss():
    sentences = CustomStep(mlp(), device="cpu").compile("adam", "cross_entropy").explain(X, Y).sentences
    assert sentences["metrics"] == "Methods of the subclass decide what else is measured."
    model = CustomStep(mlp(), device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"])
    assert (
        model.explain(X, Y).sentences["metrics"].endswith(" accuracy is measured if they call self.metrics.update().")
    )
    assert sentences["output"].endswith("shows loss, what the subclass logs and lr.")


@pytest.mark.parametrize("method", ["explain", "to_script"])
def test_mistakes_get_the_errors_of_fit(method):
    model = Model(mlp(), device="cpu").compile("adam", "cross_entropy")
    with pytest.raises(ValueError, match="needs targets, but the batch has none"):
        getattr(model, method)(X)
    with pytest.raises(TypeError, match="callbacks must contain callbacks, received 'x'"):
        getattr(model, method)(X, Y, callbacks=["x"])
    with pytest.raises(TypeError, match="Create an instance"):
        getattr(model, method)(X, Y, callbacks=EarlyStopping)


def test_no_script_describes_a_fit_before_compile():
    model = Model(mlp(), device="cpu").compile("adam", "cross_entropy")
    model.fit(X, Y, verbose=0)
    model.compile("sgd", "mse", lr=0.5)
    with pytest.raises(ValueError, match=r"compile\(\) has replaced the settings of the last fit\(\)"):
        model.to_script()


def test_a_script_names_an_obstacle_once():
    model = Model(mlp(), device="cpu").compile("adam", "cross_entropy")
    loader = DataLoader(TensorDataset(X, Y), 8, sampler=WeightedRandomSampler(torch.ones(50), 30))
    with pytest.raises(ValueError, match=r"Call fit\(\), and then to_script\(\) without arguments\.$"):
        model.to_script(loader, validation_data=loader)
