"""Train in two processes that Ray Train starts, and starts again when one of them fails.

    python examples/ray_train.py [--quick] [--storage FOLDER]

The function ``train`` contains no code for distributed training: Ray connects the processes, and ``compile`` chooses "ddp".
"""

import argparse
import os
import tempfile

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from sklearn.datasets import load_digits
from torch import nn

import easytorch
from easytorch.callbacks import RayReport


def train(config):
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.images / 16, dtype=torch.float32).flatten(1), torch.tensor(digits.target)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))
    model = easytorch.Model(net).compile("adam", "cross_entropy", metrics=["accuracy"])
    model.fit(
        x,
        y,
        epochs=config["epochs"],
        validation_split=0.2,
        callbacks=[RayReport(), *config["callbacks"]],
        verbose=0,
    )


def run(epochs, storage, callbacks=(), failures=3):
    trainer = TorchTrainer(
        train,
        train_loop_config={"epochs": epochs, "callbacks": list(callbacks)},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=storage, failure_config=FailureConfig(max_failures=failures)),
    )
    return trainer.fit()


def main(arguments=None):
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true")
    options.add_argument("--storage", default=None)
    args = options.parse_args(arguments)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports nothing about this program
    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False)
    storage = os.path.abspath(args.storage) if args.storage else tempfile.mkdtemp()
    result = run(3 if args.quick else 20, storage)
    print(f"Result: accuracy = {result.metrics['val_accuracy']:.3f}")
    return result


if __name__ == "__main__":
    main()
