"""Names of fastai, skorch and the Hugging Face Trainer: the error names what to use here."""

from __future__ import annotations

import inspect
import re

import pytest

import easytorch
from easytorch import Model, callbacks
from easytorch._utils import api_hints, library_hints
from tests.loops import blobs, mlp

X, Y = blobs(8)
TABLES = {
    name: table
    for module in (api_hints, library_hints)
    for name, table in vars(module).items()
    if name.isupper() and isinstance(table, dict) and name not in ("COMPILE_HINT_DEFAULTS", "PRECISION_HINTS")
}
PUBLIC_METHODS = {
    "compile": Model.compile,
    "fit": Model.fit,
    "predict": Model.predict,
    "EarlyStopping": callbacks.EarlyStopping,
}


def fit(**options):
    return lambda: Model(mlp()).compile("sgd", "cross_entropy").fit(X, Y, verbose=0, **options)


def attribute(name):
    return lambda: getattr(Model(mlp()), name)


@pytest.mark.parametrize(
    ("call", "fix"),
    [
        # fastai
        (lambda: easytorch.Learner, "Model(module).compile(...).fit("),
        (lambda: easytorch.cnn_learner, "torchvision.models.resnet18"),
        (lambda: easytorch.ClassificationInterpretation, "model.report(x, y)"),
        (lambda: callbacks.GradientClip, "compile(..., clip_grad_norm=1.0)"),
        (lambda: callbacks.ShowGraphCallback, "LivePlot()"),
        (attribute("fit_one_cycle"), "scheduler='one_cycle'"),
        (attribute("lr_find"), "model.find_lr(x, y).suggestion"),
        (attribute("to_fp16"), "compile(..., precision='fp16')"),
        (attribute("recorder"), "model.history"),
        (fit(n_epoch=3), "Use epochs="),
        (fit(wd=0.1), "weight_decay=0.01"),
        (lambda: Model(mlp()).compile("adam", "mse", mom=0.9), "compile('sgd', loss, momentum=0.9)"),
        (lambda: Model(mlp()).compile("adam", "mse", cbs=[]), "fit(..., callbacks=[...])"),
        # skorch
        (lambda: easytorch.NeuralNetBinaryClassifier, "sklearn.Classifier(module)"),
        (lambda: easytorch.BatchScoring, "metrics=['accuracy']"),
        (lambda: callbacks.PrintLog, "fit(verbose=2)"),
        (attribute("save_params"), "save_weights(path)"),
        (attribute("module_"), "model.module"),
        (fit(max_epochs=3), "Use epochs="),
        (fit(optimizer__momentum=0.9), "compile('sgd', loss, momentum=...)"),
        (fit(iterator_train__num_workers=2), "DataLoader(dataset, num_workers=...)"),
        (fit(callbacks__print_log=None), "fit(..., callbacks=[...])"),
        (lambda: Model(mlp(), max_epochs=3), "fit(..., epochs=...)"),
        (lambda: Model(mlp(), module__hidden=3), "Model(Net(hidden=...))"),
        (lambda: Model(mlp()).compile("adam", "mse", max_epochs=3), "fit(..., epochs=...)"),
        (lambda: Model(mlp()).compile("adam", "mse", criterion__weight=1), "CrossEntropyLoss(weight=...)"),
        (lambda: callbacks.EarlyStopping(load_best=True), "restore_best_weights=True"),
        # Hugging Face Trainer
        (lambda: easytorch.TrainingArguments, "the arguments of compile() and fit()"),
        (lambda: easytorch.TrainerCallback, "Callback, whose hooks are on_epoch_end"),
        (attribute("train"), "fit()"),
        (attribute("add_callback"), "fit(..., callbacks=[...])"),
        (attribute("hyperparameter_search"), "OptunaPruning(trial)"),
        (fit(num_train_epochs=3), "Use epochs="),
        (fit(per_device_train_batch_size=8), "Use batch_size="),
        (fit(evaluation_strategy="epoch"), "validation_freq=easytorch.Every("),
        (fit(gradient_accumulation_steps=2), "compile(..., gradient_accumulation_steps=4)"),
        (fit(load_best_model_at_end=True), "restore_best_weights=True"),
        (fit(resume_from_checkpoint=True), "Use resume="),
        (fit(report_to="wandb"), "WandbLogger('project')"),
        (fit(bf16=True), "compile(..., precision='bf16')"),
        (lambda: Model(mlp()).evaluate(X, Y, eval_dataset=X), "fit(..., validation_data=...)"),
        (lambda: Model(mlp()).compile("adam", "mse", adam_epsilon=1e-6), "Use eps=1e-06"),
        (lambda: Model(mlp()).compile("adam", "mse", lr_scheduler_type="cosine"), "scheduler='cosine'"),
        (lambda: Model(mlp()).compile("adam", "mse", output_dir="run"), "fit(..., resume='run/'), or"),
        (lambda: Model(mlp()).compile("adam", "mse", epochs=3), "fit(..., epochs=3)"),
        (lambda: callbacks.ModelCheckpoint("m.pt", save_total_limit=2), "keep="),
    ],
)
def test_a_name_of_another_library_gets_the_fix(call, fix):
    with pytest.raises((TypeError, AttributeError)) as caught:
        call()
    assert fix in str(caught.value)


@pytest.mark.parametrize("table", TABLES)
def test_hints_name_classes_and_arguments_that_exist(table):
    for key, hint in TABLES[table].items():
        for path in re.findall(r"easytorch\.((?:callbacks|data)\.\w+|[A-Z]\w+)", hint):
            owner, _, name = path.rpartition(".")
            assert hasattr(getattr(easytorch, owner) if owner else easytorch, name), (key, hint)
        for name, arguments in re.findall(r"\b(compile|fit|predict|EarlyStopping)\(([^()]*)\)", hint):
            known = inspect.signature(PUBLIC_METHODS[name]).parameters
            options = set(re.findall(r"(?:^|, )(\w+)=", arguments))
            assert options - set(known) <= {"momentum", "weight_decay", "nesterov", "betas", "eps", "adaptive"}, (
                key,
                hint,
            )
