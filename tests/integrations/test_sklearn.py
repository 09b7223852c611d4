"""Promise: the estimators pass the checks of scikit-learn, and work with its pipelines, searches and scorers."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import re
import sys

import numpy as np
import pandas
import pytest
import scipy.sparse as sp
import torch
from sklearn import set_config
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_iris, make_multilabel_classification
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from torch.utils.data import TensorDataset

import easytorch
import easytorch.integrations.sklearn as integration
from easytorch.callbacks import EarlyStopping, LambdaCallback
from easytorch.integrations.sklearn import Classifier, Regressor

X, Y = load_iris(return_X_y=True)
X = StandardScaler().fit_transform(X)
NAMES = np.array(["setosa", "versicolor", "virginica"])[Y]
TARGETS = X[:, 0] - 2 * X[:, 1]

EXPECTED = {
    "check_do_not_raise_errors_in_init_or_set_params": "It passes an argument named options, the name of **options.",
    "check_sample_weight_equivalence_on_dense_data": (
        "It compares the results of float64 computations. Without batches the results agree in float32."
    ),
    "check_sample_weight_equivalence_on_sparse_data": "As on dense data.",
}


# The checks make their data, for which the learning rate has to be right.
@pytest.mark.slow
@parametrize_with_checks(
    [Classifier(lr=0.01, epochs=20, device="cpu"), Regressor(lr=0.01, epochs=100, device="cpu")],
    expected_failed_checks=lambda estimator: EXPECTED,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_estimators_pass_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


def make_net(n_features_in, n_outputs, hidden=16, dropout=0.0):
    layers = (nn.Linear(n_features_in, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, n_outputs))
    return nn.Sequential(*layers)


class Net(nn.Module):
    def __init__(self, n_features_in, n_classes, width=8):
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Linear(n_features_in, width), nn.Tanh(), nn.Linear(width, n_classes))

    def forward(self, x):
        return self.layers(x)


def classifier(module=make_net, **options):
    return Classifier(module, **({"lr": 0.02, "epochs": 15, "device": "cpu", "random_state": 0} | options))


def regressor(module=make_net, **options):
    return Regressor(module, **({"lr": 0.02, "epochs": 30, "device": "cpu", "random_state": 0} | options))


def test_fit_equals_fit_of_a_model():
    estimator = classifier(validation_split=0.2).fit(X, Y)
    easytorch.set_seed(0)
    model = easytorch.Model(make_net(4, 3), device="cpu").compile("adam", "cross_entropy", lr=0.02)
    model.fit(X.astype("float32"), Y, epochs=15, validation_split=0.2, verbose=0)
    for ours, theirs in zip(estimator.module_.parameters(), model.module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert estimator.history_["val_loss"] == model.history["val_loss"]
    assert estimator.n_iter_ == 15


@pytest.mark.parametrize("module", [make_net, Net, None, nn.Sequential(nn.Linear(4, 3)), nn.LazyLinear],
                         ids=["function", "class", "default", "object", "lazy"])  # fmt: skip
def test_modules_come_from_classes_functions_and_objects(module):
    options = {"module__out_features": 3} if module is nn.LazyLinear else {}
    estimator = classifier(module, **options).fit(X, Y)
    assert estimator.score(X, Y) > 0.8
    if isinstance(module, nn.Module):
        assert all(p is not q for p in module.parameters() for q in estimator.module_.parameters())
        again = classifier(module).fit(X, Y)
        np.testing.assert_array_equal(estimator.predict_proba(X), again.predict_proba(X))


def test_labels_may_be_text():
    for y in (
        NAMES,
        NAMES.tolist(),
        pandas.Series(NAMES),
        pandas.Series(NAMES, dtype="category"),
        NAMES.astype(object),
    ):
        estimator = classifier().fit(X, y)
        assert estimator.classes_.tolist() == ["setosa", "versicolor", "virginica"]
        assert estimator.score(X, y) > 0.9
        assert set(estimator.predict(X)) <= set(NAMES)
    probabilities = estimator.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    np.testing.assert_array_equal(estimator.classes_[probabilities.argmax(1)], estimator.predict(X))


@pytest.mark.parametrize("loss", ["cross_entropy", "bce_with_logits", nn.BCEWithLogitsLoss()])
def test_two_classes_have_one_or_two_outputs(loss):
    estimator = classifier(loss=loss).fit(X[:100], NAMES[:100])
    assert estimator.n_outputs_ == (2 if loss == "cross_entropy" else 1)
    assert estimator.score(X[:100], NAMES[:100]) > 0.95
    assert estimator.predict_proba(X).shape == (150, 2)
    assert cross_val_score(estimator, X[:100], Y[:100], scoring="roc_auc", cv=2).mean() > 0.95


def test_sparse_features_equal_dense_ones():
    texts = [f"{name} {'long' if size > 0 else 'short'} leaf" for name, size in zip(NAMES, X[:, 0], strict=True)]
    pipeline = make_pipeline(TfidfVectorizer(), classifier(validation_split=0.2)).fit(texts, NAMES)
    assert pipeline.score(texts, NAMES) == 1
    features = pipeline[0].transform(texts)
    dense = classifier(validation_split=0.2).fit(features.toarray(), NAMES)
    for kind in (sp.csr_matrix, sp.csc_array, sp.coo_array):
        assert np.array_equal(dense.predict_proba(kind(features)), pipeline.predict_proba(texts))
    weights = np.arange(len(X)) % 2
    assert np.array_equal(
        regressor().fit(sp.csr_array(X), TARGETS, sample_weight=weights).predict(sp.csr_array(X)),
        regressor().fit(X, TARGETS, sample_weight=weights).predict(X),
    )
    assert cross_val_score(classifier(), features, NAMES, cv=2).mean() > 0.9
    with pytest.raises(ValueError, match="NaN"):
        classifier().fit(sp.csr_array(np.where(X > 1, np.nan, X)), Y)


def test_several_labels_are_a_matrix():
    x, y = make_multilabel_classification(n_samples=200, n_classes=4, random_state=0)
    estimator = classifier(epochs=20).fit(x, y)
    assert estimator.predict(x).shape == estimator.predict_proba(x).shape == y.shape
    assert (estimator.predict(x) == y).mean() > 0.8
    assert 0 <= cross_val_score(estimator, x, y, scoring="f1_macro", cv=2).mean() <= 1
    with pytest.raises(ValueError, match="not for several labels"):
        classifier(loss="cross_entropy").fit(x, y)


def test_regression_has_one_or_several_outputs():
    many = np.column_stack([TARGETS, -TARGETS])
    for y in (TARGETS, TARGETS[:, None], many, pandas.DataFrame(many), TARGETS.tolist()):
        estimator = regressor().fit(X, y)
        assert estimator.predict(X).shape == np.shape(y)
        assert estimator.score(X, y) > 0.9
    with pytest.raises(ValueError, match="is for classes"):
        regressor(loss="cross_entropy").fit(X, TARGETS)


def test_rates_of_a_poisson_loss_are_predicted():
    counts = np.random.default_rng(0).poisson(np.exp(X[:, 0]))
    predicted = regressor(loss="poisson_nll", epochs=60).fit(X, counts).predict(X)
    assert predicted.min() > 0
    assert predicted.mean() == pytest.approx(counts.mean(), rel=0.15)


def test_parameters_of_module_and_optimizer_have_prefixes():
    estimator = classifier(module__hidden=7, optimizer="sgd", optimizer__momentum=0.9, compile__clip_grad_norm=1.0)
    copied = clone(estimator).set_params(module__hidden=9, epochs=2, fit__shuffle=False)
    assert copied.get_params()["module__hidden"] == 9
    assert estimator.get_params()["module__hidden"] == 7
    assert "fit__shuffle" not in estimator.get_params()
    copy.copy(estimator).set_params(module__hidden=1)
    assert estimator.get_params()["module__hidden"] == 7
    copied.fit(X, Y)
    assert copied.module_[0].out_features == 9
    assert copied.model_.optimizer.defaults["momentum"] == 0.9
    assert copied.model_.clip_grad_norm == 1.0
    assert "module__hidden=9" in repr(copied)


def test_grid_search_tunes_module_and_optimizer():
    grid = {"classifier__module__hidden": [2, 16], "classifier__optimizer__lr": [1e-4, 0.02], "classifier__epochs": [8]}
    pipeline = make_pipeline(StandardScaler(), classifier(lr=None))
    pipeline.steps[1] = ("classifier", pipeline.steps[1][1])
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X, NAMES)
    assert search.best_params_["classifier__optimizer__lr"] == 0.02
    assert search.predict(X[:3]).tolist() == ["setosa"] * 3


def test_frames_go_through_column_transformers():
    frame = pandas.DataFrame({"size": X[:, 0], "width": X[:, 1], "color": np.where(X[:, 2] > 0, "red", "blue")})
    columns = ColumnTransformer(
        [("numbers", StandardScaler(), ["size", "width"]), ("text", OneHotEncoder(sparse_output=False), ["color"])]
    )
    pipeline = make_pipeline(columns.set_output(transform="pandas"), classifier()).fit(frame, NAMES)
    assert pipeline.score(frame, NAMES) > 0.6
    estimator = pipeline[-1]
    assert estimator.feature_names_in_.tolist() == [
        "numbers__size",
        "numbers__width",
        "text__color_blue",
        "text__color_red",
    ]
    assert estimator.n_features_in_ == 4
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(
            columns.transform(frame)[["numbers__width", "numbers__size", "text__color_blue", "text__color_red"]]
        )


def test_calibration_and_importance_of_scikit_learn():
    calibrated = CalibratedClassifierCV(classifier(epochs=8), cv=2).fit(X, NAMES)
    np.testing.assert_allclose(calibrated.predict_proba(X).sum(1), 1)
    importance = permutation_importance(classifier().fit(X, Y), X, Y, n_repeats=2, random_state=0)
    assert importance.importances_mean.argmax() in (2, 3)
    assert cross_val_predict(classifier(epochs=8), X, Y, cv=2, method="predict_proba").shape == (150, 3)
    transformed = TransformedTargetRegressor(regressor(), transformer=StandardScaler()).fit(X, 100 + 50 * TARGETS)
    assert transformed.score(X, 100 + 50 * TARGETS) > 0.9


def test_random_state_makes_fits_exact():
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (classifier(module__dropout=0.5, epochs=3).fit(X, Y) for _ in range(2))
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])
    third = classifier(module__dropout=0.5, epochs=3, random_state=1).fit(X, Y)
    assert (third.predict_proba(X) != first.predict_proba(X)).any()
    refit = first.predict_proba(X)
    np.testing.assert_array_equal(first.fit(X, Y).predict_proba(X), refit)


def test_partial_fits_equal_one_fit():
    for options in ({}, {"fit__shuffle": False, "fit__validation_freq": 2}):
        whole = classifier(module__dropout=0.5, epochs=4, **options).fit(X, Y)
        parts = classifier(module__dropout=0.5, **options)
        for _ in range(4):
            parts.partial_fit(X, Y, classes=[0, 1, 2])
        np.testing.assert_array_equal(whole.predict_proba(X), parts.predict_proba(X))
    first = classifier().partial_fit(X[:100], NAMES[:100], classes=np.unique(NAMES))
    first.partial_fit(X[100:], NAMES[100:])
    assert first.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    with pytest.raises(ValueError, match=r"has the class 'virginica'.*first partial_fit"):
        classifier().partial_fit(X[:100], NAMES[:100]).partial_fit(X, NAMES)
    assert regressor().partial_fit(X, TARGETS).partial_fit(X, TARGETS).n_iter_ == 2


def test_warm_start_continues():
    estimator = classifier(epochs=2, warm_start=True).fit(X, Y).fit(X, Y)
    assert estimator.n_iter_ == 4
    assert classifier(epochs=2).fit(X, Y).fit(X, Y).n_iter_ == 2


def test_a_new_learning_rate_is_used_in_the_next_call():
    for name in ("lr", "optimizer__lr"):
        estimator = classifier(epochs=1, warm_start=True, optimizer="sgd").fit(X, Y)
        before = estimator.predict_proba(X)
        estimator.set_params(**{name: 1e-12}).fit(X, Y).partial_fit(X, Y)
        assert estimator.model_.optimizer.lr == 1e-12
        np.testing.assert_allclose(estimator.predict_proba(X), before, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("module__hidden", 4),
        ("module", nn.Linear(4, 3)),
        ("loss", "bce_with_logits"),
        ("optimizer", "sgd"),
        ("optimizer__weight_decay", 0.1),
        ("compile__clip_grad_norm", 1.0),
        ("metrics", ["accuracy"]),
        ("lr", None),
    ],
)
def test_a_change_without_effect_is_refused(name, value):
    estimator = classifier(epochs=1, lr=0.1, warm_start=True).fit(X, Y)
    copied = pickle.loads(pickle.dumps(estimator)).set_params(**{name: value})
    for method in (copied.fit, copied.partial_fit):
        with pytest.raises(ValueError, match=f"'{name}' has changed since the last fit"):
            method(X, Y)
    copied.set_params(warm_start=False)
    if name != "loss":
        copied.fit(X, Y)


def test_one_rate_cannot_replace_those_of_several_optimizers():
    optimizers = {"0": "sgd", "3": ("sgd", {"lr": 0.01})}
    estimator = classifier(optimizer=optimizers, lr=0.1, epochs=1).fit(X, Y).partial_fit(X, Y)
    with pytest.raises(ValueError, match="for one optimizer"):
        estimator.set_params(lr=0.2).partial_fit(X, Y)


def test_partial_fit_refuses_other_classes_and_balanced_weights():
    estimator = classifier().partial_fit(X, NAMES, classes=np.unique(NAMES))
    estimator.partial_fit(X, NAMES, classes=np.unique(NAMES)[::-1])
    with pytest.raises(ValueError, match=r"classes=\['rose'\] differs"):
        estimator.partial_fit(X, NAMES, classes=["rose"])
    with pytest.raises(ValueError, match="only"):
        classifier(class_weight="balanced").partial_fit(X, NAMES)


def test_validation_data_must_be_a_pair():
    for data in (X, (X, Y, np.ones(150)), {"x": X, "y": Y}):
        with pytest.raises(ValueError, match=r"expects a pair \(X, y\)"):
            classifier().fit(X, Y, validation_data=data)


def test_missing_and_mixed_labels_are_named():
    labels = NAMES.astype(object)
    for missing, message in ((None, "no label at the index 7"), (np.nan, "contains NaN")):
        labels[7] = missing
        with pytest.raises(ValueError, match=message):
            classifier().fit(X, labels)
    labels[7] = 3
    with pytest.raises(TypeError, match="Convert them all to text"):
        classifier().fit(X, labels)


def test_weights_equal_repeated_samples():
    weights = np.arange(150) % 3
    options = {"batch_size": 1000, "optimizer": "sgd", "lr": 0.5, "epochs": 20}
    for make, y in ((classifier, Y), (regressor, TARGETS)):
        make_estimator = make(**options | ({"lr": 0.05} if make is regressor else {}))
        weighted = clone(make_estimator).fit(X, y, sample_weight=weights)
        repeated = clone(make_estimator).fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
        scaled = clone(make_estimator).fit(X, y, sample_weight=weights * 10.0)
        predict = "predict_proba" if make is classifier else "predict"
        expected = getattr(repeated, predict)(X)
        np.testing.assert_allclose(getattr(weighted, predict)(X), expected, atol=1e-5)
        np.testing.assert_allclose(getattr(scaled, predict)(X), expected, atol=1e-5)
    pipeline = make_pipeline(StandardScaler(), classifier(epochs=1))
    pipeline.fit(X, Y, classifier__sample_weight=weights)


def test_class_weights_go_by_name():
    heavy = classifier(class_weight={"versicolor": 100.0}, epochs=5).fit(X, NAMES)
    plain = classifier(epochs=5).fit(X, NAMES)
    assert (heavy.predict(X) == "versicolor").sum() > (plain.predict(X) == "versicolor").sum()
    assert classifier(class_weight="balanced").fit(X[:120], NAMES[:120]).score(X, NAMES) > 0.9
    with pytest.raises(ValueError, match="class_weight has a weight for the class 'rose'"):
        classifier(class_weight={"rose": 2}).fit(X, NAMES)


def test_early_stopping_and_callbacks_are_copied():
    stopping = EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    estimator = classifier(lr=0.5, epochs=200, callbacks=[stopping], validation_split=0.2, metrics=["accuracy"]).fit(
        X, Y
    )
    assert estimator.n_iter_ < 200
    assert stopping.best == np.inf
    assert estimator.callbacks_[0].best == min(estimator.history_["val_loss"])
    epochs = []
    callback = LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(logs["val_accuracy"]))
    classifier(epochs=3, callbacks=callback, metrics=["accuracy"]).fit(X, NAMES, validation_data=(X, NAMES))
    assert len(epochs) == 3


def test_fitted_estimators_can_be_pickled():
    for estimator in (classifier().fit(X, NAMES), regressor().fit(X, TARGETS)):
        copied = pickle.loads(pickle.dumps(estimator))
        np.testing.assert_array_equal(copied.predict(X), estimator.predict(X))
        copied.set_params(warm_start=True, epochs=1).fit(X, estimator.predict(X))


def test_images_and_tensors_are_features():
    images = torch.randn(60, 1, 6, 6)
    y = (images.mean((1, 2, 3)) > 0).long()
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    estimator = classifier(net, epochs=20).fit(images, y)
    assert estimator.score(images.numpy(), y.numpy()) > 0.8


def test_integers_may_stay_integers():
    tokens = np.random.default_rng(0).integers(10, size=(80, 1))
    net = nn.Sequential(nn.Embedding(10, 8), nn.Flatten(), nn.Linear(8, 2))
    estimator = classifier(net, dtype=None, epochs=30).fit(tokens, tokens[:, 0] > 4)
    assert estimator.score(tokens, tokens[:, 0] > 4) == 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Classifier(max_epochs=3), TypeError, "Use epochs="),
        (lambda: Classifier(criterion="mse"), TypeError, "Use loss="),
        (lambda: Classifier(epoch=3), TypeError, "Did you mean 'epochs'"),
        (lambda: Classifier(modul__hidden=3), TypeError, "Did you mean 'module__'"),
        (lambda: Classifier().set_params(hidden=3), ValueError, "Invalid parameter 'hidden'"),
        (lambda: classifier(module__hiden=3).fit(X, Y), TypeError, "module__hiden is no parameter of make_net.*'hidden'"),
        (lambda: classifier(nn.Linear(4, 3), module__hidden=3).fit(X, Y), ValueError, "module__hidden has no effect"),
        (lambda: classifier(lambda: 3).fit(X, Y), TypeError, "returned int"),
        (lambda: classifier("net").fit(X, Y), TypeError, "module expects a class or function"),
        (lambda: classifier(nn.Linear(4, 2)).fit(X, Y), ValueError, "must have 3 outputs for 3 classes"),
        (lambda: classifier(nn.Linear(4, 1)).fit(X[:100], Y[:100]), ValueError, "pass loss='bce_with_logits'"),
        (lambda: regressor(nn.Linear(4, 2)).fit(X, TARGETS), ValueError, "must have 1 output for the targets"),
        (lambda: classifier(loss="bce_with_logits").fit(X, Y), ValueError, "for two classes, but y has 3"),
        (lambda: classifier().fit(X, Y * 0), ValueError, "y has one class"),
        (lambda: classifier(loss=None).fit(X, Y), ValueError, "loss expects one loss"),
        (lambda: classifier().fit(TensorDataset(torch.ones(3)), Y), TypeError, "use easytorch.Model"),
        (lambda: classifier().fit(X, Y, sample_weight=np.zeros(150)), ValueError, "at least one non-zero"),
        (lambda: classifier().predict(X), NotFittedError, "not fitted"),
        (lambda: classifier(epochs=0).fit(X, Y), ValueError, "epochs"),
        (lambda: classifier(optimizer__momentum=0.9).fit(X, Y), TypeError, "momentum"),
        (lambda: classifier(fit__epoch=2).fit(X, Y), TypeError, "epochs"),
    ],
)  # fmt: skip
def test_mistakes_get_an_error_with_the_fix(make, error, message):
    with pytest.raises(error, match=message):
        make()


def score_by_margin(y_pred, y):
    return nn.functional.multi_margin_loss(y_pred, y)


class Dictionary(nn.Module):
    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.layer = nn.Linear(n_features_in, n_outputs)

    def forward(self, x):
        return {"logits": self.layer(x)}


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("compile__loss", "Use loss="),
        ("compile__optimizer", "Use optimizer="),
        ("compile__metrics", "Use metrics="),
        ("fit__verbose", "Use verbose="),
        ("fit__sample_weight", r"Use fit\(X, y, sample_weight=...\)"),
    ],
)
def test_options_that_are_parameters_get_a_hint(name, fix):
    with pytest.raises(TypeError, match=f"Classifier has no parameter '{name}'. {fix}"):
        Classifier(**{name: "mse"})
    with pytest.raises(ValueError, match=f"Regressor has no parameter '{name}'. {fix}"):
        Regressor().set_params(**{name: "mse"})


def normalized(n_features_in, n_outputs):
    return nn.Sequential(nn.Linear(n_features_in, 8), nn.BatchNorm1d(8), nn.Linear(8, n_outputs))


def two_inputs():
    class TwoInputs(nn.Linear):
        def forward(self, x, z):
            return super().forward(x)

    return TwoInputs(4, 3)


FITS_WITH_ERRORS = {
    "one sample": ({"module": normalized, "batch_size": 149}, r"such as Classifier\(batch_size=150\)"),
    "a monitor": ({"callbacks": [EarlyStopping("val_loss")]}, r"Pass validation_split=0\.2 to the estimator"),
    "frozen": (
        {"module": lambda: nn.Linear(4, 3).requires_grad_(False)},
        "train in the function that makes the module",
    ),
    "two inputs": ({"module": two_inputs}, r"Let forward\(\) take one argument"),
    "integers": ({"module": lambda: nn.Embedding(9, 3)}, "Pass dtype='int64' to the estimator"),
    "a class": ({"module": nn.Linear}, "needs 'in_features', 'out_features'. Pass module__in_features="),
    "no parameters": ({"module": lambda: nn.Linear(4, 3), "module__hidden": 3}, "It has no parameters"),
}


@pytest.mark.parametrize("case", FITS_WITH_ERRORS)
def test_errors_name_what_an_estimator_has(case):
    options, message = FITS_WITH_ERRORS[case]
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        Classifier(epochs=1, **options).fit(X, Y)
    assert not re.search(r"DataLoader|compile\(|\(x, y\)", str(caught.value))


def test_warnings_name_what_an_estimator_has():
    with pytest.warns(UserWarning, match=r"pass compile__clip_grad_norm=1\.0 to the estimator"):
        Regressor(lr=1e30, epochs=3).fit(X, Y)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("epochs", r"Pass it to the estimator: Classifier\(..., epochs=...\), or set_params\(epochs=...\)"),
        ("max_epochs", r"Pass epochs= to the estimator: Classifier\(...\)"),
        ("steps_per_epoch", r"Pass it to the estimator: Classifier\(..., fit__steps_per_epoch=...\)"),
        ("sample_wieght", "Did you mean 'sample_weight'"),
        ("nothing", r"fit\(\) takes X, y, sample_weight, validation_data"),
    ],
)
def test_arguments_of_fit_that_are_parameters_get_a_hint(name, fix):
    with pytest.raises(TypeError, match=rf"Classifier.fit\(\) got an unexpected keyword argument '{name}'.*{fix}"):
        Classifier().fit([[0.0], [1.0]], [0, 1], **{name: 3})
    with pytest.raises(TypeError, match=rf"Classifier.partial_fit\(\) got .*'{name}'"):
        Classifier().partial_fit([[0.0], [1.0]], [0, 1], **{name: 3})


def test_modules_may_return_a_dict_with_one_output():
    assert classifier(Dictionary, epochs=30).fit(X, NAMES).score(X, NAMES) > 0.8


def test_parameters_take_effect_in_the_next_fit():
    estimator = classifier().fit(X[:100], Y[:100])
    expected = estimator.predict_proba(X)
    estimator.set_params(loss="bce_with_logits", module__hidden=3)
    np.testing.assert_array_equal(estimator.predict_proba(X), expected)
    loss = nn.CrossEntropyLoss(weight=torch.ones(3))
    metric = easytorch.EpochMetric(lambda y_pred, y: 1.0, name="one", mode="max")
    classifier(loss=loss, metrics=[metric], epochs=1).fit(X, Y)
    assert "one" in classifier(loss=loss, metrics=[metric], epochs=1).fit(X, Y).history_


def test_variances_are_no_predictions():
    class Gaussian(nn.Module):
        def __init__(self, n_features_in):
            super().__init__()
            self.mean, self.variance = nn.Linear(n_features_in, 1), nn.Linear(n_features_in, 1)

        def forward(self, x):
            return self.mean(x), self.variance(x).exp()

    assert regressor(Gaussian, loss=nn.GaussianNLLLoss(), epochs=60).fit(X, TARGETS).score(X, TARGETS) > 0.8


def test_custom_losses_predict_the_largest_output():
    estimator = classifier(loss=score_by_margin).fit(X, NAMES)
    assert estimator.score(X, NAMES) > 0.9
    with pytest.raises(ValueError, match="cannot convert outputs to probabilities"):
        estimator.predict_proba(X)


def test_diabetes_is_predicted_as_well_as_by_scikit_learn():
    x, y = load_diabetes(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), regressor(epochs=60, lr=0.003))
    model = TransformedTargetRegressor(pipeline, transformer=StandardScaler())
    assert cross_val_score(model, x, y, cv=3).mean() > 0.4  # a ridge regression has 0.48


def test_html_and_metadata_routing_work():
    set_config(enable_metadata_routing=True)
    try:
        estimator = classifier(epochs=1).set_fit_request(sample_weight=True)
        assert "Classifier" in estimator._repr_html_()
        estimator.set_score_request(sample_weight=True)
        assert len(cross_val_score(estimator, X, Y, params={"sample_weight": np.ones(150)}, cv=2)) == 2
    finally:
        set_config(enable_metadata_routing=False)


def test_the_error_without_scikit_learn_names_the_extra(monkeypatch):
    spec = importlib.util.spec_from_file_location("without_sklearn", integration.__file__)
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=re.escape('pip install "easytorch-fit[sklearn]"')):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_labels_of_a_module_with_nan_get_a_warning():
    classifier = Classifier(epochs=1, random_state=0).fit(X, NAMES)
    next(classifier.module_.parameters()).data[:] = float("nan")
    with pytest.warns(UserWarning, match="classes of 150 of 150 samples have no meaning"):
        classifier.predict(X)
