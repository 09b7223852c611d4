"""Poutyne: https://poutyne.org/stable/model.html."""

from poutyne import LambdaCallback, Model


def make_model(task):
    return Model(task.module, task.optimizer(), "cross_entropy", batch_metrics=["accuracy"])


def fit(task):
    model, clock = make_model(task), LambdaCallback(on_epoch_end=lambda epoch, logs: task.tick())
    if task.arrays:
        model.fit(*task.arrays, batch_size=task.batch_size, epochs=task.epochs, callbacks=[clock])
    else:
        model.fit_generator(task.loader, epochs=task.epochs, callbacks=[clock])


def evaluate(task):
    model, loader = make_model(task), task.loader
    return lambda: model.evaluate_generator(loader)[1] / 100


def predict(task):
    model, loader = make_model(task), task.loader
    return lambda: model.predict_generator(loader, has_ground_truth=True)
