"""The same training in one, two, and three processes gives the same network.

    python examples/many_processes.py [--quick] [--seed N]            starts its own processes
    torchrun --nproc-per-node=2 examples/many_processes.py            runs in the processes of torchrun
    torchrun --nproc-per-node=2 examples/many_processes.py --strategy fsdp --resume run/    shards the model, resumes after a kill

The function ``train`` contains no code for distributed training. Every rank gets a shard of each batch, gradients are
averaged with all-reduce, and every test sample is measured once. The batch size is per process, so three processes use
a third of it.
"""

import argparse
import os

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import easytorch

# Samples in one update over all processes
BATCH = 96


def train(
    epochs: int, seed: int, verbose: int | str = 0, strategy: str = "auto", resume: str | None = None
) -> dict[str, float]:
    torch.manual_seed(seed)
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float64).unsqueeze(1) / 16, torch.tensor(digits.target)
    x, x_test, y, y_test = train_test_split(x, y, test_size=360, random_state=seed, stratify=y)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 64), nn.ReLU(), nn.Linear(64, 10)
    )

    size = BATCH // int(os.environ.get("WORLD_SIZE", "1"))
    model = easytorch.Model(net.double(), device="cpu")
    model.compile("adam", "cross_entropy", metrics=["accuracy"], lr=0.003, strategy=strategy)
    model.fit(DataLoader(TensorDataset(x, y), size, shuffle=True), epochs, resume=resume, verbose=verbose)
    loss, accuracy = model.evaluate(x_test, y_test, verbose=0)

    # Every rank gets all predictions in order, and the full state dict also of a sharded model
    rows = len(model.predict(x_test, verbose=0))
    weight = sum(float(value.abs().sum()) for value in model.state_dict()["module"].values())
    return {"loss": loss, "accuracy": accuracy, "rows": rows, "sum of absolute weights": weight}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--quick", action="store_true", help="two epochs instead of twenty, two processes instead of three"
    )
    options.add_argument("--seed", type=int, default=0, help="random seed of the weights, the split, and the order")
    options.add_argument("--strategy", choices=["auto", "ddp", "fsdp"], default="auto", help="strategy under torchrun")
    options.add_argument("--resume", help="folder that saves the run under torchrun")
    args = options.parse_args()
    epochs = 2 if args.quick else 20
    if "WORLD_SIZE" in os.environ:  # started by torchrun
        result = train(epochs, args.seed, "auto", args.strategy, args.resume)
        if os.environ["RANK"] == "0":
            print(f"Result: test accuracy = {result['accuracy']:.4f}")
        return
    results = {1: train(epochs, args.seed)}
    print(f"1 process: {results[1]}")
    for count in (2,) if args.quick else (2, 3):
        rank_results = easytorch.launch(train, epochs, args.seed, processes=count, timeout=600)
        assert all(result == rank_results[0] for result in rank_results)
        results[count] = rank_results[0]
        print(f"{count} processes: {results[count]}")
    weights = [result["sum of absolute weights"] for result in results.values()]
    print(f"Result: test accuracy = {results[1]['accuracy']:.4f}")
    print(f"Result: test accuracy of two = {results[2]['accuracy']:.4f}")
    print(f"Result: largest relative difference of weights = {max(weights) / min(weights) - 1:.1e}")


if __name__ == "__main__":
    main()
