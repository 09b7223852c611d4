"""Hints for arguments and attributes that other libraries have.

Every hint completes the sentence "Use ..."; a hint that starts with "Not needed" is a sentence.
"""

from __future__ import annotations

import functools
import inspect
import opcode
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from types import FrameType
from typing import Any, TypeVar

from torch import nn

from easytorch._utils.internal import is_internal
from easytorch._utils.registry import did_you_mean, spellings
from easytorch._utils.tracebacks import hide_internal_frames
from easytorch._utils.warnings import warn

Class = TypeVar("Class", bound=type)

IMPORT_FROM = opcode.opmap["IMPORT_FROM"]

WANDB_HINT = (
    "a custom callback: wandb.log(logs) in on_epoch_end(self, epoch, logs=None). For what wandb.watch logs, add "
    "easytorch.callbacks.GradientStatistics(every=100) and on_log(self, values, step)"
)

# Arguments of the methods of Model.
SLURM_HINT = "SlurmRequeue() for auto_requeue; processes that srun starts are found without an object"

ARGUMENT_HINTS = {
    "learning_rate": "compile(..., lr=0.001)",
    "validation_batch_size": "the batch_size of a DataLoader: validation_data=DataLoader(dataset, 64)",
    "return_dict": "dict(...) of the result",
    "lr": "compile(..., lr=0.001)",
    "loss": "compile(optimizer, loss)",
    "optimizer": "compile(optimizer, loss)",
    "metrics": "compile(..., metrics=['accuracy'])",
    "precision": "compile(..., precision='bf16')",
    "scheduler": "compile(..., scheduler='cosine')",
    "val_data": "validation_data=",
    "valid_data": "validation_data=",
    "val_loader": "validation_data=",
    "validation_loader": "validation_data=",
    "val_dataloaders": "validation_data=",
    "train_dataloaders": "fit(train_loader)",
    "ckpt_path": "resume=",
    "criterion": "compile(optimizer, loss)",
    "loss_function": "compile(optimizer, loss)",
    "momentum": "compile('sgd', loss, lr=0.1, momentum=0.9)",
    "weight_decay": "compile('adamw', loss, weight_decay=0.01)",
    "nesterov": "compile('sgd', loss, lr=0.1, momentum=0.9, nesterov=True)",
    "betas": "compile('adam', loss, betas=(0.9, 0.999))",
    "seed": "easytorch.set_seed(0)",
    "max_epochs": "epochs=",
    "num_epochs": "epochs=",
    "weighted": "weighted_metrics=",
    "validation_metrics": "metrics=['accuracy', 'f1_macro'] and validation_only=['f1_macro']",
    "val_metrics": "metrics=['accuracy', 'f1_macro'] and validation_only=['f1_macro']",
    "run_eagerly": "jit_compile=False, which is the default",
    "mixed_precision": "precision='bf16'",
    "accumulate_grad_batches": "compile(..., gradient_accumulation_steps=4)",
    "gradient_clip_val": "compile(..., clip_grad_norm=1.0)",
    "clipnorm": "compile(..., clip_grad_norm=1.0)",
    "global_clipnorm": "compile(..., clip_grad_norm=1.0)",
    "clipvalue": "compile(..., clip_grad_value=0.5)",
    "workers": "DataLoader(dataset, num_workers=2)",
    "num_workers": "DataLoader(dataset, num_workers=2)",
    "device": "Model(module, device=...)",
    "optimiser": "optimizer=",
    "use_multiprocessing": "DataLoader(dataset, num_workers=2)",
    "by_name": "load_weights(path, strict=False)",
    "skip_mismatch": "load_weights(path, strict=False)",
    "training": "model(x, training=False)",
    "gradient_accumulation": "compile(..., gradient_accumulation_steps=4)",
    "max_grad_norm": "compile(..., clip_grad_norm=1.0)",
    "devices": "torchrun --nproc-per-node=2 train.py",
    "accelerator": "Model(module, device='cuda')",
    "max_steps": "callbacks=[easytorch.callbacks.StopAfter(updates=10_000)]",
    "max_time": "callbacks=[easytorch.callbacks.StopAfter(hours=3)]",
    "min_epochs": "callbacks=[easytorch.callbacks.EarlyStopping(patience=3, min_epochs=5)]",
    "min_steps": "callbacks=[easytorch.callbacks.EarlyStopping(patience=3, min_epochs=5)]",
    "val_check_interval": "validation_freq=easytorch.Every(updates=500)",
    "eval_steps": "validation_freq=easytorch.Every(updates=500)",
    "eval_strategy": "validation_freq=easytorch.Every(updates=500), or Every(epochs=1)",
    "evaluation_strategy": "validation_freq=easytorch.Every(updates=500), or Every(epochs=1)",
    "dataloader_idx": "validation_data={'clean': first, 'noisy': second}, whose logs are val_clean_loss and val_noisy_loss",
    "limit_train_batches": "steps_per_epoch=",
    "limit_val_batches": "validation_steps=",
    "check_val_every_n_epoch": "validation_freq=",
    "fast_dev_run": "dry_run=True",
    "auto_lr_find": "model.optimizer.lr = model.find_lr(x, y).suggestion before fit()",
    "auto_scale_batch_size": "batch_size=model.find_batch_size(x, y).suggestion",
    "auto_find_batch_size": "callbacks=[easytorch.callbacks.SplitOnOutOfMemory()]",
    "device_train_microbatch_size": "callbacks=[easytorch.callbacks.SplitOnOutOfMemory()]",
    "overfit_batches": "model.check(x, y), which tries to fit one batch, or a list with one batch: fit([batch], epochs=100)",
    "num_sanity_val_steps": "Not needed: fit() tries one validation batch before training",
    "train_split": "validation_split=",
    "iterator_train": "fit(x, y, batch_size=32)",
    "lr_max": "compile(..., lr=0.001, scheduler='one_cycle')",
    "max_lr": "compile(..., lr=0.001, scheduler='one_cycle')",
    "track_grad_norm": "callbacks=[easytorch.callbacks.GradientStatistics(every=100)]",
    "log_every_n_steps": "callbacks=[easytorch.callbacks.CSVLogger('updates.csv', every=50)]",
    "logger": "callbacks=[easytorch.callbacks.TensorBoard('logs')]",
    "patience": "callbacks=[easytorch.callbacks.EarlyStopping(patience=3)]",
    "progress": "verbose=0",
    "show_progress": "verbose=0",
    "dls": "Model(module).compile(...).fit(train_loader, validation_data=val_loader)",
    "cbs": "callbacks=",
    "loss_func": "compile(optimizer, loss)",
    "opt_func": "compile(optimizer, loss)",
    "overwrite": "Not needed: save() replaces an existing file",
    "save_format": "save_weights('model.safetensors') for safetensors; there is no other choice",
}

# Arguments of compile and options of optimizers in other libraries, with the values that the user passed.
COMPILE_HINTS = {
    "criterion": "loss={criterion!r}",
    "loss_fn": "loss={loss_fn!r}",
    "learning_rate": "lr={learning_rate!r}",
    "epsilon": "eps={epsilon!r}",
    "beta_1": "betas=({beta_1!r}, {beta_2!r})",
    "beta_2": "betas=({beta_1!r}, {beta_2!r})",
    "beta1": "betas=({beta1!r}, {beta2!r})",
    "beta2": "betas=({beta1!r}, {beta2!r})",
    "rho": "alpha={rho!r}",
    "wd": "weight_decay={wd!r}",
    "mom": "momentum={mom!r}",
    "clipnorm": "clip_grad_norm={clipnorm!r}",
    "global_clipnorm": "clip_grad_norm={global_clipnorm!r}",
    "clipvalue": "clip_grad_value={clipvalue!r}",
    "decay": "scheduler=easytorch.callbacks.LRScheduler(lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda "
    "step: 1 / (1 + {decay!r} * step)), step_every='update'); for weight decay, weight_decay={decay!r}",
    "use_ema": "fit(..., callbacks=[easytorch.callbacks.EMA()])",
    "ema_momentum": "fit(..., callbacks=[easytorch.callbacks.EMA(decay={ema_momentum!r})])",
    "loss_scale_factor": "precision='fp16', which scales the loss",
    "num_nodes": "torchrun --nnodes={num_nodes!r} --nproc-per-node=8 train.py",
    "sync_batchnorm": "strategy=easytorch.DataParallel(sync_batchnorm={sync_batchnorm!r})",
    "find_unused_parameters": "strategy=easytorch.DataParallel(find_unused_parameters={find_unused_parameters!r})",
    "use_distributed_sampler": "strategy=easytorch.DataParallel(split_data={use_distributed_sampler!r})",
    "params": "a dict for parameter groups: compile({{'backbone': ('adamw', {{'lr': 1e-5}}), 'head': 'adam'}}, ...)",
    "d_optimizer": "a dict: compile({{'discriminator': {d_optimizer!r}, 'generator': {g_optimizer!r}}}), and the methods "
    "discriminator_step(self, batch) and generator_step(self, batch)",
    "g_optimizer": "a dict: compile({{'discriminator': {d_optimizer!r}, 'generator': {g_optimizer!r}}}), and the methods "
    "discriminator_step(self, batch) and generator_step(self, batch)",
    "optimizer__param_groups": "a dict: compile({{'backbone*': ('sgd', {{'lr': 0.01}}), '*': 'sgd'}}, ...)",
    "param_groups": "a dict: compile({{'backbone': ('adamw', {{'lr': 1e-5}}), 'head': 'adam'}}, ...)",
    "splitter": "a dict: compile({{'backbone': ('adamw', {{'lr': 1e-5}}), 'head': 'adam'}}, ...)",
    "optimizer_options": "each option as an argument: compile('sgd', ..., momentum=0.9)",
}
COMPILE_HINT_DEFAULTS: dict[str, Any] = {"beta_1": 0.9, "beta_2": 0.999, "beta1": 0.9, "beta2": 0.999}
COMPILE_HINT_DEFAULTS |= {"d_optimizer": "adam", "g_optimizer": "adam"}

# Arguments of classes.
OPTION_HINTS = {
    "BackupAndRestore.double_checkpoint": "keep=2, which is the default",
    "BackupAndRestore.path": "backup_dir=",
    "CSVLogger.path": "filename=",
    "DataParallel.devices": "torchrun --nproc-per-node=2 train.py",
    "EMA.momentum": "decay=",
    "EarlyStopping.check_finite": "the callback TerminateOnNaN()",
    "EarlyStopping.stopping_threshold": "target=",
    "EarlyStopping.early_stopping_patience": "patience=",
    "EarlyStopping.divergence_threshold": "the callback TerminateOnNaN()",
    "Every.steps": "updates=",
    "Every.hours": "minutes=60",
    "Every.seconds": "minutes=0.5",
    "StopAfter.duration": "hours= and minutes=",
    "StopAfter.epochs": "fit(..., epochs=5)",
    "StopAfter.steps": "updates=",
    "StopAfter.days": "hours=24",
    "FullySharded.devices": "torchrun --nproc-per-node=2 train.py",
    "Model.accelerator": "device=",
    "Model.loss": "Model(module).compile(optimizer, loss)",
    "Model.optimizer": "Model(module).compile(optimizer, loss)",
    "ModelCheckpoint.dirpath": "filepath='runs/{epoch:02d}.pt'",
    "ModelCheckpoint.every_n_epochs": "save_freq=Every(epochs=2)",
    "ModelCheckpoint.every_n_train_steps": "save_freq=100",
    "ModelCheckpoint.path": "filepath=",
    "ModelCheckpoint.save_top_k": "keep_best=",
    "ModelCheckpoint.asynchronous": "save_in_background=True",
    "ModelCheckpoint.async_save": "save_in_background=True",
    "BackupAndRestore.asynchronous": "save_in_background=True",
    "ModelCheckpoint.period": "save_freq=Every(epochs=2)",
    "ModelCheckpoint.filename": "filepath='runs/{epoch:02d}.pt'",
    "ModelCheckpoint.save_last": "fit(..., resume='run/'), which saves the newest state",
    "Model.precision": "Model(module).compile(..., precision='bf16')",
    "Model.devices": "torchrun --nproc-per-node=2 train.py",
    "Model.loss_func": "Model(module).compile(optimizer, loss)",
    "Model.metrics": "Model(module).compile(optimizer, loss, metrics=['accuracy'])",
    "ReduceLROnPlateau.epsilon": "min_delta=",
    "SWA.swa_epoch_start": "start_epoch=",
    "TensorBoard.profile_batch": "torch.profiler in a custom callback",
    "TensorBoard.write_graph": "TensorBoard(log_dir), which writes the logs",
}

# Options of summary().
SUMMARY_HINTS = {
    "line_length": "col_width=16, the characters of a column, and depth=2",
    "positions": "col_width=16, the characters of a column",
    "print_fn": "str(model.summary()), which is the table",
    "expand_nested": "depth=4",
    "layer_range": "depth=2",
    "show_trainable": "col_names=('num_params', 'trainable')",
    "input_shape": "summary((1, 20)), the shape with the batch dimension",
    "max_depth": "depth=2",
    "batch_size": "summary((32, 20)), the shape with the batch dimension",
}

# Attributes of Model, in Keras or of a module.
ATTRIBUTE_HINTS = {
    "layers": "list(model.module.children())",
    "get_layer": "model.module.get_submodule(name)",
    "weights": "list(model.module.parameters()), or model.module.named_parameters() with their names",
    "variables": "list(model.module.parameters())",
    "trainable_weights": "[p for p in model.module.parameters() if p.requires_grad]",
    "trainable_variables": "[p for p in model.module.parameters() if p.requires_grad]",
    "get_weights": "model.module.state_dict()",
    "set_weights": "model.module.load_state_dict(state)",
    "count_params": "model.summary().total_params",
    "watch": "fit(..., callbacks=[easytorch.callbacks.GradientStatistics(every=100)])",
    "metrics_names": "list(model.evaluate(...).keys())",
    "trainable": "fit(..., callbacks=[easytorch.callbacks.Freeze('backbone')])",
    "lr": "model.optimizer.lr",
    "learning_rate": "model.optimizer.lr",
    "add": "model.module.append(layer) of an nn.Sequential, before compile()",
    "build": "Not needed: a torch.nn.Module creates its layers in __init__",
    "to_json": "the code of the module: files contain weights only",
    "get_config": "the code of the module: files contain weights only",
    "reset_states": "model.metrics.reset() in a custom loop",
    "fit_generator": "model.fit(generator)",
    "evaluate_generator": "model.evaluate(generator)",
    "predict_generator": "model.predict(generator)",
    "load_model": "Model(net).load(path)",
    "train": "fit(), which sets train mode; in a custom loop model.module.train()",
    "eval": "evaluate() or predict(), which set eval mode; in a custom loop model.module.eval()",
    "compute_loss": "model.loss(y_pred, y)",
    "add_loss": "compile(optimizer, f) with f(y_pred, y, x, model), which returns the sum of the losses",
    "compiled_loss": "model.loss(y_pred, y)",
    "compiled_metrics": "model.metrics",
    "train_function": "train_step(batch)",
    "to": "Model(module, device=...)",
    "cuda": "Model(module, device='cuda')",
    "cpu": "Model(module, device='cpu')",
    "plot": "model.history.plot()",
    "plot_loss": "model.history.plot('loss')",
    "score": "model.evaluate(x, y).accuracy, with metrics=['accuracy'] in compile()",
    "get_params": "a function that creates the model: a clone of scikit-learn has to create a new one",
    "set_params": "compile(), which keeps the weights",
    "__sklearn_tags__": "predict_classes(x) or predict(x), and a function of sklearn.metrics of the result",
    "classes_": "the order of the outputs of the module",
    "save_model": "model.save(path)",
    "zero_grad": "model.module.zero_grad(), or model.optimizer.zero_grad()",
    "half": "compile(..., precision='fp16')",
    "float": "Not needed: the module keeps its dtype",
    "show_training_loop": "model.explain(x, y), or model.to_script(x, y) for the program",
    "get_compile_config": "model.explain()",
    "describe": "model.explain(x, y)",
    "to_code": "model.to_script()",
    "export_script": "model.to_script()",
    "lr_find": "model.find_lr(x, y).suggestion",
    "suggest_lr": "model.find_lr(x, y).suggestion",
    "range_test": "model.find_lr(x, y)",
    "scale_batch_size": "model.find_batch_size(x, y).suggestion",
    "fit_one_cycle": "compile(..., lr=0.001, scheduler='one_cycle') and fit(..., epochs=5)",
    "fine_tune": "fit(..., callbacks=[easytorch.callbacks.Freeze('backbone', until=1)]): frozen in the first epoch",
    "freeze": "fit(..., callbacks=[easytorch.callbacks.Freeze('backbone')])",
    "freeze_to": "fit(..., callbacks=[easytorch.callbacks.Freeze('backbone.[0-3]')]) with the names of the frozen layers",
    "unfreeze": "fit() without Freeze, or Freeze('backbone', until=3) to train all layers from epoch 3 on",
    "show_results": "model.predict_classes(x)",
    "check_model": "model.check(x, y)",
    "sanity_check": "model.check(x, y)",
    "verify": "model.check(x, y)",
    "classification_report": "model.report(x, y)",
    "confusion_matrix": "model.report(x, y).confusion",
    "top_losses": "model.report(x, y).to_frame('worst')",
    "plot_top_losses": "model.report(x, y).plot()",
    "most_confused": "model.report(x, y).to_frame('confusions')",
    "get_preds": "model.predict_proba(x)",
    "validate": "model.evaluate(data)",
    "test": "model.evaluate(data)",
    "train_model": "model.fit(x, y)",
    "partial_fit": "model.train_on_batch(x, y), or model.fit(x, y)",
    "train_dataloader": "model.fit(train_loader)",
    "prepare": "compile(), which moves the module to the device",
    "backward": "fit(); in a custom update self.strategy.backward(loss)",
    "log": "the dict that train_step returns: {'loss': loss, 'name': value}",
    "log_dict": "the dict that train_step returns: {'loss': loss, 'name': value}",
    "to_onnx": "model.export('model.onnx')",
    "to_torchscript": "model.export('model.pt2')",
    "from_pretrained": "Model(net).load(path), or Model.from_hub(net, 'user/name')",
    "load_from_checkpoint": "Model(net).load(path)",
    "save_pretrained": "model.save(path), or model.push_to_hub('user/name')",
    "input_shape": "model.summary(x)",
    "output_shape": "model.summary(x)",
    "xb": "model.current_batch, in the batch hooks of a callback",
    "yb": "model.current_batch, in the batch hooks of a callback",
    "inputs": "the arguments of model.module.forward()",
    "outputs": "model.predict(x)",
    "get_optimizer": "model.optimizer",
    "optimizer_step": "update(window); LBFGS and SAM need no closure in fit(): compile('lbfgs', loss)",
    "train_step_single": "train_step(batch); LBFGS needs no closure in fit(): compile('lbfgs', loss)",
    "optimizers": "model.optimizer['name'] after compile({'name': 'adam', ...})",
    "automatic_optimization": "one step for each optimizer: compile({'critic': 'adam', ...}) and critic_step(self, batch)",
    "manual_backward": "the 'loss' that critic_step(self, batch) returns, after compile({'critic': 'adam', ...})",
    "toggle_optimizer": "Not needed: the loss of critic_step(self, batch) reaches no parameter of another optimizer",
    "untoggle_optimizer": "Not needed: the loss of critic_step(self, batch) reaches no parameter of another optimizer",
    "d_optimizer": "model.optimizer['discriminator'] after compile({'discriminator': 'adam', 'generator': 'adam'})",
    "g_optimizer": "model.optimizer['generator'] after compile({'discriminator': 'adam', 'generator': 'adam'})",
    "stop": "model.stop_training = True",
    "forward": "model(x), or model.module(x)",
}
ATTRIBUTE_HINTS |= {
    name: f"model.module.{name}()"
    for name in ("parameters", "named_parameters", "children", "modules", "named_modules", "load_state_dict")
}

# Attributes that Keras users assign; a model would ignore them.
IGNORED_ATTRIBUTES = ("lr", "learning_rate", "trainable")

# Attributes that end a loop when they are True.
STOP_FLAGS = ("stop_training", "stop_evaluating", "stop_predicting")

# Methods that a subclass of Model may override.
OVERRIDABLE_STEPS = ("train_step", "test_step", "predict_step", "update", "unpack", "batch_size")

# Methods that take the batch as their only argument.
BATCH_STEPS = ("train_step", "test_step", "predict_step")

# Methods that a model of another library overrides.
METHOD_HINTS = {
    "training_step": "train_step(self, batch)",
    "validation_step": "test_step(self, batch)",
    "validation_epoch_end": "on_test_end of a callback",
    "configure_optimizers": "compile(optimizer, ..., scheduler=...), or a dict of several: compile({'critic': 'adam', ...})",
    "on_save_checkpoint": "an attribute: what is set in __init__ is saved and restored",
    "on_load_checkpoint": "an attribute: what is set in __init__ is saved and restored",
}

# Attributes of the package.
PACKAGE_HINTS = {
    "load_model": "Model(net).load(path)",
    "load": "Model(net).load(path)",
    "Tuner": "model.find_lr(x, y), model.find_batch_size(x, y) and model.tune_speed(x, y)",
    "LRFinder": "model.find_lr(x, y)",
    "models": "easytorch.Model, and Model(net).load(path)",
    "Sequential": "easytorch.Model(torch.nn.Sequential(...))",
    "layers": "torch.nn",
    "Input": "Not needed: the arguments of forward() are the inputs of a module",
    "Dense": "torch.nn.Linear(inputs, outputs)",
    "datasets": "torchvision.datasets",
    "utils": "easytorch.set_seed(0) for set_random_seed, model.summary() for plot_model, torch.utils.data for data",
    "seed_everything": "easytorch.set_seed(0)",
    "set_random_seed": "easytorch.set_seed(0)",
    "fix_seed": "easytorch.set_seed(0)",
    "random_seed": "easytorch.set_seed(0)",
    "manual_seed": "easytorch.set_seed(0)",
    "to_categorical": "Not needed: 'cross_entropy' takes class indices; or torch.nn.functional.one_hot(y, n).float()",
    "plot_model": "model.summary()",
    "backend": "torch",
    "ops": "torch",
    "applications": "torchvision.models, or the libraries timm and transformers",
    "preprocessing": "torchvision.transforms",
    "regularizers": "torch.optim.AdamW(net.parameters(), weight_decay=0.01), or a custom loss",
    "initializers": "torch.nn.init",
    "activations": "torch.nn.functional",
    "constraints": "a custom callback that changes the weights in on_train_batch_end",
    "mixed_precision": "compile(..., precision='bf16')",
    "clone_model": "copy.deepcopy(model)",
    "save_model": "model.save(path)",
    "Module": "easytorch.Model(module) of a torch.nn.Module",
    "LightningModule": "torch.nn.Module in easytorch.Model; a custom train_step(self, batch) is a method of a subclass of Model",
    "LightningDataModule": "fit(train_loader, validation_data=val_loader)",
    "Fabric": "easytorch.Model, with a custom train_step(self, batch)",
    "Accelerator": "easytorch.Model(module), which chooses the device",
    "GANLearner": "easytorch.Model with generator_step(self, batch) and critic_step(self, batch), and compile({'generator': "
    "'adam', 'critic': 'adam'})",
    "Learner": "easytorch.Model(module).compile(...).fit(...)",
    "vision_learner": "easytorch.Model(torchvision.models.resnet18(weights='DEFAULT'))",
    "DataLoaders": "fit(train_loader, validation_data=val_loader)",
    "CombinedLoader": "easytorch.data.combine({'labeled': loader, 'unlabeled': other_loader})",
    "DataBlock": "torch.utils.data.Dataset",
    "NeuralNet": "easytorch.Model(module).compile(...).fit(x, y)",
    "NeuralNetClassifier": "easytorch.integrations.sklearn.Classifier(module), or easytorch.Model(module).compile('adam', "
    "'cross_entropy', metrics=['accuracy']).fit(x, y)",
    "NeuralNetRegressor": "easytorch.integrations.sklearn.Regressor(module), or easytorch.Model(module).compile('adam', "
    "'mse').fit(x, y)",
    "SKLearnClassifier": "easytorch.integrations.sklearn.Classifier(module)",
    "SKLearnRegressor": "easytorch.integrations.sklearn.Regressor(module)",
    "KerasClassifier": "easytorch.integrations.sklearn.Classifier(module)",
    "KerasRegressor": "easytorch.integrations.sklearn.Regressor(module)",
    "Classifier": "from easytorch.integrations.sklearn import Classifier",
    "Regressor": "from easytorch.integrations.sklearn import Regressor",
    "integrations": "from easytorch.integrations.sklearn import Classifier",
    "Engine": "easytorch.Model, with a custom train_step(self, batch)",
    "Events": "the hooks of easytorch.Callback, such as on_epoch_end",
    "create_supervised_trainer": "easytorch.Model(module).compile(...).fit(...)",
    "create_supervised_evaluator": "model.evaluate(data)",
    "TrainingArguments": "the arguments of compile() and fit()",
    "Config": "the arguments of compile() and fit()",
    "loggers": "easytorch.callbacks.TensorBoard or CSVLogger",
    "WandbLogger": WANDB_HINT,
    "DataLoader": "torch.utils.data.DataLoader",
    "Dataset": "torch.utils.data.Dataset",
    "Conv2D": "torch.nn.Conv2d(in_channels, out_channels, kernel_size)",
    "Flatten": "torch.nn.Flatten()",
    "Dropout": "torch.nn.Dropout(p)",
    "nn": "torch.nn",
    "optim": "torch.optim",
    "fit": "easytorch.Model(module).compile(optimizer, loss).fit(x, y)",
    "train": "easytorch.Model(module).compile(optimizer, loss).fit(x, y)",
    "Trainer": "easytorch.Model(module).compile(...).fit(...)",
    "EpochScoring": "easytorch.EpochMetric(f1_score, average='macro')",
    "AccumMetric": "easytorch.EpochMetric(f1_score, average='macro')",
    "skm_to_fastai": "easytorch.EpochMetric(f1_score, average='macro')",
    "SKLearnMetrics": "easytorch.EpochMetric(f1_score, average='macro')",
}

# Classes of easytorch.callbacks.
CALLBACK_HINTS = {
    "SwapEMAWeights": "EMA()",
    "BatchSizeFinder": "model.find_batch_size(x, y) before fit(), or SplitOnOutOfMemory() while training",
    "LearningRateFinder": "model.find_lr(x, y) before fit()",
    "LRFinder": "model.find_lr(x, y) before fit()",
    "AsyncCheckpointIO": "ModelCheckpoint(..., save_in_background=True)",
    "ExponentialMovingAverage": "EMA()",
    "EMAWeightAveraging": "EMA()",
    "WeightAveraging": "EMA() or SWA()",
    "StochasticWeightAveraging": "SWA()",
    "RemoteMonitor": "LambdaCallback(on_epoch_end=lambda epoch, logs: ...)",
    "ProgbarLogger": "fit(verbose=1), which is the default",
    "ProgressBar": "fit(verbose=1), which is the default",
    "RichProgressBar": "fit(verbose=1), which is the default",
    "TQDMProgressBar": "fit(verbose=1), which is the default",
    "History": "the result of fit()",
    "LearningRateMonitor": "Not needed: the history has 'lr', and 'lr_1', ... of other parameter groups",
    "EpochScoring": "easytorch.EpochMetric(f1_score, average='macro') in compile(metrics=...)",
    "WandbLogger": WANDB_HINT,
    "WandbCallback": WANDB_HINT,
    "TensorBoardLogger": "TensorBoard(log_dir)",
    "SaveModelCallback": "ModelCheckpoint(filepath, save_best_only=True)",
    "EarlyStoppingCallback": "EarlyStopping(monitor, patience=3)",
    "GradientClipping": "compile(..., clip_grad_norm=1.0)",
    "GradientAccumulationScheduler": "compile(..., gradient_accumulation_steps=4)",
    "Timer": "StopAfter(hours=3)",
    "StopAtStep": "StopAfter(updates=10_000)",
    "SLURMEnvironment": SLURM_HINT,
    "RayTrainReportCallback": "RayReport()",
    "TuneReportCallback": "RayReport()",
    "TuneReportCheckpointCallback": "RayReport()",
    "ReportCheckpointCallback": "RayReport()",
    "PyTorchLightningPruningCallback": "OptunaPruning(trial)",
    "EvaluateEvery": "fit(..., validation_freq=easytorch.Every(updates=500))",
    "ModelSummary": "model.summary()",
    "OneCycleScheduler": "compile(..., scheduler='one_cycle')",
    "OneCycleLR": "compile(..., scheduler='one_cycle')",
    "CosineAnnealing": "compile(..., scheduler='cosine')",
    "ActivationStats": "GradientStatistics(every=100)",
    "DeviceStatsMonitor": "GradientStatistics(every=100) for gradients; torch.profiler for the device",
    "OnExceptionCheckpoint": "fit(..., resume='run/'), which also saves the state after an error",
    "BaseFinetuning": "Freeze('backbone', until=3)",
    "BackboneFinetuning": "Freeze('backbone', until=3)",
    "Freezer": "Freeze('backbone')",
    "Unfreezer": "Freeze('backbone', until=3), which trains the layers from epoch 3 on",
    "Initializer": "torch.nn.init, before Model(module)",
    "BaseLogger": "Not needed: the history has the means",
    "Checkpoint": "ModelCheckpoint(filepath)",
}

# Techniques of fastai, composer and Keras that need no class here; docs/guides/recipes.md has a program for each.
RECIPE_HINTS = {
    "MixUp": "a collate_fn of the DataLoader that mixes a batch; see the guide 'Recipes'",
    "CutMix": "a collate_fn of the DataLoader that mixes a batch; see the guide 'Recipes'",
    "RandomErasing": "torchvision.transforms.v2.RandomErasing() in the dataset",
    "LabelSmoothing": "compile(optimizer, torch.nn.CrossEntropyLoss(label_smoothing=0.1))",
    "LabelSmoothingCrossEntropy": "compile(optimizer, torch.nn.CrossEntropyLoss(label_smoothing=0.1))",
    "GradientNoise": "a callback with on_before_optimizer_step; see the guide 'Recipes'",
    "MCDropoutCallback": "a custom predict_step(self, batch); see the guide 'Recipes'",
    "NTXentLoss": "a custom train_step(self, batch) with two views; see the guide 'Recipes'",
}
CALLBACK_HINTS |= RECIPE_HINTS
PACKAGE_HINTS |= RECIPE_HINTS

# Losses of Keras and torch, where the name in snake case is not the name of the loss here.
LOSS_HINTS = {
    "SparseCategoricalCrossentropy": "compile(optimizer, 'cross_entropy'), with logits as outputs",
    "CategoricalCrossentropy": "compile(optimizer, 'cross_entropy'), with logits as outputs",
    "BinaryCrossentropy": "compile(optimizer, 'bce_with_logits') with logits, or 'bce' with probabilities, as outputs",
    "CategoricalFocalCrossentropy": "a custom loss f(y_pred, y), such as torchvision.ops.sigmoid_focal_loss",
    "BinaryFocalCrossentropy": "a custom loss f(y_pred, y), such as torchvision.ops.sigmoid_focal_loss",
    "CosineSimilarity": "a custom loss: lambda y_pred, y: -torch.nn.functional.cosine_similarity(y_pred, y).mean()",
    "Hinge": "a custom loss: lambda y_pred, y: (1 - y * y_pred).clamp(min=0).mean()",
    "Loss": "a function f(y_pred, y), or a torch.nn.Module, in compile(optimizer, f)",
    "KLDivergence": "compile(optimizer, 'kl_divergence')",
} | {name: hint for name, hint in RECIPE_HINTS.items() if name.startswith(("Label", "NTXent"))}

# What the modules of optimizers of other libraries have.
OPTIMIZER_HINTS = {
    "schedules": "compile(..., scheduler='cosine'), or a torch.optim.lr_scheduler",
    "Optimizer": "torch.optim.Optimizer",
    "Ftrl": "compile('adagrad', loss)",
    "Lion": "an optimizer of a library, passed as an object: compile(Lion(net.parameters()), loss)",
    "LBFGS": "compile('lbfgs', loss)",
    "ASAM": "compile('sam', loss, adaptive=True)",
}

# Metrics of Keras and torchmetrics, where the name in snake case is not the name of the metric here.
METRIC_HINTS = {
    "AUC": "compile(..., metrics=['auroc'])",
    "F1Score": "compile(..., metrics=['f1'])",
    "MeanSquaredError": "compile(..., metrics=['mse'])",
    "MeanAbsoluteError": "compile(..., metrics=['mae'])",
    "RootMeanSquaredError": "compile(..., metrics=['rmse'])",
    "R2Score": "compile(..., metrics=['r2'])",
    "Mean": "easytorch.Mean",
    "Metric": "easytorch.Metric",
    "MeanMetricWrapper": "a function f(y_pred, y) in compile(..., metrics=[f])",
    "MeanIoU": "torchmetrics.JaccardIndex(task='multiclass', num_classes=n) in compile(..., metrics=[...])",
    "CosineSimilarity": "a function: lambda y_pred, y: torch.nn.functional.cosine_similarity(y_pred, y)",
    "ConfusionMatrix": "model.report(x, y).confusion",
}

# Values of precision.
PRECISION_HINTS = {
    "mixed_bfloat16": "bf16", "mixed_float16": "fp16", "bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "half": "fp16",
    "bf16-mixed": "bf16", "16-mixed": "fp16", "32-true": "fp32", "16": "fp16", "32": "fp32", "amp": "bf16",
}  # fmt: skip

# Names of strategies in Lightning.
STRATEGY_HINTS = {
    "ddp_find_unused_parameters_true": "easytorch.DataParallel(find_unused_parameters=True)",
    "ddp_find_unused_parameters_false": "'ddp'",
    "ddp_spawn": "easytorch.launch(function, processes=2)",
    "ddp_notebook": "easytorch.launch(function, processes=2, start='fork')",
    "ddp_fork": "easytorch.launch(function, processes=2, start='fork')",
    "deepspeed": "'fsdp'",
    "dp": "'ddp'",
    "single_device": "'one'",
}

# Names of the first and second parameter of a loss or metric in Keras.
TARGET_NAMES = {
    "actual", "expected", "ground_truth", "gt", "label", "labels", "t", "target", "targets", "true", "truth", "y", "y_test",
    "y_true", "yt", "ytrue",
}  # fmt: skip
PREDICTION_NAMES = {
    "input", "inputs", "logit", "logits", "o", "out", "output", "outputs", "p", "pred", "prediction", "predictions", "predicted",
    "preds", "probabilities", "probs", "score", "scores", "y_hat", "y_pred", "y_preds", "y_prob", "y_score", "yh", "yhat", "yp",
    "ypred",
}  # fmt: skip


def missing_attribute_error(owner: str, name: str, hints: Mapping[str, str], names: Iterable[str]) -> AttributeError:
    """Return the error for an attribute that does not exist.

    Args:
        owner: The object, for the message: ``"easytorch"``.
        name: The attribute.
        hints: What to use for names of other libraries.
        names: The existing attributes, for a suggestion.
    """
    if name in hints:
        return AttributeError(f"{owner} has no {name!r}.{_format_hint(hints[name])}")
    public = [known for known in names if not known.startswith("_")]
    suggestion = "" if name.startswith("_") else did_you_mean(name, public, 0.75)
    return AttributeError(f"{owner} has no {name!r}.{suggestion}")


def missing_name_error(module: str, name: str, hints: Mapping[str, str], names: Iterable[str]) -> Exception:
    """Return the error for a name that a module does not have; see ``missing_attribute_error``.

    In ``from module import name`` it is an ``ImportError``: Python replaces an ``AttributeError`` by a message without a hint.
    """
    error = missing_attribute_error(module, name, hints, names)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_internal(frame):
        frame = frame.f_back
    is_import = frame is not None and frame.f_code.co_code[frame.f_lasti] == IMPORT_FROM
    return ImportError(str(error), name=module) if is_import else error


def missing_class_error(
    module: str, name: str, hints: Mapping[str, str], table: Iterable[str], usage: str
) -> Exception:
    """Return the error for a class of another library that a module does not have.

    Args:
        module: The module, for the message: ``"easytorch.losses"``.
        name: The class.
        hints: What to use for classes without a name in ``table``.
        table: The names that ``compile`` knows.
        usage: How to use such a name, with the field ``{name!r}``.
    """
    known = next((spelling for spelling in spellings(name.removesuffix("Loss")) if spelling in table), None)
    if known is not None:
        hints = {name: usage.format(name=known), **hints}
    return missing_name_error(module, name, hints, table)


def check_steps(cls: type) -> None:
    """Check the methods of a subclass of ``Model`` that look like steps.

    Warns of methods that are never called because their name is misspelled or belongs to another library.

    Raises:
        TypeError: If a step does not take the batch as its only argument.
    """
    for name, function in vars(cls).items():
        if not inspect.isfunction(function):
            continue
        if name in BATCH_STEPS:
            _check_takes_batch(cls, name, function)
        elif name == "compute_loss" and {"y_pred", "inputs"} & inspect.signature(function).parameters.keys():
            warn(
                f"{cls.__name__}.compute_loss is never called. Pass the loss to compile(optimizer, f), where f(y_pred, y) "
                "returns it, or f(y_pred, y, x, model) if it needs the inputs or the model; or override train_step(self, batch)."
            )
        elif name in METHOD_HINTS:
            warn(f"{cls.__name__}.{name} is never called.{_format_hint(METHOD_HINTS[name])}")
        elif suggestion := _suggest_step(cls, name):
            warn(
                f"{cls.__name__}.{name} is never called by easytorch.{suggestion} Rename it, or ignore this warning if your own "
                "code calls it."
            )


def check_assignment(name: str) -> None:
    """Raise an ``AttributeError`` for the assignment of an attribute that a model would ignore."""
    if name in IGNORED_ATTRIBUTES:
        raise AttributeError(f"Setting model.{name} has no effect.{_format_hint(ATTRIBUTE_HINTS[name])}")


def check_options(title: str, options: Iterable[str], names: Sequence[str], hints: Mapping[str, str]) -> None:
    """Raise a ``TypeError`` with a hint if one of ``options`` is not in ``names``.

    Args:
        title: The function, for the message: ``"Model.summary"``.
        options: The names of the arguments.
        names: The known names.
        hints: What to use for names of other libraries.
    """
    for option in options:
        if option not in names:
            fix = _format_hint(hints[option]) if option in hints else did_you_mean(option, names)
            fix = fix or f" Pass one of {', '.join(names)}."
            raise TypeError(f"{title}() got an unexpected keyword argument {option!r}.{fix}")


def check_flag(name: str) -> None:
    """Raise an ``AttributeError`` if ``name``, a new attribute of a model, is a misspelled flag that would have no effect."""
    suggestion = "" if name in STOP_FLAGS else did_you_mean(name, STOP_FLAGS, 0.8)
    if suggestion:
        raise AttributeError(f"Setting model.{name} has no effect.{suggestion}")


def read_sizes(y: Any, sizes: tuple[Any, ...], batch_size: Any, epochs: Any) -> tuple[Any, Any, Any]:
    """Return ``y``, ``batch_size`` and ``epochs`` for the positional arguments of ``fit``.

    Two integers after ``y`` have one meaning, that of Keras. One may be either, and is refused.

    Args:
        y: The second argument: the targets, or the number of epochs.
        sizes: The arguments after ``y``.
        batch_size, epochs: The arguments by name.

    Raises:
        TypeError: If ``sizes`` have no or several meanings.
    """
    if isinstance(y, Integral) and not sizes:
        return None, batch_size, int(y)
    if not sizes:
        return y, batch_size, epochs
    if len(sizes) == 2 and all(isinstance(size, Integral) for size in sizes) and batch_size is None and epochs == 1:
        return y, *sizes
    if len(sizes) == 1 and isinstance(sizes[0], Integral):
        raise TypeError(
            f"fit(x, y, {sizes[0]}) may mean epochs or batch_size. Write epochs={sizes[0]} or batch_size={sizes[0]}."
        )
    raise TypeError(
        f"fit() takes at most x, y, batch_size and epochs by position, received {len(sizes)} arguments after y. Pass the others "
        "by name: fit(x, y, epochs=10, batch_size=32, validation_data=..., verbose=2)."
    )


def check_argument_order(kind: str, name: str, function: Any) -> None:
    """Refuse a loss or metric whose first two parameters are named like targets and predictions, as in Keras.

    Args:
        kind: ``"loss"`` or ``"metric"``, for the message.
        name: Its name.
        function: The function or module.

    Raises:
        ValueError: If the first name is that of targets and the second that of predictions.
    """
    first, second = _first_two_parameters(function.forward if isinstance(function, nn.Module) else function)
    if first.lower() not in TARGET_NAMES or second.lower() not in PREDICTION_NAMES:
        return
    if first.lower() != "y" and len(first) == len(second) == 1:  # (t, o) and (t, p) may mean anything
        return
    caller = name if inspect.isfunction(function) and name.isidentifier() else "f"
    raise ValueError(
        f"The {kind} {name!r} takes ({first}, {second}), but easytorch calls {caller}(y_pred, y), predictions first, as torch "
        f"does. Swap the arguments, or pass lambda y_pred, y: {caller}(y, y_pred)."
    )


class HelpfulInit:
    """A base class that adds suggestions to errors about wrong arguments of ``__init__``, in subclasses too."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            explain_bad_arguments("__init__")(cls)


def explain_bad_arguments(*names: str) -> Callable[[Class], Class]:
    """Return a class decorator that adds suggestions to Python's errors about wrong arguments.

    Explained errors that leave one of the methods have a short traceback.

    Args:
        names: The methods to decorate.
    """

    def decorate(cls: Class) -> Class:
        for name in names:
            method = inspect.getattr_static(cls, name)
            if isinstance(method, classmethod):
                # The function below it, so that a subclass is passed on.
                explained = hide_internal_frames(_explain_errors(method.__func__, cls))
                setattr(cls, name, classmethod(explained))
            else:
                setattr(cls, name, hide_internal_frames(_explain_errors(method, cls)))
        return cls

    return decorate


def _explain_errors(method: Callable[..., Any], cls: type) -> Callable[..., Any]:
    title = f"{cls.__name__}.{method.__name__}".removesuffix(".__init__")

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except TypeError as error:
            is_inside_method = error.__traceback__ is None or error.__traceback__.tb_next is not None
            if is_inside_method:
                raise
            message = str(error).replace(method.__qualname__, title)
            raise TypeError(f"{message}.{_suggest_call(method, title, cls, args, kwargs)}") from None
        except AttributeError:
            if _is_bound(args, cls):
                raise
            received = type(args[0]).__name__
            message = f"{title} was called on the class, with a {received} in place of the {cls.__name__}."
            raise TypeError(message + _suggest_call(method, title, cls, args, kwargs)) from None

    return call


def _is_bound(args: tuple[Any, ...], cls: type) -> bool:
    """Return whether the first of ``args`` is an instance of ``cls``, or for a class method a subclass of it."""
    if not args:
        return False
    return isinstance(args[0], cls) or (isinstance(args[0], type) and issubclass(args[0], cls))


def _suggest_call(
    method: Callable[..., Any], title: str, cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    """Return the fix for a call of ``method`` with wrong arguments."""
    name = title.rpartition(".")[2]
    if not _is_bound(args, cls):
        return f" Call it on an instance: {cls.__name__}(module).{name}(...)."
    # Without self.
    parameters = list(inspect.signature(method).parameters.values())[1:]
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    unknown = next((key for key in kwargs if key not in names), None)
    if unknown is not None:
        return _suggest_argument(title, unknown, names)
    positional = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
    keywords = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
    if len(args) > len(positional) + 1 and keywords:
        others = ", ..." * (len(keywords) > 1)
        example = f"{name}({', '.join([*positional, f'{keywords[0]}=...'])}{others})"
        which = f"the arguments after {positional[-1]}" if positional else "all arguments"
        return f" Pass {which} by name: {example}."
    return f" See help({title})."


def unexpected_argument_error(
    title: str,
    argument: str,
    options: Mapping[str, Any],
    names: Iterable[str],
    *,
    option_of_others: str = "",
    otherwise: str = "",
) -> TypeError:
    """Return the error for a keyword argument that is neither an argument of ``compile`` nor an option of its optimizer.

    Args:
        title: The method: ``"Model.compile"``.
        argument: The name that the user typed.
        options: All keyword arguments that the method does not have, with their values.
        names: The names that it takes.
        option_of_others: The message if it is an option of another optimizer.
        otherwise: The message if no name is similar.
    """
    names = [*names]
    hint = COMPILE_HINTS.get(argument, "").format_map(COMPILE_HINT_DEFAULTS | dict(options))
    renamed = re.match(r"(\w+)=", hint)
    if hint and (renamed is None or renamed[1] in names):
        suggestion = _format_hint(hint)
    elif option_of_others:
        suggestion = option_of_others
    elif argument in ARGUMENT_HINTS:
        suggestion = _suggest_argument(title, argument, names)
    else:
        suggestion = did_you_mean(argument, names) or otherwise or _suggest_argument(title, argument, names)
    return TypeError(f"{title}() got an unexpected keyword argument {argument!r}.{suggestion}")


def argument_names(method: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the arguments of ``method``, without ``self`` and without those that stand for any others."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    return tuple(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))


def argument_defaults(method: Callable[..., Any]) -> dict[str, Any]:
    """Return the default of each argument of ``method`` that has one."""
    parameters = inspect.signature(method).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _suggest_argument(title: str, argument: str, names: list[str]) -> str:
    """Return what to use instead of ``argument``, which the function ``title`` does not have."""
    is_method = "." in title
    hint = ARGUMENT_HINTS.get(argument) if is_method else OPTION_HINTS.get(f"{title}.{argument}")
    renamed = re.fullmatch(r"(\w+)=", hint or "")
    if hint is not None and (renamed is None or renamed[1] in names):  # another method may have the argument
        return _format_hint(hint)
    name = title.rpartition(".")[2]
    return did_you_mean(argument, names) or f" {name}() takes {', '.join(names) or 'no arguments'}."


def _format_hint(hint: str) -> str:
    return f" {hint}." if hint.startswith("Not needed") else f" Use {hint}."


def _check_takes_batch(cls: type, name: str, function: Callable[..., Any]) -> None:
    signature = inspect.signature(function)
    try:
        signature.bind(None, None)
    except TypeError:
        index = next((p for p in signature.parameters if p in ("optimizer_idx", "optimizer_index")), None)
        steps = (
            "" if index is None else " With several optimizers, define a step for each: def critic_step(self, batch)."
        )
        raise TypeError(
            f"{cls.__name__}.{name}{signature} must take the batch as its only argument. Define it as "
            f"def {name}(self, batch).{steps}"
        ) from None


def _suggest_step(cls: type, name: str) -> str:
    """Return the step that a new method of ``cls`` may be meant to override; an empty string if there is none."""
    is_new = not any(hasattr(base, name) for base in cls.__bases__)
    return did_you_mean(name, OVERRIDABLE_STEPS, 0.8) if is_new and not name.startswith("_") else ""


def _first_two_parameters(function: Any) -> tuple[str, str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        # Built-in functions have no signature.
        return "", ""
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return (names[0], names[1]) if len(names) > 1 else ("", "")
