"""Two processes: ``fit`` beside the loop that somebody writes by hand on torch's DistributedDataParallel.

    python -m benchmarks.many [--processes 2] [--rounds 7]

Both train the same module on the same batches in the same processes, taking turns; a ratio is that of two epochs of one round.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import easytorch

ROWS, BATCH = 16_384, 64


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def by_hand(data: TensorDataset) -> float:
    net = DistributedDataParallel(network())
    optimizer, loss_function = torch.optim.AdamW(net.parameters(), fused=True), nn.CrossEntropyLoss()
    loader, seconds = DataLoader(data, BATCH, sampler=DistributedSampler(data)), []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        began, total = time.perf_counter(), 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_function(net(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item()
        seconds.append(time.perf_counter() - began)
    return seconds[-1]


def by_fit(data: TensorDataset) -> float:
    model = easytorch.Model(network(), device="cpu").compile("adamw", "cross_entropy")
    history = model.fit(DataLoader(data, BATCH, shuffle=True), 2, verbose=0)
    return sum(history.seconds[-1].values())


def measure(rounds: int) -> list[tuple[float, float]]:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(ROWS, 784), torch.randint(10, (ROWS,)))
    by_fit(data)  # the first to come warms up for all
    return [(by_hand(data), by_fit(data)) for _ in range(rounds)]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--rounds", type=int, default=7)
    args = options.parse_args()
    measured = easytorch.launch(measure, args.rounds, processes=args.group)[0]
    ratios = sorted(ours / hand for hand, ours in measured)
    hand, ours = (statistics.median(column) for column in zip(*measured, strict=True))
    updates = ROWS // BATCH // args.group
    print(f"by hand {1e3 * hand / updates:.2f} ms an update, fit {1e3 * ours / updates:.2f} ms")
    print(f"ratio {statistics.median(ratios):.3f} (from {ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
