"""The training loop of the PyTorch tutorials, and small modules and data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def hand_loop(
    net: nn.Module,
    loader: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    loss_function: Callable[..., Tensor],
    epochs: int,
    scheduler: Any = None,
    per_update: bool = False,
    clip: float | None = None,
    validation: Iterable[Any] | None = None,
) -> list[float]:
    """Train like a tutorial, and return the mean loss of every epoch, weighted by samples."""
    means = []
    for _ in range(epochs):
        net.train()
        total, count = 0.0, 0
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_function(net(x), y)
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            if scheduler is not None and per_update:
                scheduler.step()
            total, count = total + loss.item() * len(x), count + len(x)
        means.append(total / count)
        if validation is not None:
            net.eval()
            with torch.no_grad():
                for x, y in validation:
                    loss_function(net(x), y)
        if scheduler is not None and not per_update:
            scheduler.step()
    return means


def twins(net: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return a module and its copy."""
    return net, copy.deepcopy(net)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Return whether two modules have equal weights and buffers, bit for bit."""
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def furthest(a: nn.Module, b: nn.Module) -> float:
    """Return the largest difference between the weights and buffers of two modules."""
    first, second = a.state_dict(), b.state_dict()
    return max(float((first[key].double() - second[key].double()).abs().max()) for key in first)


class Recurrent(nn.Module):
    """A classifier of sequences of shape ``[N, steps, 4]``."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.lstm(x)[0][:, -1])
        return output


def mlp(inputs: int = 8, outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))


def blobs(rows: int = 50, features: int = 8, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Return points around one center for each class."""
    generator = torch.Generator().manual_seed(7)
    y = torch.randint(classes, (rows,), generator=generator)
    centers = torch.randn(classes, features, generator=generator)
    return centers[y] + 0.5 * torch.randn(rows, features, generator=generator), y


def blob_loader(rows: int = 50, batch_size: int = 8, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*blobs(rows)), batch_size, **options)
