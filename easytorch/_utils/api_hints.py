"""Names of other libraries, and what to use instead.

Every hint completes the sentence "Use ..."; a hint that starts with "Not needed" is a sentence.
"""

from __future__ import annotations

from typing import Any

from easytorch._utils import library_hints

WANDB_HINT = "WandbLogger(project, update_freq=100); for what wandb.watch logs, add GradientStatistics(every=100)"
TRACKER_HINT = "a subclass of easytorch.callbacks.Tracker with about 20 lines; see the guide about trackers"

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
    "validation_metrics": "metrics=['accuracy', 'f1_macro'], validation_only=['f1_macro']",
    "val_metrics": "metrics=['accuracy', 'f1_macro'], validation_only=['f1_macro']",
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
    "logger": "callbacks=[easytorch.callbacks.TensorBoard('logs')], or WandbLogger, MLflowLogger and TrackioLogger",
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
# Arguments of compile that hints name; those of fit are all others.
COMPILE_ARGUMENTS = ("optimizer", "weighted_metrics", "jit_compile", "precision", "metrics", "lr")
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
    "BackupAndRestore.storage_options": "fsspec.config.conf['s3'] = {...}, for the whole program",
    "ModelCheckpoint.storage_options": "fsspec.config.conf['s3'] = {...}, for the whole program",
    "ModelCheckpoint.period": "save_freq=Every(epochs=2)",
    "ModelCheckpoint.filename": "filepath='runs/{epoch:02d}.pt'",
    "ModelCheckpoint.save_last": "fit(..., resume='run/'), which saves the newest state",
    "Model.precision": "Model(module).compile(..., precision='bf16')",
    "Model.devices": "torchrun --nproc-per-node=2 train.py",
    "Model.loss_func": "Model(module).compile(optimizer, loss)",
    "Model.metrics": "Model(module).compile(optimizer, loss, metrics=['accuracy'])",
    "ReduceLROnPlateau.epsilon": "min_delta=",
    "SWA.swa_epoch_start": "start_epoch=",
    "MLflowLogger.experiment_name": "experiment=",
    "MLflowLogger.save_dir": "tracking_uri='sqlite:///runs/mlflow.db'",
    "MLflowLogger.log_freq": "update_freq=",
    "TrackioLogger.log_freq": "update_freq=",
    "TrackioLogger.id": "name=",
    "WandbLogger.save_dir": "WandbLogger(..., dir='runs')",
    "WandbLogger.offline": "mode='offline'",
    "WandbLogger.version": "id=",
    "WandbLogger.log_freq": "update_freq=",
    "WandbLogger.log_preds": "log_report(model.report(x, y)) after fit()",
    "WandbLogger.anonymous": "mode='offline'",
    "TensorBoard.profile_batch": "torch.profiler in a custom callback",
    "TensorBoard.write_graph": "TensorBoard(log_dir), which writes the logs",
}

# Schedules of the learning rate that have no name here.
SCHEDULER_HINTS = {
    "step": "scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=10), which steps after each epoch",
    "multi_step": "scheduler=lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[30, 60])",
    "exponential": "scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.95)",
    "plateau": "fit(..., callbacks=[easytorch.callbacks.ReduceLROnPlateau('val_loss')])",
    "linear": "scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=epochs)",
    "polynomial": "scheduler=lambda optimizer: torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=epochs)",
    "restarts": "scheduler=easytorch.callbacks.LRScheduler(lambda optimizer: "
    "torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=10), step_every='epoch')",
    "cyclic": "scheduler=lambda optimizer: torch.optim.lr_scheduler.CyclicLR(optimizer, 1e-4, 1e-2)",
    "lambda": "scheduler=easytorch.callbacks.LRScheduler(lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, "
    "lambda epoch: 0.95**epoch), step_every='epoch')",
    "constant": "no scheduler, so that the learning rate is constant",
    "cosine": "scheduler='cosine', or 'warmup_cosine' with a linear rise before it",
    "one_cycle": "scheduler='one_cycle'",
    "warmup": "scheduler='warmup_cosine', which rises linearly and falls along half a cosine",
}
# Names of them in torch, Keras, fastai and transformers.
SCHEDULER_NAMES = {
    "step_lr": "step", "steps": "step", "step_decay": "step", "multi_step_lr": "multi_step", "multistep": "multi_step",
    "multisteplr": "multi_step", "piecewise_constant_decay": "multi_step", "exponential_lr": "exponential", "exp": "exponential",
    "exponential_decay": "exponential", "reduce_lr_on_plateau": "plateau", "reduce_on_plateau": "plateau",
    "linear_lr": "linear", "polynomial_lr": "polynomial", "poly": "polynomial", "polynomial_decay": "polynomial",
    "cosine_with_restarts": "restarts", "cosine_annealing_warm_restarts": "restarts", "cosine_decay_restarts": "restarts",
    "cyclic_lr": "cyclic", "lambda_lr": "lambda", "constant_lr": "constant", "none": "constant",
    "cosine_annealing": "cosine", "cosine_annealing_lr": "cosine", "cosine_decay": "cosine", "flat_cos": "cosine",
    "one_cycle_lr": "one_cycle", "onecycle": "one_cycle", "fit_one_cycle": "one_cycle", "linear_warmup": "warmup",
    "warmup_linear": "warmup", "constant_with_warmup": "warmup", "cosine_with_warmup": "warmup",
}  # fmt: skip
# What a function of the epoch calls its argument.
EPOCH_NAMES = ("epoch", "epochs", "step", "steps", "iteration", "it", "e", "t")

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
    "loggers": "easytorch.callbacks.WandbLogger, MLflowLogger, TrackioLogger, TensorBoard or CSVLogger",
    "MLFlowLogger": "MLflowLogger(experiment, tracking_uri='sqlite:///mlflow.db')",
    "WandbCallback": WANDB_HINT,
    "WandbMetricsLogger": WANDB_HINT,
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
    "WandbCallback": WANDB_HINT,
    "WandbMetricsLogger": WANDB_HINT,
    "WandbModelCheckpoint": "WandbLogger(project, log_model=True)",
    "MLFlowLogger": "MLflowLogger(experiment, tracking_uri='sqlite:///mlflow.db')",
    "MlflowLogger": "MLflowLogger(experiment, tracking_uri='sqlite:///mlflow.db')",
    "MLflowCallback": "MLflowLogger(experiment, tracking_uri='sqlite:///mlflow.db')",
    "MlflowCallback": "MLflowLogger(experiment, tracking_uri='sqlite:///mlflow.db')",
    "TrackioCallback": "TrackioLogger(project)",
    "TensorBoardCallback": "TensorBoard(log_dir)",
    "CometLogger": TRACKER_HINT,
    "CometCallback": TRACKER_HINT,
    "NeptuneCallback": TRACKER_HINT,
    "NeptuneLogger": TRACKER_HINT,
    "SacredLogger": TRACKER_HINT,
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

# Techniques of fastai, composer and Keras that need no class here; docs/how-to/techniques.md has a program for each.
RECIPE_HINTS = {
    "MixUp": "a collate_fn of the DataLoader that mixes a batch; see the how-to 'Training techniques'",
    "CutMix": "a collate_fn of the DataLoader that mixes a batch; see the how-to 'Training techniques'",
    "RandomErasing": "torchvision.transforms.v2.RandomErasing() in the dataset",
    "LabelSmoothing": "compile(optimizer, torch.nn.CrossEntropyLoss(label_smoothing=0.1))",
    "LabelSmoothingCrossEntropy": "compile(optimizer, torch.nn.CrossEntropyLoss(label_smoothing=0.1))",
    "GradientNoise": "a callback with on_before_optimizer_step; see the how-to 'Training techniques'",
    "MCDropoutCallback": "a custom predict_step(self, batch); see the how-to 'Training techniques'",
    "NTXentLoss": "a custom train_step(self, batch) with two views; see the how-to 'Training techniques'",
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

ARGUMENT_HINTS = library_hints.ARGUMENTS | ARGUMENT_HINTS
PREFIX_HINTS = library_hints.PREFIXES
COMPILE_HINTS = library_hints.COMPILE_ARGUMENTS | COMPILE_HINTS
OPTION_HINTS = library_hints.OPTIONS | OPTION_HINTS
ATTRIBUTE_HINTS = library_hints.ATTRIBUTES | ATTRIBUTE_HINTS
CALLBACK_HINTS = library_hints.CALLBACKS | CALLBACK_HINTS
# The package has all callbacks; History is a class of it.
PACKAGE_HINTS = {
    **{name: hint for name, hint in CALLBACK_HINTS.items() if name != "History"},
    **library_hints.PACKAGE,
    **PACKAGE_HINTS,
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
