"""CSVLogger with lines of updates."""

from __future__ import annotations

import csv

import pytest
import torch
from torch import nn

from easytorch import Model
from easytorch.callbacks import BackupAndRestore, CSVLogger, Every, GradientStatistics, LambdaCallback
from tests.common_resume import CrashAfter, SimulatedCrash
from tests.loops import blobs

X, Y = blobs(50)


def new_model(**options):
    torch.manual_seed(0)
    return Model(nn.Linear(8, 3), device="cpu").compile("sgd", "cross_entropy", **options)


def read_updates(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_logger_writes_lines_of_updates(tmp_path):
    seen = []
    record = LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(dict(logs)))
    model = new_model(metrics=["accuracy"])
    model.fit(X, Y, epochs=2, batch_size=8, callbacks=[record, CSVLogger(tmp_path / "a.csv", every=3)], verbose=0)
    rows, steps = read_updates(tmp_path / "a.csv"), len(seen)
    assert list(rows[0]) == ["epoch", "step", "loss", "accuracy"]
    assert [int(row["step"]) for row in rows] == list(range(3, steps + 1, 3))
    assert [int(row["epoch"]) for row in rows] == [(int(row["step"]) - 1) // (steps // 2) for row in rows]
    assert [float(row["loss"]) for row in rows] == [logs["loss"] for logs in seen[2::3]]


def test_csv_lines_of_updates_have_the_gradients(tmp_path):
    callbacks = [CSVLogger(tmp_path / "a.csv", every=Every(updates=2)), GradientStatistics(4)]
    new_model().fit(X, Y, batch_size=8, callbacks=callbacks, verbose=0)
    first, second = read_updates(tmp_path / "a.csv")[:2]
    assert first["grad_norm"] == "NA"
    assert float(second["grad_norm"]) > 0


def test_csv_lines_of_updates_are_resumed(tmp_path):
    def run(folder, crash=None):
        torch.manual_seed(0)
        callbacks = [CSVLogger(folder / "a.csv", every=2), BackupAndRestore(folder / "run", 3, delete_checkpoint=False)]
        new_model().fit(
            X, Y, epochs=2, batch_size=8, verbose=0, callbacks=[*callbacks, *([CrashAfter(crash)] if crash else [])]
        )
        return (folder / "a.csv").read_text()

    with pytest.raises(SimulatedCrash):
        run(tmp_path / "stopped", 5)
    assert run(tmp_path / "stopped") == run(tmp_path / "undisturbed")


@pytest.mark.parametrize("every", [0, "epoch", Every(epochs=1)])
def test_only_frequencies_of_updates_are_accepted(every, tmp_path):
    with pytest.raises(ValueError, match="every"):
        CSVLogger(tmp_path / "a.csv", every=every)
