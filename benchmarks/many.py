"""Time of ``fit`` in two processes, compared with a manual DistributedDataParallel loop.

    python -m benchmarks.many [--processes 2] [--rounds 7]

Both train the same module on the same batches in the same processes, in turns. A ratio compares two epochs of one
round.
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


def time_loop(data: TensorDataset) -> float:
    net = DistributedDataParallel(network())
    optimizer, loss_function = torch.optim.AdamW(net.parameters(), fused=True), nn.CrossEntropyLoss()
    loader, seconds = DataLoader(data, BATCH, sampler=DistributedSampler(data)), []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        start, total = time.perf_counter(), 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_function(net(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item()
        seconds.append(time.perf_counter() - start)
    return seconds[-1]


def time_fit(data: TensorDataset) -> float:
    model = easytorch.Model(network(), device="cpu").compile("adamw", "cross_entropy")
    history = model.fit(DataLoader(data, BATCH, shuffle=True), 2, verbose=0)
    return sum(history.seconds[-1].values())


def measure(rounds: int) -> list[tuple[float, float]]:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(ROWS, 784), torch.randint(10, (ROWS,)))
    time_fit(data)  # warm-up
    return [(time_loop(data), time_fit(data)) for _ in range(rounds)]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--processes", type=int, default=2, help="number of processes")
    options.add_argument("--rounds", type=int, default=7, help="number of rounds")
    args = options.parse_args()
    pairs = easytorch.launch(measure, args.rounds, processes=args.processes)[0]
    ratios = sorted(fit / loop for loop, fit in pairs)
    loop, fit = (statistics.median(column) for column in zip(*pairs, strict=True))
    updates = ROWS // BATCH // args.processes
    print(f"loop {1e3 * loop / updates:.2f} ms per update, fit {1e3 * fit / updates:.2f} ms per update")
    print(f"ratio {statistics.median(ratios):.3f} (from {ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
