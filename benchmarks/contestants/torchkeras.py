"""torchkeras: https://github.com/lyhue1991/torchkeras; it insists on validation data, so it has one batch of it.

It has no predict. ``plot=False`` as outside of notebooks: a tqdm bar instead of a live plot.
"""

from torchkeras import KerasModel
from torchmetrics.classification import MulticlassAccuracy


class Clock:
    def __init__(self, tick):
        self.tick = tick

    def on_validation_epoch_end(self, model):
        self.tick()


def model_of(task):
    metrics = {"acc": MulticlassAccuracy(num_classes=10, average="micro")}
    return KerasModel(task.module, task.loss, metrics_dict=metrics, optimizer=task.optimizer())


def fit(task):
    model = model_of(task)
    model.fit(task.loader, task.one_batch, epochs=task.epochs, plot=False, callbacks=[Clock(task.tick)])


def evaluate(task):
    model, loader = model_of(task), task.loader
    return lambda: model.evaluate(loader)["val_acc"]
