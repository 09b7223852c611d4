"""The program of the tests of clusters: ``python -m tests.cluster_program FOLDER``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from easytorch import Model
from easytorch.callbacks import LambdaCallback, SlurmRequeue
from tests.loops import blob_loader

EPOCHS = 8


def program(folder: Path, seconds: float = 0.0, on_update: Callable[[int], Any] = lambda step: None) -> Model:
    """Train as a user would, without any code for the cluster except the callback.

    Args:
        folder: Where the run, its final weights and the mark of a started rank are saved.
        seconds: Seconds by which each update takes longer.
        on_update: Called after each update with its number.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
    model = Model(net, device="cpu").compile("adam", "cross_entropy", metrics=["accuracy"])
    group = model.strategy.group

    def report(batch, logs):
        time.sleep(seconds)
        on_update(model.state.step)
        if group.is_main:
            with (folder / "updates").open("a") as file:
                file.write(f"{model.state.step} of {group.world_size}\n")

    callbacks = [SlurmRequeue(), LambdaCallback(on_train_batch_end=report)]
    model.fit(blob_loader(shuffle=True), EPOCHS, callbacks=callbacks, resume=folder / "run", verbose=2)
    model.save_weights(folder / "final.pt")
    return model


if __name__ == "__main__":
    program(Path(sys.argv[1]), float(sys.argv[2]))
