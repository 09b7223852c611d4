"""skorch: https://skorch.readthedocs.io/en/stable/user/quickstart.html. It creates its own loader."""

import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, EpochScoring


class Clock(Callback):
    def __init__(self, tick):
        self.tick = tick

    def on_epoch_end(self, net, **kwargs):
        self.tick()


def make_net(task):
    options = {"lr": 1e-3} | task.workload.settings
    momentum = {"optimizer__momentum": options["momentum"]} if "momentum" in options else {}
    return NeuralNetClassifier(
        task.module,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer={"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[task.workload.optimizer],
        **momentum,
        lr=options["lr"],
        max_epochs=task.epochs,
        batch_size=task.batch_size,
        iterator_train__shuffle=True,
        train_split=None,
        classes=range(10),  # unknown for a dataset
        callbacks=[
            EpochScoring("accuracy", name="train_acc", on_train=True, lower_is_better=False),
            Clock(task.tick),
        ],
    )


def fit(task):
    net = make_net(task)
    if task.arrays:
        net.fit(*task.arrays)
    else:
        net.fit(task.dataset, y=None)


def evaluate(task):
    net, labels = make_net(task).initialize(), torch.stack([y for _, y in task.dataset]).numpy()
    return lambda: net.score(task.dataset, labels)


def predict(task):
    net = make_net(task).initialize()
    return lambda: net.forward(task.dataset).numpy()
