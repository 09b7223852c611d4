"""What is measured: the networks, the data they learn, and how much of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from benchmarks.plan import PLAN, Workload, folder_of

BATCH = 64


@dataclass
class Task:
    """A workload ready to run: all that a contestant is given.

    Attributes:
        workload: What is asked for: the optimizer and its settings, the kind of data.
        module: The network, to be trained in place.
        dataset: Samples ``(x, y)``.
        epochs: How many to train, the warm-up epoch included.
        tick: To be called after every epoch; this is the clock.
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
        """The samples in batches: shuffled for training, in order otherwise."""
        return DataLoader(self.dataset, self.batch_size, shuffle=self.workload.verb == "fit")

    @property
    def one_batch(self) -> DataLoader[Any]:
        """One batch, for those who refuse to train without validation data."""
        return DataLoader(Subset(self.dataset, range(self.batch_size)), self.batch_size)

    @property
    def arrays(self) -> tuple[Any, Any] | None:
        """NumPy arrays ``x, y`` where the workload is to pass these, else None."""
        return tuple(part.numpy() for part in self.dataset.tensors) if self.workload.kind == "arrays" else None

    @property
    def tensors(self) -> tuple[Tensor, Tensor] | None:
        """Tensors ``x, y`` where all of the data is in memory, else None."""
        return self.dataset.tensors if isinstance(self.dataset, TensorDataset) else None

    def optimizer(self, **options: Any) -> torch.optim.Optimizer:
        """Make torch's optimizer, as users of most libraries do."""
        cls = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[self.workload.optimizer]
        return cls(self.module.parameters(), **self.workload.settings, **options)


def task(name: str, quick: bool, tick: Callable[[], None]) -> Task:
    """Return the workload called ``name``, with the same weights every time."""
    workload = PLAN[name]
    torch.manual_seed(0)
    module = NETWORKS[workload.network]()
    count = workload.quick if quick else workload.samples
    epochs = 1 + (1 if quick else workload.passes)
    return Task(workload, module, _dataset(workload, count), epochs, tick)


# Networks


def mlp() -> nn.Module:
    """Article 002: 784-128-64-10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def cnn() -> nn.Module:
    """Article 004: convolutions all the way, none with a bias; 48,884 parameters."""
    conv = functools.partial(nn.Conv2d, bias=False)
    return nn.Sequential(
        *(conv(1, 16, 3), nn.ReLU(), conv(16, 32, 3), nn.ReLU(), conv(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(conv(64, 32, 1), nn.ReLU(), conv(32, 32, 3), nn.ReLU(), conv(32, 32, 3), nn.ReLU(), conv(32, 10, 1)),
        *(nn.ReLU(), conv(10, 10, 7), nn.Flatten()),
    )


class LSTM(nn.Module):
    """Reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, 128, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.flatten(0, 1))[0][:, -1])


class Transformer(nn.Module):
    """Two layers over the rows of an image."""

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
    """A dataset of the user's own, which nobody can look into: one sample at a time."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class Images(Dataset[Any]):
    """Images as PIL has them and a transform, as the datasets of torchvision are."""

    def __init__(self, pixels: Tensor, y: Tensor, transform: Callable[[Any], Tensor]) -> None:
        self.pixels, self.y, self.transform = pixels, y, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[index].numpy())), int(self.y[index])


def _dataset(workload: Workload, count: int) -> Dataset[Any]:
    pixels, y = (part[:count] for part in images(workload.data, train=workload.verb == "fit"))
    if workload.kind == "images":
        from torchvision.transforms import ToTensor

        return Images(pixels, y, ToTensor())
    x = pixels[:, None].float().div_(255)
    if workload.data == "FashionMNIST":
        x = x.sub_(0.5).div_(0.5)  # as in article 004
    return Samples(x, y) if workload.kind == "samples" else TensorDataset(x, y)


def images(name: str, train: bool) -> tuple[Tensor, Tensor]:
    """Return the images, as bytes, and labels of MNIST or Fashion-MNIST, or random ones of the same shape."""
    folder = folder_of(name)
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        count = 60_000 if train else 10_000
        pixels = torch.randint(256, (count, 28, 28), dtype=torch.uint8, generator=generator)
        return pixels, torch.randint(10, (count,), generator=generator)
    part = "train" if train else "t10k"
    pixels = _bytes(folder / f"{part}-images-idx3-ubyte", 16).reshape(-1, 28, 28)
    return pixels, _bytes(folder / f"{part}-labels-idx1-ubyte", 8).long()


def _bytes(path: Path, header: int) -> Tensor:
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8, offset=header)
