"""Search for a learning rate with Ray Tune: ASHA stops bad trials early.

    python examples/ray_tune.py [--quick] [--storage FOLDER]

Each report has a checkpoint, from which Ray starts a failed trial again, and from which the best model is loaded.
"""

import argparse
import os
import tempfile

import ray
import torch
from ray import tune
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import easytorch
from easytorch.callbacks import RayReport


def load():
    digits = load_digits()
    x = torch.tensor(digits.images / 16, dtype=torch.float32).flatten(1)
    return train_test_split(x, torch.tensor(digits.target), test_size=360, random_state=0)


def new_model(lr):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))
    return easytorch.Model(net).compile("adam", "cross_entropy", metrics=["accuracy"], lr=lr)


def train(config):
    x, x_val, y, y_val = load()
    model = new_model(config["lr"])
    model.fit(x, y, epochs=config["epochs"], validation_data=(x_val, y_val), callbacks=[RayReport()], verbose=0)


def search(lrs, epochs, storage):
    tuner = tune.Tuner(
        train,
        param_space={"lr": tune.grid_search(lrs), "epochs": epochs},
        tune_config=tune.TuneConfig(
            metric="val_accuracy",
            mode="max",
            scheduler=tune.schedulers.ASHAScheduler(max_t=epochs, grace_period=2, reduction_factor=2),
        ),
        run_config=tune.RunConfig(storage_path=storage, verbose=0, failure_config=tune.FailureConfig(max_failures=2)),
    )
    return tuner.fit()


def main(arguments=None):
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true")
    options.add_argument("--storage", default=None)
    args = options.parse_args(arguments)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports nothing about this program
    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False)
    lrs, epochs = ([0.01, 1e-5], 4) if args.quick else ([0.1, 0.01, 0.001, 1e-4, 1e-5], 20)
    storage = os.path.abspath(args.storage) if args.storage else tempfile.mkdtemp()
    best = search(lrs, epochs, storage).get_best_result()
    print(f"Best learning rate: {best.config['lr']:g} with accuracy {best.metrics['val_accuracy']:.3f}")

    _, x_val, _, y_val = load()
    with best.checkpoint.as_directory() as folder:
        model = new_model(best.config["lr"]).load(folder)
    print(f"Result: accuracy = {model.evaluate(x_val, y_val, verbose=0).accuracy:.3f}")
    return best


if __name__ == "__main__":
    main()
