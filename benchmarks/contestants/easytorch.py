"""easytorch with string arguments where a name and a learning rate are enough."""

from torch.utils.data import DataLoader

from easytorch import Model
from easytorch.callbacks import LambdaCallback
from easytorch.data import in_memory


def compile_model(task):
    use_name = set(task.workload.settings) <= {"lr"}
    optimizer = task.workload.optimizer if use_name else task.optimizer()
    lr = task.workload.settings.get("lr") if use_name else None
    return Model(task.module).compile(optimizer, "cross_entropy", metrics=["accuracy"], lr=lr)


def fit(task):
    model, clock = compile_model(task), LambdaCallback(on_epoch_end=lambda epoch, logs: task.tick())
    if task.arrays:
        model.fit(*task.arrays, batch_size=task.batch_size, epochs=task.epochs, callbacks=[clock])
    elif task.workload.kind == "images":
        loader = DataLoader(in_memory(task.dataset, verbose=0), task.batch_size, shuffle=True)
        model.fit(loader, epochs=task.epochs, callbacks=[clock])
    else:
        model.fit(task.loader, epochs=task.epochs, callbacks=[clock])


def evaluate(task):
    model, loader = compile_model(task), task.loader
    return lambda: model.evaluate(loader).accuracy


def predict(task):
    model, loader = compile_model(task), task.loader
    return lambda: model.predict(loader)
