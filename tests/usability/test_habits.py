"""Habits of users of Keras, Lightning, fastai and skorch: each works, or one message leads to what works."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import easytorch
import easytorch.losses
import easytorch.metrics
import easytorch.optimizers
from easytorch import Callback, EarlyStopping, LambdaCallback, Model, ModelCheckpoint, callbacks
from tests.loops import blobs, mlp
from tests.usability.common_answers import Row, check

X, Y = blobs(48)
NUMBERS = torch.randn(48, 1)
LOGITS = "cross_entropy"


def model(loss=LOGITS, outputs=3, **options):
    return Model(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, outputs)), device="cpu").compile(
        "sgd", loss, **options
    )


def fit(*args, compiled=None, **options):
    return (compiled or model()).fit(*args, **({"verbose": 0} | options))


def fit_xy(**options):
    return fit(X, Y, **options)


def fitted(**options):
    compiled = model(**options)
    fit(X, Y, compiled=compiled, validation_split=0.25)
    return compiled


def imported(line):
    return lambda: exec(line)


def subclass(**methods):
    return lambda: type("Own", (Model,), {"__module__": "program", **methods})


class Batches:
    """A Keras ``Sequence``."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return X[index * 16 : index * 16 + 16], Y[index * 16 : index * 16 + 16]

    def on_epoch_end(self):
        pass


class KerasCallback(Callback):
    def on_epoch_end(self, epoch, logs={}):  # noqa: B006  # as Keras users write it
        self.last = logs["loss"]

    def on_batch_end(self, batch, logs=None):
        pass


class CallModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(8, 3)

    def call(self, inputs):
        return self.dense(inputs)


def set_attribute(name, value, target=model):
    return lambda: setattr(target(), name, value)


def set_rate(name):
    def run():
        compiled = model()
        setattr(compiled.optimizer, name, 0.1)
        fit(X, Y, compiled=compiled)
        return compiled.optimizer.param_groups[0]["lr"]

    return run


def set_trainable():
    compiled = model()
    compiled.module[0].trainable = False
    fit(X, Y, compiled=compiled)


def stop_in_callback():
    def stop(epoch, logs):
        hook.model.stop_training = True

    hook = LambdaCallback(on_epoch_end=stop)
    return len(fit_xy(epochs=5, callbacks=[hook])["loss"])


def step_without_return():
    class Own(Model):
        def train_step(self, data):
            x, y = data
            self.loss(self(x), y)

    Own(mlp(), device="cpu").compile("sgd", LOGITS).fit(X, Y, verbose=0)


KERAS = [
    Row("fit(x, y, validation_split=, callbacks=[])", lambda: fit_xy(validation_split=0.25, callbacks=[EarlyStopping()])),
    Row("fit(x, y, 32, 10)", lambda: len(fit(X, Y, 32, 10)["loss"]), value=10),
    Row("fit(x, y, 10)", lambda: fit(X, Y, 10), r"may mean epochs or batch_size\. Write epochs=10 or batch_size=10"),
    Row("fit(x, y, 32, 10, 1)", lambda: fit(X, Y, 32, 10, 1), r"Pass the others by name: fit\(x, y, epochs=10, batch_size=32"),
    Row("fit(loader, 5)", lambda: len(fit(DataLoader(TensorDataset(X, Y), 16), 5)["loss"]), value=5),
    Row("verbose='auto'", lambda: fit_xy(verbose="auto")),
    Row("history.history['loss']", lambda: len(fit_xy(epochs=2).history["loss"]), value=2),
    Row("history.history['acc']", lambda: fitted(metrics=["accuracy"]).history.history["acc"], "Did you mean 'accuracy'"),
    Row("history.history['val_acc']", lambda: fitted(metrics=["accuracy"]).history["val_acc"], "Did you mean 'val_accuracy'"),
    Row("history.history['val_loss']", lambda: fit_xy().history["val_loss"], "There was no validation"),
    Row("metrics=['acc']", lambda: "acc" in fitted(metrics=["acc"]).history, value=True),
    Row("evaluate(x, y)[1]", lambda: len(list(model(metrics=["accuracy"]).evaluate(X, Y, verbose=0))), value=2),
    Row("evaluate(return_dict=True)", lambda: type(model().evaluate(X, Y, verbose=0, return_dict=True)), value=dict),
    Row("train_on_batch(return_dict=True)", lambda: model().train_on_batch(X, Y, return_dict=True), r"Use dict\(\.\.\.\)"),
    Row("summary()", lambda: model().summary()),
    Row("summary(line_length=100)", lambda: model().summary(line_length=100), "'line_length'. Use col_width=16"),
    Row("summary((1, 8))", lambda: model().summary((1, 8)).total_params, value=99),
    Row("get_weights()", lambda: model().get_weights(), r"model\.module\.state_dict\(\)"),
    Row("set_weights(w)", lambda: model().set_weights([]), r"model\.module\.load_state_dict"),
    Row("from easytorch import load_model", imported("from easytorch import load_model"), r"Use Model\(net\)\.load\(path\)"),
    Row("from easytorch import EarlyStopping", imported("from easytorch import EarlyStopping, ModelCheckpoint")),
    Row("from easytorch import Dense", imported("from easytorch import Dense"), r"Use torch\.nn\.Linear"),
    Row("easytorch.load_model", lambda: easytorch.load_model("m.pt"), r"Use Model\(net\)\.load\(path\)"),
    Row("easytorch.models.load_model", lambda: easytorch.models.load_model("m.pt"), r"Model\(net\)\.load\(path\)"),
    Row("predict(x).argmax(axis=1)", lambda: model().predict(X, verbose=0).argmax(axis=1).shape, value=(48,)),
    Row("np.argmax(predict(x), axis=1)", lambda: np.argmax(model().predict(X, verbose=0), axis=1).shape, value=(48,)),
    Row("predict(x, batch_size=, steps=)", lambda: len(model().predict(X, batch_size=8, steps=2, verbose=0)), value=16),
    Row(
        "ModelCheckpoint(monitor='val_acc')",
        lambda: fit_xy(validation_split=0.25, callbacks=[ModelCheckpoint("m.pt", "val_acc", save_best_only=True)],
                       compiled=model(metrics=["accuracy"])),
        "Did you mean 'val_accuracy'",
    ),
    Row("ModelCheckpoint(period=2)", lambda: ModelCheckpoint("m.pt", period=2), r"Use save_freq=Every\(epochs=2\)"),
    Row("compile(learning_rate=1e-3)", lambda: model(learning_rate=1e-3), r"Use lr=0\.001"),
    Row("compile('sgd', momentum=, nesterov=)", lambda: model(lr=0.1, momentum=0.9, nesterov=True).optimizer.defaults["momentum"],
        value=0.9),
    Row("compile(weight_decay=)", lambda: model(weight_decay=0.01).optimizer.defaults["weight_decay"], value=0.01),
    Row("compile(decay=)", lambda: model(decay=1e-6), "scheduler="),
    Row("compile('adam', betas=)", lambda: Model(mlp()).compile("adam", LOGITS, betas=(0.8, 0.9)).optimizer.defaults["betas"],
        value=(0.8, 0.9)),
    Row("compile('adam', beta_1=)", lambda: Model(mlp()).compile("adam", LOGITS, beta_1=0.8), r"betas=\(0\.8, 0\.999\)"),
    Row("compile(torch.optim.Adam, lr=)", lambda: Model(mlp()).compile(torch.optim.Adam, LOGITS, lr=0.01)),
    Row("optimizers.Adam(learning_rate=)", lambda: easytorch.optimizers.Adam(learning_rate=1), r"Use compile\('adam', loss, lr="),
    Row("from easytorch.optimizers import Adam", imported("from easytorch.optimizers import Adam"), r"Use compile\('adam'"),
    Row("optimizers.schedules", lambda: easytorch.optimizers.schedules.CosineDecay, "scheduler='cosine'"),
    Row("compile('Adam')", lambda: Model(mlp()).compile("Adam", LOGITS)),
    Row("compile('rmsprop')", lambda: Model(mlp()).compile("rmsprop", LOGITS)),
    Row("compile(lambda)", lambda: Model(mlp()).compile(lambda parameters: torch.optim.Adam(parameters), LOGITS)),
    Row("clipnorm=1.0", lambda: model(clipnorm=1.0), r"clip_grad_norm=1\.0"),
    Row("softmax and sparse_...", lambda: fit_xy(compiled=Model(nn.Sequential(nn.Linear(8, 3), nn.Softmax(1)), device="cpu")
        .compile("sgd", "sparse_categorical_crossentropy")), "Remove the softmax"),
    Row("to_categorical floats", lambda: fit(X, F.one_hot(Y, 3).float(), compiled=model("categorical_crossentropy"))),
    Row("losses.SparseCategoricalCrossentropy", lambda: easytorch.losses.SparseCategoricalCrossentropy(from_logits=True),
        r"Use compile\(optimizer, 'cross_entropy'\)"),
    Row("losses.MeanSquaredError()", lambda: easytorch.losses.MeanSquaredError(), "'mean_squared_error'"),
    Row("loss=nn.CrossEntropyLoss", lambda: model(nn.CrossEntropyLoss), r"Create the object: loss=CrossEntropyLoss\(\)"),
    Row("loss='CrossEntropyLoss'", lambda: model("CrossEntropyLoss")),
    Row("metrics=['sparse_categorical_accuracy']", lambda: fitted(metrics=["sparse_categorical_accuracy"]).state.epoch, value=1),
    Row("metrics.AUC()", lambda: easytorch.metrics.AUC(), r"metrics=\['auroc'\]"),
    Row("from easytorch.metrics import AUC", imported("from easytorch.metrics import AUC"), r"metrics=\['auroc'\]"),
    Row("metrics.Precision()", lambda: easytorch.metrics.Precision(), r"metrics=\['precision'\]"),
    Row("metrics='accuracy'", lambda: fitted(metrics="accuracy").state.epoch, value=1),
    Row("metrics={'a': ...}", lambda: model(metrics={"a": "accuracy"}), "plain list of metrics"),
    Row("class_weight={0: 1, 1: 2}", lambda: fit_xy(class_weight={0: 1.0, 1: 2.0, 2: 1.0})),
    Row("train_on_batch", lambda: len(model().train_on_batch(X, Y)), value=1),
    Row("test_on_batch", lambda: len(model().test_on_batch(X, Y)), value=1),
    Row("predict_on_batch", lambda: model().predict_on_batch(X).shape, value=(48, 3)),
    Row("run_eagerly=True", lambda: model(run_eagerly=True), "jit_compile=False"),
    Row("weighted_metrics=", lambda: fitted(weighted_metrics=["accuracy"]).state.epoch, value=1),
    Row("workers=4", lambda: fit_xy(workers=4), "num_workers"),
    Row("use_multiprocessing=True", lambda: fit_xy(use_multiprocessing=True), "num_workers"),
    Row("initial_epoch, shuffle=False", lambda: len(fit_xy(initial_epoch=2, epochs=4, shuffle=False)["loss"]), value=2),
    Row("nb_epoch=5", lambda: fit_xy(nb_epoch=5), "epochs"),
    Row("epoch=5", lambda: fit_xy(epoch=5), "Did you mean 'epochs'"),
    Row("validation_data=[x, y]", lambda: fit_xy(validation_data=[X, Y]), r"as a tuple, \(x, y\)"),
    Row("validation_data=(x, y, w)", lambda: fit_xy(validation_data=(X, Y, torch.ones(48)))),
    Row("model(numpy)", lambda: tuple(model()(X.numpy()).shape), value=(48, 3)),
    Row("model(x, training=False)", lambda: tuple(model()(X, training=False).shape), value=(48, 3)),
    Row("LearningRateScheduler", lambda: fit_xy(callbacks=[callbacks.LearningRateScheduler(lambda epoch: 0.1)])),
    Row("ReduceLROnPlateau", lambda: fit_xy(validation_split=0.25, callbacks=[callbacks.ReduceLROnPlateau(patience=2)])),
    Row("EarlyStopping without validation", lambda: fit_xy(callbacks=[EarlyStopping()]), "Pass validation_data"),
    Row("callbacks=EarlyStopping()", lambda: fit_xy(validation_split=0.25, callbacks=EarlyStopping())),
    Row("callbacks=[CSVLogger]", lambda: fit_xy(callbacks=[callbacks.CSVLogger]), r"Create an instance: CSVLogger\(\)"),
    Row("TensorBoard(write_graph=True)", lambda: callbacks.TensorBoard("logs", write_graph=True), r"TensorBoard\(log_dir\)"),
    Row("model.stop_training = True", stop_in_callback, value=1),
    Row("layer.trainable = False", set_trainable, r"requires_grad_\(False\)"),
    Row("model.trainable = False", set_attribute("trainable", False), r"Freeze\('backbone'\)"),
    Row("model.lr = 0.1", set_attribute("lr", 0.1), r"model\.optimizer\.lr"),
    Row("model.optimizer.lr = 0.1", set_rate("lr"), value=0.1),
    Row("model.optimizer.learning_rate = 0.1", set_rate("learning_rate"), value=0.1),
    Row("y of [N] for Dense(1)", lambda: len(fit(X, NUMBERS[:, 0], compiled=model("mse", 1))["loss"]), value=1),
    Row("integers for binary_crossentropy", lambda: len(fit(X, Y % 2, compiled=model("bce_with_logits", 1))["loss"]), value=1),
    Row("one-hot integers", lambda: len(fit(X, F.one_hot(Y, 3))["loss"]), value=1),
    Row("class numbers [N, 1]", lambda: len(fit(X, Y[:, None])["loss"]), value=1),
    Row("string labels", lambda: fit(X, [f"class {label}" for label in Y]).model.class_names,
        value=["class 0", "class 1", "class 2"]),
    Row("on_epoch_end(logs={}), on_batch_end", lambda: fit_xy(callbacks=[KerasCallback()])),
    Row("a callback without the base class", lambda: fit_xy(callbacks=[Batches()]), "subclass of easytorch.callbacks.Callback"),
    Row("metrics_names", lambda: model().metrics_names, r"list\(model\.evaluate"),
    Row("count_params()", lambda: model().count_params(), "total_params"),
    Row("get_layer('a')", lambda: model().get_layer("a"), "get_submodule"),
    Row("to_json()", lambda: model().to_json(), "files contain weights only"),
    Row("add(layer)", lambda: model().add(nn.ReLU()), r"model\.module\.append"),
    Row("layers", lambda: model().layers, r"model\.module\.children"),
    Row("predict(x) > .5", lambda: (model("bce_with_logits", 1).predict(X, verbose=0) > 0.5).shape, value=(48, 1)),
    Row("Model([layers])", lambda: Model([nn.Linear(8, 3)]), r"nn\.Sequential\(\*layers\)"),
    Row("mixed_float16", lambda: model(precision="mixed_float16"), "Use 'fp16'"),
    Row("utils.set_random_seed", lambda: easytorch.utils.set_random_seed(0), r"easytorch\.set_seed\(0\)"),
    Row("utils.plot_model", lambda: easytorch.utils.plot_model(), r"model\.summary"),
    Row("train_step without return", step_without_return, "train_step returned"),
    Row("compute_loss overridden", subclass(compute_loss=lambda self, x, y, y_pred, sample_weight=None: 0),
        "never called.*compile"),
    Row("call instead of forward", lambda: fit_xy(compiled=Model(CallModule(), device="cpu").compile("sgd", LOGITS)),
        r"forward\(self, x\) in torch: rename it"),
    Row("a Sequence of batches", lambda: fit(Batches()).epoch, value=[0]),
    Row("load_weights(by_name=True)", lambda: model().load_weights("w.h5", by_name=True), "strict=False"),
]  # fmt: skip

# Names of Lightning, fastai, skorch, ignite and Accelerate.
OTHERS = {
    "Trainer": (lambda: easytorch.Trainer(max_epochs=3), r"Model\(module\)\.compile"),
    "LightningModule": (lambda: easytorch.LightningModule, r"train_step\(self, batch\)"),
    "Learner": (lambda: easytorch.Learner, r"Model\(module\)\.compile"),
    "NeuralNetClassifier": (lambda: easytorch.NeuralNetClassifier, r"Model\(module\)\.compile"),
    "Accelerator": (lambda: easytorch.Accelerator, r"Model\(module\)"),
    "create_supervised_trainer": (lambda: easytorch.create_supervised_trainer, r"Model\(module\)\.compile"),
    "MLFlowLogger": (imported("from easytorch import MLFlowLogger"), r"MLflowLogger\(experiment"),
    "WandbMetricsLogger": (imported("from easytorch.callbacks import WandbMetricsLogger"), r"WandbLogger\(project"),
    "watch": (lambda: model().watch(), r"GradientStatistics\(every=100\)"),
    "WandbCallback": (
        imported("from easytorch.callbacks import WandbCallback"),
        r"WandbLogger.*wandb\.watch.*GradientStatistics",
    ),
    "fit_one_cycle": (lambda: model().fit_one_cycle(5), "scheduler='one_cycle'"),
    "lr_find": (lambda: model().lr_find(), r"find_lr\(x, y\)\.suggestion"),
    "range_test": (lambda: model().range_test(), r"find_lr\(x, y\)"),
    "scale_batch_size": (lambda: model().scale_batch_size(), r"find_batch_size\(x, y\)\.suggestion"),
    "Tuner": (lambda: easytorch.Tuner, r"find_lr\(x, y\)"),
    "LRFinder": (lambda: easytorch.LRFinder, r"find_lr\(x, y\)"),
    "LearningRateFinder": (lambda: easytorch.callbacks.LearningRateFinder, r"find_lr\(x, y\)"),
    "freeze": (lambda: model().freeze(), r"Freeze\('backbone'\)"),
    "freeze_to": (lambda: model().freeze_to(2), "Freeze"),
    "unfreeze": (lambda: model().unfreeze(), "until=3"),
    "fine_tune": (lambda: model().fine_tune(3), r"Freeze\('backbone', until=1\)"),
    "BackboneFinetuning": (lambda: easytorch.callbacks.BackboneFinetuning, r"Freeze\('backbone', until=3\)"),
    "Unfreezer": (lambda: easytorch.callbacks.Unfreezer, r"Freeze\('backbone', until=3\)"),
    "CombinedLoader": (lambda: easytorch.CombinedLoader, r"easytorch\.data\.combine"),
    "ActivationStats": (lambda: easytorch.callbacks.ActivationStats, "GradientStatistics"),
    "xb": (lambda: model().xb, "current_batch"),
    "score": (lambda: model().score(X, Y), r"evaluate\(x, y\)\.accuracy"),
    "get_params": (lambda: model().get_params(), "a function that creates the model"),
    "__sklearn_tags__": (lambda: model().__sklearn_tags__(), r"sklearn\.metrics"),
    "partial_fit": (lambda: model().partial_fit(X, Y), "train_on_batch"),
    "max_epochs": (lambda: fit_xy(max_epochs=3), "Use epochs="),
    "max_steps": (lambda: fit_xy(max_steps=3), r"StopAfter\(updates="),
    "limit_train_batches": (lambda: fit_xy(limit_train_batches=3), "Use steps_per_epoch="),
    "limit_val_batches": (lambda: fit_xy(limit_val_batches=3), "Use validation_steps="),
    "gradient_clip_val": (lambda: fit_xy(gradient_clip_val=1.0), r"clip_grad_norm=1\.0"),
    "accumulate_grad_batches": (lambda: model(accumulate_grad_batches=4), "gradient_accumulation_steps=4"),
    "precision in fit": (lambda: fit_xy(precision="16-mixed"), "precision='bf16'"),
    "precision='16-mixed'": (lambda: model(precision="16-mixed"), "Use 'fp16'"),
    "devices": (lambda: fit_xy(devices=2), "torchrun"),
    "num_nodes": (lambda: model(num_nodes=2), r"torchrun --nnodes=2"),
    "sync_batchnorm": (lambda: model(sync_batchnorm=True), r"DataParallel\(sync_batchnorm=True\)"),
    "unused parameters": (
        lambda: model(strategy="ddp_find_unused_parameters_true"),
        r"DataParallel\(find_unused_parameters=True\)",
    ),
    "ddp_spawn": (lambda: model(strategy="ddp_spawn"), r"easytorch\.launch\(function"),
    "Model(devices=2)": (lambda: Model(mlp(), devices=2), "torchrun"),
    "train_dataloaders": (lambda: fit(train_dataloaders=[]), r"fit\(train_loader\)"),
    "ckpt_path": (lambda: fit_xy(ckpt_path="last"), "Use resume="),
    "every_n_epochs": (lambda: ModelCheckpoint("m.pt", every_n_epochs=2), r"Every\(epochs=2\)"),
    "training_step": (subclass(training_step=lambda self, batch: None), r"train_step\(self, batch\)"),
    "configure_optimizers": (subclass(configure_optimizers=lambda self: None), r"compile\(optimizer"),
    "load_from_checkpoint": (lambda: model().load_from_checkpoint("a.ckpt"), r"Model\(net\)\.load\(path\)"),
    "save_pretrained": (lambda: model().save_pretrained("folder"), r"model\.save\(path\)"),
    "zero_grad": (lambda: model().zero_grad(), r"module\.zero_grad"),
    "backward": (lambda: model().backward(1), r"strategy\.backward"),
    "log": (lambda: model().log("a", 1), "the dict that train_step returns"),
    "half": (lambda: model().half(), "precision='fp16'"),
    "plot": (lambda: model().plot(), r"history\.plot"),
    "to_categorical": (lambda: easytorch.to_categorical(Y), "one_hot"),
    "SaveModelCallback": (lambda: callbacks.SaveModelCallback, "ModelCheckpoint"),
}


@pytest.mark.parametrize("row", KERAS, ids=lambda row: row.name)
def test_habit_of_a_keras_user(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(row)


@pytest.mark.parametrize("name", OTHERS)
def test_names_of_other_libraries_are_answered(name):
    check(Row(name, *OTHERS[name]))


@pytest.mark.parametrize("ending", [".keras", ".h5", ".onnx"])
def test_files_with_names_of_other_libraries_warn(ending, tmp_path):
    for write in (
        functools.partial(model().save, tmp_path / f"m{ending}"),
        functools.partial(model().save_weights, tmp_path / f"w{ending}"),
        functools.partial(ModelCheckpoint, str(tmp_path / f"c{ending}")),
    ):
        with pytest.warns(UserWarning, match=r"in the format of torch.*Use the name '.*\.pt'"):
            write()
    model().load(tmp_path / f"m{ending}").load_weights(tmp_path / f"w{ending}")


def test_training_false_runs_the_module_in_eval_mode():
    compiled = Model(nn.Dropout(0.5), device="cpu")
    compiled.module.train()
    ones = torch.ones(100)
    assert torch.equal(compiled(ones, training=False), ones)
    assert not torch.equal(compiled(ones, training=True), ones)
    assert compiled.module.training


def test_two_integers_mean_what_they_mean_in_keras():
    sizes = []
    hook = LambdaCallback(on_train_batch_end=lambda batch, logs: sizes.append(batch))
    history = fit(X, Y, 16, 2, callbacks=[hook])
    assert len(history["loss"]) == 2
    assert sizes == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    "sizes",
    [(16, 2.5), (16, 2, 1), ("a",), (DataLoader(TensorDataset(X, Y)),)],
    ids=["float", "three", "text", "loader"],
)
def test_other_positional_arguments_are_refused(sizes):
    with pytest.raises(TypeError, match=r"by position.*Pass the others by name"):
        fit(X, Y, *sizes)
