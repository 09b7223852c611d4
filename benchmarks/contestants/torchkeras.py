"""torchkeras: https://github.com/lyhue1991/torchkeras. It requires validation data, so it gets one batch.

It has no predict. ``plot=False`` shows a tqdm bar instead of a live plot, as outside of notebooks.
"""

from torchkeras import KerasModel
from torchmetrics.classification import MulticlassAccuracy


class Clock:
    def __init__(self, tick):
        self.tick = tick

    def on_validation_epoch_end(self, model):
        self.tick()


def make_model(task):
    metrics = {"acc": MulticlassAccuracy(num_classes=10, average="micro")}
    return KerasModel(task.module, task.loss, metrics_dict=metrics, optimizer=task.optimizer())


def fit(task):
    model = make_model(task)
    model.fit(task.loader, task.one_batch, epochs=task.epochs, plot=False, callbacks=[Clock(task.tick)])


def evaluate(task):
    model, loader = make_model(task), task.loader
    return lambda: model.evaluate(loader)["val_acc"]
