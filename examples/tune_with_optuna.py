"""Article 001, part 5: Optuna looks for good hyper-parameters of a convolutional network that reads MNIST.

    python examples/tune_with_optuna.py [--quick] [--seed N]

Twenty trials of up to ten epochs; a trial that falls behind the others is ended by `OptunaPruning`. What was mended:

- every trial drew a validation set of its own, so their scores could not be compared: here one split, from the seed;
- the sampler, the weights and the order of the images had no seed: here the study gives the same result again;
- the best parameters were the end: here they train a new network on all 60,000 images, which reads the test images;
- Dropout2d on features without a width and height warns today: it is Dropout.
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
options.add_argument("--seed", type=int, default=0, help="of the split, the study, the weights and the order")
args = options.parse_args()
epochs = 2 if args.quick else 10

root, pixels = os.environ.get("EASYTORCH_DATA", "data"), transforms.ToTensor()
train = datasets.MNIST(root, train=True, download=True, transform=pixels)
test = datasets.MNIST(root, train=False, download=True, transform=pixels)
if args.quick:
    train, test = Subset(train, range(4000)), Subset(test, range(1000))
everything, test = easytorch.data.in_memory(train), easytorch.data.in_memory(test)
train, validation = easytorch.data.split(everything, fraction=0.2, seed=args.seed)


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
    network.to(memory_format=torch.channels_last)  # two thirds of the time on a CPU
    return easytorch.Model(network).compile(optimizer, "cross_entropy", metrics=["accuracy"], lr=lr)


def loader(data: torch.utils.data.Dataset, trial: optuna.Trial | optuna.trial.FrozenTrial) -> DataLoader:
    return DataLoader(data, trial.suggest_int("batch_size", 64, 256, step=64), shuffle=True)


def objective(trial: optuna.Trial) -> float:
    history = new_model(trial).fit(
        loader(train, trial), epochs, validation_data=DataLoader(validation, 1000),
        callbacks=[OptunaPruning(trial, "val_accuracy")], on_interrupt="raise", verbose=0,
    )  # fmt: skip
    return history["val_accuracy"][-1]


study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=args.seed))
study.optimize(objective, n_trials=3 if args.quick else 20)

best = study.best_trial
pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials)
importances = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=args.seed))
print(
    f"\nTrial {best.number} of {len(study.trials)} was the best; {pruned} were pruned. Its parameters, by importance:"
)
for name, importance in importances.items():
    value = best.params[name]
    print(f"  {name:10} {value if isinstance(value, str) else f'{value:.4g}':>8}  {importance:6.1%}")

model = new_model(best)  # which suggests again what it had
accuracy = model.fit(loader(everything, best), epochs).evaluate(DataLoader(test, 1000)).accuracy
print(f"Result: validation accuracy = {best.value:.4f}")
print(f"Result: test accuracy = {accuracy:.4f}")
