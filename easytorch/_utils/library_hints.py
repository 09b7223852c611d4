"""Names of fastai, skorch and the Hugging Face Trainer, and what to use instead.

``api_hints`` merges these tables with those of other libraries, and describes their format.
"""

from __future__ import annotations

BEST_WEIGHTS = "callbacks=[easytorch.callbacks.EarlyStopping('val_loss', patience=3, restore_best_weights=True)]"
CHECKPOINTS = "resume='run/', or callbacks=[easytorch.callbacks.BackupAndRestore('run/', save_freq=500, keep=2)]"
DATA = "fit(train_loader, validation_data=val_loader)"
DISTRIBUTED = "compile(..., strategy='fsdp')"
LOADER = "a DataLoader: fit(DataLoader(dataset, 64, shuffle=True, num_workers=2))"
COLLATE = "DataLoader(dataset, collate_fn=...)"
LOG_FREQUENCY = "callbacks=[easytorch.callbacks.CSVLogger('log.csv', every=50)], or update_freq=50 of a tracker"
OPTUNA = "optuna, with callbacks=[easytorch.callbacks.OptunaPruning(trial)]; see the how-to 'Training runs'"
REPORT = "model.report(x, y), which has the confusion matrix and the worst samples"
TRACKERS = "callbacks=[easytorch.callbacks.WandbLogger('project')], or MLflowLogger, TrackioLogger and TensorBoard"
WARMUP = "compile(..., scheduler='warmup_cosine'), or easytorch.callbacks.Schedule('warmup_cosine', warmup=0.1)"

# Arguments of fit, compile and Model.
ARGUMENTS = {
    # fastai
    "n_epoch": "epochs=",
    "start_epoch": "initial_epoch=",
    "bs": "batch_size=",
    "wd": "compile('adamw', loss, weight_decay=0.01)",
    "moms": "compile('adam', loss, betas=(0.9, 0.999))",
    "mom": "compile('sgd', loss, momentum=0.9), or betas=(0.9, 0.999) of 'adam'",
    "pct_start": WARMUP,
    "div": WARMUP,
    "div_final": WARMUP,
    "reset_opt": "compile() again, which creates a new optimizer and keeps the weights",
    "base_lr": "compile({'backbone': ('adamw', {'lr': 1e-5}), 'head': 'adamw'}, loss)",
    "freeze_epochs": "callbacks=[easytorch.callbacks.Freeze('backbone', until=3)]",
    "wd_bn_bias": "a dict for parameter groups; see the how-to 'No weight decay for biases and norms'",
    "train_bn": "callbacks=[easytorch.callbacks.Freeze('backbone')], which also freezes the statistics of its BatchNorm layers",
    # skorch
    "warm_start": "Not needed: every fit() continues with the weights of the one before it",
    "predict_nonlinearity": "predict_proba(x), which applies the softmax or sigmoid of the loss",
    "classes": "model.class_names = ['cat', 'dog']",
    # Hugging Face Trainer
    "args": "the arguments of compile() and fit()",
    "num_train_epochs": "epochs=",
    "train_dataset": DATA,
    "eval_dataset": "validation_data=",
    "per_device_train_batch_size": "batch_size=",
    "per_device_eval_batch_size": "the batch_size of a DataLoader: validation_data=DataLoader(dataset, 64)",
    "eval_accumulation_steps": "predict(x, to='cpu')",
    "eval_delay": "validation_freq=range(3, 11), the epochs to validate after",
    "eval_on_start": "model.evaluate(x, y) before fit()",
    "save_strategy": CHECKPOINTS,
    "save_steps": CHECKPOINTS,
    "save_total_limit": CHECKPOINTS,
    "output_dir": CHECKPOINTS,
    "resume_from_checkpoint": "resume=",
    "load_best_model_at_end": BEST_WEIGHTS,
    "metric_for_best_model": BEST_WEIGHTS,
    "greater_is_better": "callbacks=[easytorch.callbacks.EarlyStopping('val_accuracy', mode='max')]",
    "early_stopping_patience": "callbacks=[easytorch.callbacks.EarlyStopping(patience=3)]",
    "logging_strategy": LOG_FREQUENCY,
    "logging_steps": LOG_FREQUENCY,
    "logging_dir": "callbacks=[easytorch.callbacks.TensorBoard('logs')]",
    "report_to": TRACKERS,
    "run_name": "callbacks=[easytorch.callbacks.WandbLogger('project', name='run')]",
    "gradient_accumulation_steps": "compile(..., gradient_accumulation_steps=4)",
    "lr_scheduler_type": "compile(..., scheduler='cosine')",
    "warmup_steps": WARMUP,
    "warmup_ratio": WARMUP,
    "optim": "compile('adamw', loss)",
    "optimizers": "compile(optimizer, loss, scheduler=scheduler)",
    "adam_beta1": "compile('adamw', loss, betas=(0.9, 0.999))",
    "adam_beta2": "compile('adamw', loss, betas=(0.9, 0.999))",
    "adam_epsilon": "compile('adamw', loss, eps=1e-8)",
    "fp16": "compile(..., precision='fp16')",
    "bf16": "compile(..., precision='bf16')",
    "torch_compile": "compile(..., jit_compile=True)",
    "label_smoothing_factor": "compile(optimizer, torch.nn.CrossEntropyLoss(label_smoothing=0.1))",
    "gradient_checkpointing": "module.gradient_checkpointing_enable() before Model(module), or the guide 'Recipes'",
    "dataloader_num_workers": "DataLoader(dataset, num_workers=2)",
    "dataloader_drop_last": "DataLoader(dataset, 64, shuffle=True, drop_last=True)",
    "data_collator": COLLATE,
    "tokenizer": COLLATE,
    "processing_class": COLLATE,
    "remove_unused_columns": "Not needed: forward() gets the columns that are named like its arguments",
    "group_by_length": "DataLoader(dataset, batch_sampler=...) with a sampler that sorts by length",
    "label_names": "a batch (inputs, targets), or a dict with 'labels' for a model that returns its loss",
    "compute_metrics": "compile(..., metrics=['accuracy']), or metrics=[easytorch.EpochMetric(f)] with f(y_true, y_pred)",
    "include_for_metrics": "compile(..., metrics=[f]) with f(y_pred, y)",
    "model_init": OPTUNA,
    "trial": OPTUNA,
    "no_cuda": "Model(module, device='cpu')",
    "use_cpu": "Model(module, device='cpu')",
    "fsdp": DISTRIBUTED,
    "deepspeed": DISTRIBUTED,
    "ddp_find_unused_parameters": "compile(..., strategy=easytorch.DataParallel(find_unused_parameters=True))",
    "disable_tqdm": "verbose=0",
    "push_to_hub": "model.push_to_hub('user/name') after fit()",
    "neftune_noise_alpha": "a custom train_step(self, batch) that adds noise to the embeddings",
}

# Arguments of skorch that are passed on to an object, by their prefix.
PREFIXES = {
    "optimizer__": "compile('sgd', loss, {option}=...)",
    "module__": "Model(Net({option}=...))",
    "criterion__": "compile(optimizer, torch.nn.CrossEntropyLoss({option}=...))",
    "iterator_train__shuffle": "fit(..., shuffle=True), which is the default",
    "iterator_train__": "DataLoader(dataset, {option}=...) as the data of fit()",
    "iterator_valid__": "validation_data=DataLoader(dataset, {option}=...)",
    "callbacks__": "fit(..., callbacks=[...]) with the options of each callback",
    "dataset__": "a Dataset or a DataLoader as the data of fit()",
}

# Arguments of compile, with the values that the user passed.
COMPILE_ARGUMENTS = {
    "epochs": "fit(..., epochs={epochs!r})",
    "batch_size": "fit(..., batch_size={batch_size!r})",
    "callbacks": "fit(..., callbacks=[...])",
    "cbs": "fit(..., callbacks=[...])",
    "validation_data": "fit(..., validation_data=...)",
    "validation_split": "fit(..., validation_split={validation_split!r})",
    "verbose": "fit(..., verbose={verbose!r})",
    "adam_epsilon": "eps={adam_epsilon!r}",
    "sqr_mom": "betas=(0.9, {sqr_mom!r})",
    "lr_scheduler_type": "scheduler={lr_scheduler_type!r}",
    "optim": "compile('adamw', loss)",
    "optimizers": "compile(optimizer, loss, scheduler=scheduler)",
    "torch_compile": "jit_compile={torch_compile!r}",
}

# Arguments of classes.
OPTIONS = {
    "EarlyStopping.comp": "mode='min', or 'max'",
    "EarlyStopping.reset_on_fit": "Not needed: each fit() starts with a new count",
    "EarlyStopping.load_best": "restore_best_weights=True",
    "EarlyStopping.threshold": "min_delta=",
    "EarlyStopping.early_stopping_threshold": "min_delta=",
    "EarlyStopping.lower_is_better": "mode='min', or 'max'",
    "ModelCheckpoint.fname": "filepath=",
    "ModelCheckpoint.every_epoch": "save_freq='epoch', which is the default",
    "ModelCheckpoint.at_end": "model.save(path) after fit()",
    "ModelCheckpoint.f_params": "filepath=",
    "ModelCheckpoint.output_dir": "filepath='runs/{epoch:02d}.pt'",
    "ModelCheckpoint.save_total_limit": "keep=",
    "ModelCheckpoint.save_steps": "save_freq=",
    "BackupAndRestore.save_total_limit": "keep=",
    "BackupAndRestore.save_steps": "save_freq=",
    "BackupAndRestore.output_dir": "backup_dir=",
    "LRScheduler.policy": "LRScheduler(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 10))",
    "Model.callbacks": "fit(..., callbacks=[...])",
    "Model.batch_size": "fit(..., batch_size=32)",
    "Model.epochs": "fit(..., epochs=10)",
    "Model.validation_data": "fit(..., validation_data=(x, y))",
    "Model.verbose": "fit(..., verbose=0)",
    "Model.args": "compile(...) and fit(...), whose arguments replace TrainingArguments",
}

# Attributes of a model.
ATTRIBUTES = {
    # fastai
    "fit_flat_cos": "compile(..., scheduler='cosine') and fit(x, y, epochs=3)",
    "fit_sgdr": "compile(..., scheduler=easytorch.callbacks.LRScheduler(lambda optimizer: "
    "torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=10), step_every='epoch'))",
    "tta": "the mean of predict_proba(...) of augmented inputs; see the guide 'Recipes'",
    "to_fp16": "compile(..., precision='fp16')",
    "to_bf16": "compile(..., precision='bf16')",
    "to_fp32": "compile(..., precision='fp32'), which is the default",
    "to_channelslast": "compile(..., channels_last=True)",
    "recorder": "model.history, with plot() and to_frame()",
    "add_cb": "fit(..., callbacks=[...])",
    "add_cbs": "fit(..., callbacks=[...])",
    "remove_cb": "fit(..., callbacks=[...]), since callbacks last for one fit",
    "remove_cbs": "fit(..., callbacks=[...]), since callbacks last for one fit",
    "dls": DATA,
    "opt": "model.optimizer",
    "loss_func": "model.loss",
    "create_opt": "compile(optimizer, loss)",
    "no_bar": "fit(..., verbose=0)",
    "no_logging": "fit(..., verbose=0)",
    "one_batch": "train_on_batch(x, y)",
    # skorch
    "initialize": "compile(optimizer, loss)",
    "save_params": "save_weights(path), or save(path) with the optimizer",
    "load_params": "load_weights(path), or load(path)",
    "module_": "model.module",
    "optimizer_": "model.optimizer",
    "criterion_": "model.loss",
    "history_": "model.history",
    "forward_iter": "predict(x, batch_size=32)",
    "infer": "model(x)",
    "predict_nonlinearity": "predict_proba(x)",
    "get_loss": "model.loss(y_pred, y)",
    "get_iterator": "torch.utils.data.DataLoader",
    "get_dataset": "torch.utils.data.TensorDataset(x, y)",
    "notify": "model.callbacks, which calls the hooks of all callbacks",
    # Hugging Face Trainer
    "add_callback": "fit(..., callbacks=[...])",
    "pop_callback": "fit(..., callbacks=[...]), since callbacks last for one fit",
    "remove_callback": "fit(..., callbacks=[...]), since callbacks last for one fit",
    "args": "the arguments of compile() and fit()",
    "compute_metrics": "compile(..., metrics=['accuracy'])",
    "control": "model.stop_training = True",
    "create_optimizer": "compile('adamw', loss)",
    "create_scheduler": "compile(..., scheduler='cosine')",
    "lr_scheduler": "model.schedules, after compile(..., scheduler='cosine')",
    "create_model_card": "push_to_hub('user/name'), which writes a model card",
    "evaluate_loop": "evaluate(x, y)",
    "evaluation_loop": "evaluate(x, y)",
    "generate": "model.module.generate(...)",
    "save_pretrained": "model.module.save_pretrained(folder)",
    "from_pretrained": "Model(AutoModel.from_pretrained(name))",
    "get_train_dataloader": DATA,
    "train_dataset": DATA,
    "eval_dataset": DATA,
    "hyperparameter_search": OPTUNA,
    "log_metrics": "print(model.evaluate(x, y))",
    "save_metrics": "model.history.to_frame().to_csv(path)",
    "save_state": "fit(..., resume='run/')",
    "prediction_step": "predict_step(self, batch)",
    "training_step": "train_step(self, batch), which returns {'loss': loss}",
}

# Classes and functions of the packages.
CALLBACKS = {
    # fastai
    "TerminateOnNaNCallback": "TerminateOnNaN()",
    "ShowGraphCallback": "LivePlot()",
    "MixedPrecision": "compile(..., precision='bf16')",
    "GradientAccumulation": "compile(..., gradient_accumulation_steps=4)",
    "GradientClip": "compile(..., clip_grad_norm=1.0)",
    "ParamScheduler": "compile(..., scheduler='cosine'), or LRScheduler of a scheduler of torch",
    "ProgressCallback": "fit(verbose=1), which is the default",
    "FetchPredsCallback": "model.predict(x) after fit()",
    "GatherPredsCallback": "model.predict(x) after fit()",
    "BnFreeze": "Freeze('backbone'), which also freezes the statistics of its BatchNorm layers",
    "ChannelsLast": "compile(..., channels_last=True)",
    "TrackerCallback": "a subclass of Monitor, or a Callback with on_epoch_end(self, epoch, logs)",
    "ShortEpochCallback": "fit(..., steps_per_epoch=10)",
    "CancelFitException": "self.model.stop_training = True",
    "CancelEpochException": "self.model.stop_training = True",
    # skorch
    "BatchScoring": "compile(..., metrics=['accuracy']), whose mean is weighted by samples",
    "PassthroughScoring": "a step that returns {'loss': loss, 'penalty': penalty}, whose values are logged",
    "TrainEndCheckpoint": "fit(..., resume='run/'), or model.save(path) after fit()",
    "LoadInitState": "fit(..., resume='run/')",
    "GradientNormClipping": "compile(..., clip_grad_norm=1.0)",
    "InputShapeSetter": "torch.nn.LazyLinear(outputs), run once before compile()",
    "EpochTimer": "history.seconds, which fit() records",
    "PrintLog": "fit(verbose=2), which prints one line for each epoch",
    "ParamMapper": "Freeze('backbone'), or torch.nn.init before Model(module)",
    "WarmRestartLR": "LRScheduler(lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=10), "
    "step_every='epoch')",
    # Hugging Face Trainer
    "TrainerCallback": "Callback, whose hooks are on_epoch_end(self, epoch, logs) and others",
    "DefaultFlowCallback": "fit(..., validation_freq=easytorch.Every(updates=500)) and ModelCheckpoint(..., save_freq=500)",
    "PrinterCallback": "fit(verbose=2), which prints one line for each epoch",
}
PACKAGE = {
    # fastai
    "cnn_learner": "easytorch.Model(torchvision.models.resnet18(weights='DEFAULT'))",
    "unet_learner": "easytorch.Model(module) of a segmentation network, such as those of torchvision.models.segmentation",
    "tabular_learner": "easytorch.Model(module); see the tutorial 'Table data'",
    "text_classifier_learner": "easytorch.Model(module) of transformers; see the tutorial 'Text classification'",
    "ImageDataLoaders": "torchvision.datasets.ImageFolder(folder, transform), as the data of fit()",
    "TabularDataLoaders": "fit(frame, targets), with a frame of pandas or polars",
    "load_learner": "easytorch.Model(net).load(path)",
    "Recorder": "easytorch.History, the result of fit()",
    "Interpretation": REPORT,
    "ClassificationInterpretation": REPORT,
    "accuracy": "compile(..., metrics=['accuracy'])",
    "error_rate": "compile(..., metrics=['accuracy'])",
    "to_fp16": "compile(..., precision='fp16')",
    # skorch
    "NeuralNetBinaryClassifier": "easytorch.integrations.sklearn.Classifier(module)",
    # Hugging Face Trainer
    "Seq2SeqTrainer": "easytorch.Model(module).compile('adamw').fit(...), and model.module.generate(...)",
    "Seq2SeqTrainingArguments": "the arguments of compile() and fit()",
    "TrainerControl": "model.stop_training = True",
    "TrainerState": "model.state, with step and epoch",
    "DataCollatorWithPadding": "DataLoader(dataset, collate_fn=DataCollatorWithPadding(tokenizer)), of transformers",
    "default_data_collator": COLLATE,
    "EvalPrediction": "a function f(y_pred, y) in compile(..., metrics=[f])",
    "IntervalStrategy": "fit(..., validation_freq=easytorch.Every(updates=500))",
    "get_scheduler": "compile(..., scheduler='cosine')",
    "get_linear_schedule_with_warmup": "easytorch.callbacks.LRScheduler(lambda optimizer: "
    "transformers.get_linear_schedule_with_warmup(optimizer, 100, 1000), step_every='update')",
    "get_cosine_schedule_with_warmup": "compile(..., scheduler='warmup_cosine')",
    "AutoModel": "easytorch.Model(transformers.AutoModel.from_pretrained(name))",
    "pipeline": "model.predict(x), predict_proba(x) or predict_classes(x)",
}
