"""The workloads and the contestants, by name. The runner reads this, so it imports nothing large."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Workload:
    """One thing to measure.

    Args:
        title: What it is, in a line.
        verb: ``"fit"``, ``"evaluate"``, ``"predict"`` or ``"import"``.
        kind: What the user's data is: ``"tensors"`` in a ``TensorDataset``; ``"arrays"`` of NumPy; ``"samples"`` of a dataset
            of the user's own, which cannot be sliced; ``"images"`` of PIL with a transform.
        samples: How many, and with ``--quick``.
        passes: Timed epochs or calls, after one to warm up.
        goal: What easytorch is to reach: a ratio to the plain loop, for imports seconds.
    """

    title: str
    verb: str = "fit"
    network: str = "mlp"
    data: str = "MNIST"
    kind: str = "tensors"
    samples: int = 60_000
    quick: int = 3_200
    optimizer: str = "adam"
    settings: dict[str, Any] = field(default_factory=dict)
    passes: int = 1
    goal: float = 1.0


SGD_002 = {"optimizer": "sgd", "settings": {"lr": 0.003}}  # as in article 002
SGD_004 = {"optimizer": "sgd", "settings": {"lr": 0.01, "momentum": 0.9}}
PIL = {"kind": "images", "samples": 20_000, "quick": 1_600, **SGD_002}
CNN = {"network": "cnn", "data": "FashionMNIST", "samples": 3_200, "quick": 640, **SGD_004}
ROWS = {"samples": 6_400, "quick": 1_280}
CALLS = {"samples": 10_000, "passes": 5}

PLAN = {
    "mlp": Workload("MLP, SGD, DataLoader over a TensorDataset", goal=0.80, **SGD_002),
    "mlp-arrays": Workload("MLP, Adam, arrays", kind="arrays", goal=0.70),
    "mlp-samples": Workload("MLP, SGD, a Dataset of one's own", kind="samples", goal=1.02, **SGD_002),
    "pil": Workload("MLP, SGD, PIL images, second epoch", goal=0.25, **PIL),
    "cnn": Workload("CNN, SGD with momentum", goal=1.01, **CNN),
    "lstm": Workload("LSTM, Adam", network="lstm", goal=1.01, **ROWS),
    "transformer": Workload("Transformer, Adam", network="transformer", goal=1.01, **ROWS),
    "evaluate": Workload("Evaluate, a TensorDataset", "evaluate", goal=0.80, **CALLS),
    "evaluate-samples": Workload("Evaluate, a Dataset of one's own", "evaluate", kind="samples", goal=1.02, **CALLS),
    "predict": Workload("Predict, a TensorDataset", "predict", goal=0.80, **CALLS),
    "predict-samples": Workload("Predict, a Dataset of one's own", "predict", kind="samples", goal=1.02, **CALLS),
    "import": Workload("Import, seconds on top of torch", "import", goal=0.25),
}


@dataclass(frozen=True)
class Contestant:
    """One way to train.

    Args:
        title: Its name for readers.
        packages: What its file imports.
        install: What ``pip install`` takes to have it, None for what comes with this repository.
        modules: What its user imports, for the import time.
    """

    title: str
    packages: tuple[str, ...] = ("torch",)
    install: str | None = None
    modules: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """Return those of its packages that cannot be imported here."""
        return [name for name in self.packages if find_spec(name) is None]

    def distribution(self) -> str | None:
        """Return the name under which its version is known."""
        return self.install.split()[0] if self.install else None


TORCHKERAS = ("torchkeras", "accelerate", "matplotlib", "pandas", "torchmetrics")  # and what it does not declare

CONTESTANTS = {
    "raw": Contestant("plain loop"),
    "control": Contestant("plain loop again"),
    "tuned": Contestant("tuned loop"),
    "easytorch": Contestant("easytorch", ("easytorch",), modules=("easytorch",)),
    "keras": Contestant("Keras", ("keras",), "keras", ("keras",)),
    "lightning": Contestant("Lightning", ("lightning", "torchmetrics"), "lightning", ("lightning",)),
    "poutyne": Contestant("Poutyne", ("poutyne",), "poutyne", ("poutyne",)),
    "skorch": Contestant("skorch", ("skorch",), "skorch", ("skorch",)),
    "fastai": Contestant("fastai", ("fastai",), "fastai", ("fastai.learner",)),
    "ignite": Contestant("ignite", ("ignite", "tqdm"), "pytorch-ignite tqdm", ("ignite.engine", "ignite.metrics")),
    "accelerate": Contestant("Accelerate", ("accelerate",), "accelerate", ("accelerate",)),
    "torchkeras": Contestant(
        "torchkeras", (*TORCHKERAS, "IPython"), "torchkeras ipython " + " ".join(TORCHKERAS[1:]), ("torchkeras",)
    ),
}


def folder_of(name: str) -> Path | None:
    """Return the folder under ``EASYTORCH_DATA`` with the files of a data set; None where it is not."""
    folder = Path(os.environ.get("EASYTORCH_DATA", "data")) / name / "raw"
    return folder if (folder / "train-images-idx3-ubyte").exists() else None
