"""fastai: https://docs.fast.ai/learner.html. It requires validation data, so it gets one batch."""

import importlib
from functools import partial

from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Callback, Learner
from fastai.metrics import accuracy
from fastai.optimizer import SGD, Adam

importlib.import_module("fastai.callback.progress")  # adds the progress bar to every Learner


def make_learner(task, train, valid):
    options = {"lr": 1e-3, "momentum": 0.0} | task.workload.settings
    optimizer = {"sgd": partial(SGD, mom=options["momentum"]), "adam": Adam}[task.workload.optimizer]
    data = DataLoaders(train, valid)
    learner = Learner(data, task.module, loss_func=task.loss, opt_func=optimizer, lr=options["lr"], metrics=accuracy)
    learner.recorder.train_metrics = True
    return learner


def fit(task):
    learner = make_learner(task, task.loader, task.one_batch)
    learner.fit(task.epochs, cbs=Callback(after_train=task.tick))


def evaluate(task):
    loader = DataLoader(task.dataset, bs=task.batch_size)
    learner = make_learner(task, loader, loader)
    return lambda: learner.validate()[1]


def predict(task):
    loader = DataLoader(task.dataset, bs=task.batch_size)
    learner = make_learner(task, loader, loader)
    return lambda: learner.get_preds()[0].numpy()
