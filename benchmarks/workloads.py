"""Networks and data of the workloads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from benchmarks.plan import PLAN, Workload, find_folder

BATCH = 64


@dataclass
class Task:
    """The input of a contestant.

    Attributes:
        workload: The workload, with the optimizer, its settings, and the kind of data.
        module: The network, which is trained in place.
        dataset: Samples ``(x, y)``.
        epochs: The number of epochs, including the warm-up epoch.
        tick: The clock. Call it after every epoch.
    """

    workload: Workload
    module: nn.Module
    dataset: Dataset[Any]
    epochs: int
    tick: Callable[[], None]
    batch_size: int = BATCH
    loss: nn.Module = field(default_factory=nn.CrossEntropyLoss)

    @property
    def loader(self) -> DataLoader[Any]:
        """A loader of all samples, shuffled for training only."""
        return DataLoader(self.dataset, self.batch_size, shuffle=self.workload.verb == "fit")

    @property
    def one_batch(self) -> DataLoader[Any]:
        """A loader with one batch, for libraries that require validation data."""
        return DataLoader(Subset(self.dataset, range(self.batch_size)), self.batch_size)

    @property
    def arrays(self) -> tuple[Any, Any] | None:
        """NumPy arrays ``x, y`` if the workload uses arrays, else None."""
        return tuple(tensor.numpy() for tensor in self.dataset.tensors) if self.workload.kind == "arrays" else None

    @property
    def tensors(self) -> tuple[Tensor, Tensor] | None:
        """Tensors ``x, y`` if the data are tensors in memory, else None."""
        return self.dataset.tensors if isinstance(self.dataset, TensorDataset) else None

    def optimizer(self, **options: Any) -> torch.optim.Optimizer:
        """Return a new torch optimizer."""
        cls = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[self.workload.optimizer]
        return cls(self.module.parameters(), **self.workload.settings, **options)


def task(name: str, quick: bool, tick: Callable[[], None]) -> Task:
    """Return the task of the workload ``name``. The initial weights are always the same."""
    workload = PLAN[name]
    torch.manual_seed(0)
    module = NETWORKS[workload.network]()
    count = workload.quick if quick else workload.samples
    epochs = 1 + (1 if quick else workload.passes)
    return Task(workload, module, make_dataset(workload, count), epochs, tick)


# Networks


def mlp() -> nn.Module:
    """Article 002: linear layers of the sizes 784-128-64-10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def cnn() -> nn.Module:
    """Article 004: convolutions without bias, 48,884 parameters."""
    conv = functools.partial(nn.Conv2d, bias=False)
    return nn.Sequential(
        *(conv(1, 16, 3), nn.ReLU(), conv(16, 32, 3), nn.ReLU(), conv(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(conv(64, 32, 1), nn.ReLU(), conv(32, 32, 3), nn.ReLU(), conv(32, 32, 3), nn.ReLU(), conv(32, 10, 1)),
        *(nn.ReLU(), conv(10, 10, 7), nn.Flatten()),
    )


class LSTM(nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, 128, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.flatten(0, 1))[0][:, -1])


class Transformer(nn.Module):
    """Two transformer layers over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(28, 64)
        self.position = nn.Parameter(torch.randn(28, 64) * 0.02)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x.flatten(0, 1)) + self.position).mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "cnn": cnn, "lstm": LSTM, "transformer": Transformer}


# Data


class Samples(Dataset[Any]):
    """A custom dataset that returns one sample at a time and cannot be sliced."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class Images(Dataset[Any]):
    """PIL images with a transform, like the datasets of torchvision."""

    def __init__(self, pixels: Tensor, y: Tensor, transform: Callable[[Any], Tensor]) -> None:
        self.pixels, self.y, self.transform = pixels, y, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[index].numpy())), int(self.y[index])


def make_dataset(workload: Workload, count: int) -> Dataset[Any]:
    pixels, y = (tensor[:count] for tensor in read_images(workload.data, train=workload.verb == "fit"))
    if workload.kind == "images":
        from torchvision.transforms import ToTensor

        return Images(pixels, y, ToTensor())
    x = pixels[:, None].float().div_(255)
    if workload.data == "FashionMNIST":
        x = x.sub_(0.5).div_(0.5)  # as in article 004
    return Samples(x, y) if workload.kind == "samples" else TensorDataset(x, y)


def read_images(name: str, train: bool) -> tuple[Tensor, Tensor]:
    """Return uint8 images [N, 28, 28] and labels [N] of MNIST or Fashion-MNIST, or random values of the same shape."""
    folder = find_folder(name)
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        count = 60_000 if train else 10_000
        pixels = torch.randint(256, (count, 28, 28), dtype=torch.uint8, generator=generator)
        return pixels, torch.randint(10, (count,), generator=generator)
    split = "train" if train else "t10k"
    pixels = read_bytes(folder / f"{split}-images-idx3-ubyte", 16).reshape(-1, 28, 28)
    return pixels, read_bytes(folder / f"{split}-labels-idx1-ubyte", 8).long()


def read_bytes(path: Path, header: int) -> Tensor:
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8, offset=header)
