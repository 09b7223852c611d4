"""Keras 3 on torch: https://keras.io/api/models/model_training_apis/. The module is in a TorchModuleWrapper."""

import keras


def compile_model(task):
    model = keras.Sequential([keras.layers.TorchModuleWrapper(task.module)])
    settings = {"learning_rate" if name == "lr" else name: value for name, value in task.workload.settings.items()}
    optimizer = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}[task.workload.optimizer](**settings)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    return model


def fit(task):
    model, clock = compile_model(task), keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: task.tick())
    if task.arrays:
        model.fit(*task.arrays, batch_size=task.batch_size, epochs=task.epochs, callbacks=[clock])
    else:
        model.fit(task.loader, epochs=task.epochs, callbacks=[clock])


def evaluate(task):
    model, loader = compile_model(task), task.loader
    return lambda: model.evaluate(loader, return_dict=True)["accuracy"]


def predict(task):
    model, loader = compile_model(task), task.loader
    return lambda: model.predict(loader)
