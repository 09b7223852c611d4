"""The report of a check, its arguments, and what it leaves behind."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import easytorch
from easytorch.checks import warning
from easytorch.checks.base import CHECKS
from tests.checks.common import digits, mlp


def broken():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Linear(32, 10), nn.Softmax(1))
    return easytorch.Model(net).compile("adam", "cross_entropy")


def healthy():
    return easytorch.Model(mlp()).compile("adam", "cross_entropy")


@pytest.fixture(scope="module")
def report():
    torch.manual_seed(0)
    return broken().check(*digits())


# The report


def test_errors_come_first(report):
    severities = [finding.severity for finding in report]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)
    assert [finding.name for finding in report.problems] == ["double_activation", "linear_layers"]
    assert report.problems == report.errors + report.warnings
    assert len(report) == len(report.problems) + len(report.facts)


def test_every_problem_has_a_fix(report):
    assert all(finding.message and finding.fix for finding in report.problems)


def test_text_has_every_finding_and_its_fix(report):
    text = " ".join(str(report).split())
    for finding in report:
        assert finding.message in text
        assert finding.fix in text
    assert str(report).startswith("Check of Sequential on 1,797 samples: 1 error and 1 warning")
    assert max(map(len, str(report).splitlines())) <= 110


def test_html_escapes_and_has_every_finding(report):
    html = report._repr_html_()
    assert html.count("<tr>") == len(report) + 1
    assert "&#x27;1&#x27;" in html
    assert "@media (max-width:480px)" in html


def test_frame_and_dict_have_every_finding(report):
    pytest.importorskip("pandas")
    frame = report.to_frame()
    assert list(frame.columns) == ["severity", "name", "message", "fix", "value"]
    assert list(frame["name"]) == [finding.name for finding in report]
    assert [row["name"] for row in report.to_dict()["error"]] == ["double_activation"]


def test_findings_are_found_by_name(report):
    assert "linear_layers" in report
    assert "dead_units" not in report
    assert report["linear_layers"].value == [("1", "2")]
    assert report[0].name == "double_activation"
    with pytest.raises(KeyError, match="no finding 'dead_units'"):
        report["dead_units"]


def test_plot_writes_a_picture(report, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    figure = report.plot(path=tmp_path / "check.png")
    assert len(figure.axes) == 5
    assert (tmp_path / "check.png").stat().st_size > 1000


def test_facts_have_memory_time_and_loss():
    facts = {finding.name: finding.value for finding in healthy().check(*digits()).facts}
    assert facts["memory"] > 4 * 64 * 32 * 4  # weights, gradients and two moments of Adam
    assert facts["time_of_a_step"] > 0
    assert facts["loss_at_start"] == pytest.approx(2.3, abs=0.3)


def test_every_check_is_in_the_guide():
    page = (Path(__file__).parents[2] / "docs/guides/check.md").read_text(encoding="utf-8")
    assert not [check.__name__ for check in CHECKS if f"`{check.__name__}`" not in page]


# Arguments


def test_checks_are_ignored_by_name():
    found = broken().check(*digits(), ignore=["linear_layers", "double_activation"])
    assert not found.problems
    with pytest.raises(ValueError, match="Did you mean 'linear_layers'"):
        healthy().check(*digits(), ignore=["linear_layer"])
    with pytest.raises(TypeError, match=r"checks expects functions .* received 'linear_layers'"):
        healthy().check(*digits(), checks=["linear_layers"])


def test_custom_checks_run():
    def many_samples(probe):
        if probe.samples > 1000:
            yield warning("There are many samples.", "Use fewer.")

    report = healthy().check(*digits(), checks=[many_samples])
    assert [finding.name for finding in report.problems] == ["many_samples"]


def test_error_in_a_check_hides_no_other_finding():
    def broken_check(probe):
        raise KeyError("x")

    found = broken().check(*digits(), checks=[broken_check])
    assert "could not run" in found["broken_check"].message
    assert len(found.problems) == 2


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*digits(), strict=True))


def batches():
    x, y = digits()
    return list(zip(x.split(32), y.split(32), strict=True))


KINDS = {
    "arrays": lambda: tuple(part.numpy() for part in digits()),
    "tensors": digits,
    "dataset": lambda: (TensorDataset(*digits()),),
    "samples": lambda: (DataLoader(list(zip(*digits(), strict=True)), 32, shuffle=True),),
    "loader": lambda: (DataLoader(TensorDataset(*digits()), 32, shuffle=True),),
    "workers": lambda: (DataLoader(TensorDataset(*digits()), 32, shuffle=True, num_workers=1),),
    "stream": lambda: (Stream(),),
    "batches": lambda: (batches(),),
    "function": lambda: (lambda: iter(batches()),),
    "dict": lambda: ({"input": digits()[0], "labels": digits()[1]},),
    "text": lambda: (digits()[0], [f"digit {label}" for label in digits()[1]]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_data_of_every_kind_is_checked(kind):
    report = healthy().check(*KINDS[kind]())
    assert not report.problems
    assert "cannot_fit_batch" in report


def test_generator_is_refused_and_not_read():
    generator = iter(batches())
    source = (batch for batch in generator)
    with pytest.raises(ValueError, match="check\\(\\) would use up the first batches of x"):
        healthy().check(source)
    assert len(list(source)) == len(batches())


def test_data_that_the_model_makes_is_checked():
    class Dream(easytorch.Model):
        def train_step(self, batch):
            return {"loss": self.module(torch.ones(4, 1, 8, 8)).square().mean()}

    assert not Dream(mlp()).compile("adam").check(steps_per_epoch=10).problems


def test_wrong_arguments_are_errors():
    with pytest.raises(ValueError, match="batch_size"):
        healthy().check(*digits(), batch_size=0)
    with pytest.raises(RuntimeError, match="check\\(\\) needs an optimizer"):
        easytorch.Model(mlp()).compile(None, "cross_entropy").check(*digits())


def test_several_processes_are_refused(monkeypatch):
    model = healthy()
    monkeypatch.setattr(model.strategy.group, "world_size", 2, raising=False)
    with pytest.raises(RuntimeError, match="check\\(\\) runs in one process"):
        model.check(*digits())


def test_balanced_weights_silence_the_warning_of_rare_labels():
    x, y = torch.randn(500, 8), torch.zeros(500, dtype=torch.int64)
    y[:25] = 1
    assert "unbalanced_labels" in {finding.name for finding in healthy_table().check(x, y).problems}
    assert not healthy_table().check(x, y, class_weight="balanced").problems


def healthy_table():
    return easytorch.Model(mlp(8, 2)).compile("adam", "cross_entropy")


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        {"gradient_accumulation_steps": 2},
        {"clip_grad_norm": 1.0},
    ],
)
def test_settings_of_compile_apply(settings):
    assert not easytorch.Model(mlp()).compile("adam", "cross_entropy", **settings).check(*digits()).problems


@pytest.mark.parametrize("optimizer", ["lbfgs", "sam"])
def test_optimizers_with_a_closure_are_checked(optimizer):
    report = easytorch.Model(mlp()).compile(optimizer, "cross_entropy", lr=0.05).check(*digits())
    assert not report.errors


def test_lazy_modules_are_checked():
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(10))
    model = easytorch.Model(net)
    model.predict_on_batch(digits()[0][:2])
    assert not model.compile("adam", "cross_entropy").check(*digits()).problems


# No trace


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm, self.calls, self.seen = mlp(64, 32), nn.BatchNorm1d(32), 0, []
        self.head = nn.Linear(32, 10)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.seen.append(len(x))
        self.steps += 1
        return self.head(nn.functional.dropout(self.norm(self.body(x)).relu(), 0.1, self.training))


def state_of(model):
    return copy.deepcopy([
        model.module.state_dict(), model.optimizer.state_dict(), model.module.calls, model.module.seen,
        [layer.training for layer in model.module.modules()], vars(model.state), model.class_names, [*model.last_fit],
        model.history.history, [parameter.grad for parameter in model.module.parameters()], model.stop_training,
        [parameter.requires_grad for parameter in model.module.parameters()],
        torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(),
        [len(layer._forward_hooks) for layer in model.module.modules()],
    ])  # fmt: skip


def assert_same(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("is_trained", [False, True])
def test_check_leaves_no_trace_in_the_model(is_trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = easytorch.Model(Counting()).compile("adam", "cross_entropy", metrics=["accuracy"], scheduler="cosine")
    if is_trained:
        model.fit(*digits(), verbose=0)
    before = [repr(part) for part in state_of(model)]
    attributes = set(vars(model))
    model.check(*digits(), validation_split=0.1)
    assert [repr(part) for part in state_of(model)] == before
    assert set(vars(model)) == attributes
    assert not list(tmp_path.iterdir())


def test_training_after_a_check_is_the_same():
    def train(checks):
        torch.manual_seed(0)
        loader = DataLoader(TensorDataset(*digits()), 64, shuffle=True, generator=torch.Generator().manual_seed(1))
        model = easytorch.Model(Counting()).compile("adam", "cross_entropy")
        if checks:
            model.check(loader)
        model.fit(loader, verbose=0)
        return model.module.state_dict()

    assert_same(train(True), train(False))


def test_failed_step_leaves_no_trace():
    model = easytorch.Model(mlp(inputs=32)).compile("adam", "cross_entropy")
    before = copy.deepcopy(model.module.state_dict())
    report = model.check(*digits())
    assert [finding.name for finding in report.errors] == ["training_step"]
    assert "in_features=64" in report.errors[0].fix
    assert_same(model.module.state_dict(), before)
    with pytest.raises(ValueError, match="nothing to draw"):
        report.plot()
