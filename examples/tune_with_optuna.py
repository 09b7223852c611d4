"""Hyperparameter search with Optuna for a convolutional network on MNIST (after E. Anello).

    python examples/tune_with_optuna.py [--quick] [--seed N]

The study has twenty trials of up to ten epochs; ``OptunaPruning`` stops trials that are worse than the others. Fixes to
the article: all trials use the same validation set, so their scores can be compared. The sampler, the weights, and the
order of the images have a seed, so the study is reproducible. The best parameters train a final network on all 60,000
images, which is evaluated on the test set. Features without height and width use Dropout, because Dropout2d now warns.
"""

import argparse
import os

import optuna
import torch
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

import easytorch
from easytorch.callbacks import OptunaPruning

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="4,000 images, three trials of up to two epochs")
options.add_argument(
    "--seed", type=int, default=0, help="random seed of the split, the study, the weights, and the order"
)
args = options.parse_args()
epochs = 2 if args.quick else 10

root, to_tensor = os.environ.get("EASYTORCH_DATA", "data"), transforms.ToTensor()
train = datasets.MNIST(root, train=True, download=True, transform=to_tensor)
test = datasets.MNIST(root, train=False, download=True, transform=to_tensor)
if args.quick:
    train, test = Subset(train, range(4000)), Subset(test, range(1000))
full_train, test = easytorch.data.in_memory(train), easytorch.data.in_memory(test)
train, validation = easytorch.data.split(full_train, fraction=0.2, seed=args.seed)


def new_model(trial: optuna.Trial | optuna.trial.FrozenTrial) -> easytorch.Model:
    torch.manual_seed(args.seed)
    dropout1 = trial.suggest_float("dropout1", 0, 0.5, step=0.1)
    width = trial.suggest_int("width", 32, 128, step=32)
    dropout2 = trial.suggest_float("dropout2", 0, 0.3, step=0.1)
    optimizer = trial.suggest_categorical("optimizer", ["adam", "adadelta", "adagrad"])
    lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(16, 32, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(), nn.Dropout2d(dropout1), nn.Flatten(),
        nn.Linear(1568, width), nn.ReLU(), nn.Dropout(dropout2), nn.Linear(width, 10),
    )  # fmt: skip
    network.to(memory_format=torch.channels_last)  # faster on a CPU
    return easytorch.Model(network).compile(optimizer, "cross_entropy", metrics=["accuracy"], lr=lr)


def loader(data: torch.utils.data.Dataset, trial: optuna.Trial | optuna.trial.FrozenTrial) -> DataLoader:
    return DataLoader(data, trial.suggest_int("batch_size", 64, 256, step=64), shuffle=True)


def objective(trial: optuna.Trial) -> float:
    history = new_model(trial).fit(
        loader(train, trial), epochs, validation_data=DataLoader(validation, 1000),
        callbacks=[OptunaPruning(trial, "val_accuracy")], verbose=0,
    )  # fmt: skip
    return history["val_accuracy"][-1]


study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=args.seed))
study.optimize(objective, n_trials=3 if args.quick else 20)

best = study.best_trial
pruned_count = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials)
importances = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=args.seed))
print(
    f"\nTrial {best.number} of {len(study.trials)} was the best; {pruned_count} were pruned. Its parameters, by importance:"
)
for name, importance in importances.items():
    value = best.params[name]
    print(f"  {name:10} {value if isinstance(value, str) else f'{value:.4g}':>8}  {importance:6.1%}")

# suggest_... returns the stored parameters of the best trial
model = new_model(best)
accuracy = model.fit(loader(full_train, best), epochs).evaluate(DataLoader(test, 1000)).accuracy
print(f"Result: validation accuracy = {best.value:.4f}")
print(f"Result: test accuracy = {accuracy:.4f}")
