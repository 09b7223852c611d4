"""Names of the workloads and the contestants. The module imports no large package."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Workload:
    """A task that is measured.

    Args:
        title: A description of one line.
        label: A short title, for the head of a column.
        verb: ``"fit"``, ``"evaluate"``, ``"predict"`` or ``"import"``.
        kind: The kind of data: ``"tensors"`` in a ``TensorDataset``; NumPy ``"arrays"``; ``"samples"`` of a custom dataset
            that cannot be sliced; PIL ``"images"`` with a transform.
        samples: The number of samples.
        quick: The number of samples with ``--quick``.
        passes: The number of measured epochs or calls after the warm-up.
        goal: The goal of easytorch, as a ratio to the plain loop or, for imports, in seconds.
        is_kernels: Whether nearly all of the time of a step is in the kernels of torch, which are the same for all libraries.
    """

    title: str
    label: str
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
    is_kernels: bool = False


SGD_002 = {"optimizer": "sgd", "settings": {"lr": 0.003}}  # as in article 002
SGD_004 = {"optimizer": "sgd", "settings": {"lr": 0.01, "momentum": 0.9}}
PIL = {"kind": "images", "samples": 20_000, "quick": 1_600, **SGD_002}
CNN = {"network": "cnn", "data": "FashionMNIST", "samples": 3_200, "quick": 640, "is_kernels": True, **SGD_004}
ROWS = {"samples": 6_400, "quick": 1_280, "is_kernels": True}
CALLS = {"samples": 10_000, "passes": 5}

PLAN = {
    "mlp": Workload("MLP, SGD, DataLoader over a TensorDataset", "MLP, loader", goal=0.75, **SGD_002),
    "mlp-arrays": Workload("MLP, Adam, arrays", "MLP, arrays", kind="arrays", goal=0.62),
    "mlp-samples": Workload("MLP, SGD, a custom Dataset", "MLP, dataset", kind="samples", goal=0.95, **SGD_002),
    "pil": Workload("MLP, SGD, PIL images, second epoch", "MLP, PIL", goal=0.18, **PIL),
    "cnn": Workload("CNN, SGD with momentum", "CNN", goal=1.00, **CNN),
    "lstm": Workload("LSTM, Adam", "LSTM", network="lstm", goal=1.00, **ROWS),
    "transformer": Workload("Transformer, Adam", "Transformer", network="transformer", goal=1.00, **ROWS),
    "evaluate": Workload("Evaluate, a TensorDataset", "evaluate", "evaluate", goal=0.55, **CALLS),
    "evaluate-samples": Workload(
        "Evaluate, a custom Dataset", "evaluate, dataset", "evaluate", kind="samples", goal=1.00, **CALLS
    ),
    "predict": Workload("Predict, a TensorDataset", "predict", "predict", goal=0.55, **CALLS),
    "predict-samples": Workload(
        "Predict, a custom Dataset", "predict, dataset", "predict", kind="samples", goal=1.00, **CALLS
    ),
    "import": Workload("Import, seconds in addition to torch", "import", "import", goal=0.25),
}


@dataclass(frozen=True)
class Contestant:
    """A library or a loop that is measured.

    Args:
        title: The name in tables.
        packages: The packages that its file imports.
        install: The arguments of ``pip install``, or None for code of this repository.
        modules: The modules that a user imports, for the import time.
        workloads: The workloads that are measured, all of them if empty.
        file: The name of the file in ``contestants``, if it is not that of the contestant.
    """

    title: str
    packages: tuple[str, ...] = ("torch",)
    install: str | None = None
    modules: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    file: str | None = None

    def find_missing(self) -> list[str]:
        """Return the packages that are not installed."""
        return [name for name in self.packages if find_spec(name) is None]

    def distribution(self) -> str | None:
        """Return the name of the distribution, which has the version."""
        return self.install.split()[0] if self.install else None


# torchkeras does not declare all of its dependencies
TORCHKERAS = ("torchkeras", "accelerate", "matplotlib", "pandas", "torchmetrics")

CONTESTANTS = {
    "raw": Contestant("plain loop"),
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
    "huggingface": Contestant(
        "HF Trainer", ("transformers", "accelerate"), "transformers accelerate", workloads=("transformer",)
    ),
}
LIBRARIES = [name for name, contestant in CONTESTANTS.items() if contestant.install]
# The control contestants: the same file a second time in each round, whose difference is the noise.
AGAIN = "-again"
CONTESTANTS |= {
    f"{name}{AGAIN}": replace(contestant, title=f"{contestant.title} again", file=name)
    for name, contestant in CONTESTANTS.items()
}


def choose_contestants(workload: str, names: list[str], again: list[str]) -> list[str]:
    """Return the contestants of a workload in their order: those of ``names`` that are measured there, with their controls.

    Args:
        workload: The name of the workload.
        names: The contestants.
        again: Those with a control where a step is all kernels. The plain loop has one everywhere.
    """
    chosen = []
    for name in names:
        if workload in (CONTESTANTS[name].workloads or PLAN):
            chosen.append(name)
            if workload != "import" and (name == "raw" or (PLAN[workload].is_kernels and name in again)):
                chosen.append(f"{name}{AGAIN}")
    return chosen


def find_folder(name: str) -> Path | None:
    """Return the folder with the files of a dataset under ``EASYTORCH_DATA``, or None if it does not exist."""
    folder = Path(os.environ.get("EASYTORCH_DATA", "data")) / name / "raw"
    return folder if (folder / "train-images-idx3-ubyte").exists() else None
