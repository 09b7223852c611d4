"""The training techniques of the documentation: formulas and training equal plain torch, also after a stop."""

from __future__ import annotations

import ast
import copy
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from easytorch.callbacks import EMA, SWA, BackupAndRestore, LambdaCallback
from tests.common_resume import CrashAfter, SimulatedCrash
from tests.docs.test_docs import ROOT, programs
from tests.many import furthest, run_ranks

DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.rand(48, 1, 8, 8, generator=GENERATOR), torch.arange(48) % 10


def read_techniques():
    """Return the functions and classes of the pages."""
    page = types.ModuleType("techniques")
    for name in ("predictions", "techniques", "teachers"):
        for block in programs(ROOT / f"docs/how-to/{name}.md"):
            tree = ast.parse(block.text)
            tree.body = [node for node in tree.body if isinstance(node, DEFINITIONS)]
            exec(compile(tree, f"{name}.md", "exec"), vars(page))
    return page


techniques = read_techniques()


def samples(count=8):
    return [(X[i], Y[i]) for i in range(count)]


def targets_of(soft):
    """Return the two labels of each row of mixed targets, and the share of the first."""
    (first, second), share = soft.topk(2).indices.T, soft.topk(2).values[:, 0]
    return first, second, share


# Batches


@pytest.mark.parametrize("make", [techniques.MixUp, techniques.CutMix])
@pytest.mark.parametrize("seed", range(5))
def test_mixed_targets_give_the_mean_of_two_losses(make, seed):
    torch.manual_seed(seed)
    x, soft = make(10, alpha=1.0)(samples())
    first, second, share = targets_of(soft)
    assert torch.allclose(soft.sum(1), torch.ones(8))
    logits = techniques.make_net()(x)
    ours = F.cross_entropy(logits, soft)
    a, b = (F.cross_entropy(logits, labels, reduction="none") for labels in (first, second))
    assert torch.allclose(ours, (share * a + (1 - share) * b).mean(), atol=1e-6)
    trained = Model(techniques.make_net(), device="cpu").compile("sgd", "cross_entropy")
    assert trained.test_on_batch(x, soft).loss == pytest.approx(F.cross_entropy(trained.module.eval()(x), soft).item())


@pytest.mark.parametrize("seed", range(5))
def test_mixup_mixes_inputs_as_it_mixes_targets(seed):
    torch.manual_seed(seed)
    ratio, order = torch.distributions.Beta(0.2, 0.2).sample(), torch.randperm(8)
    torch.manual_seed(seed)
    x, y = techniques.MixUp(10)(samples())
    one_hot = F.one_hot(Y[:8], 10)
    assert torch.allclose(x, ratio * X[:8] + (1 - ratio) * X[:8][order], atol=1e-6)
    assert torch.allclose(y, ratio * one_hot + (1 - ratio) * one_hot[order], atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_weights_labels_by_the_pixels_of_the_box(seed):
    torch.manual_seed(seed)
    x, y = techniques.CutMix(10)(samples())
    pasted = (x != X[:8]).flatten(1).float().mean(1)
    own = y[torch.arange(8), Y[:8]]
    is_partner = own < 1  # the partner of an image may be itself
    assert torch.allclose(pasted[is_partner], 1 - own[is_partner], atol=1e-6)
    assert all((row == image).all() for row, image, other in zip(x, X[:8], is_partner, strict=True) if not other)


@pytest.mark.parametrize("make", [techniques.MixUp, techniques.CutMix])
def test_mixed_batches_resume_after_every_update(make, tmp_path):
    def new():
        loader = DataLoader(TensorDataset(X, Y), 16, shuffle=True, collate_fn=make(10))
        return Model(techniques.make_net(), device="cpu").compile("adam", "cross_entropy"), loader, []

    check_resume(new, tmp_path)


# Losses


def test_label_smoothing_is_its_formula():
    logits = torch.randn(6, 10)
    target = F.one_hot(Y[:6], 10) * 0.9 + 0.1 / 10
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(nn.CrossEntropyLoss(label_smoothing=0.1)(logits, Y[:6]), expected, atol=1e-6)


def test_nt_xent_is_its_formula():
    first, second = torch.randn(5, 7), torch.randn(5, 7)
    views, terms = torch.cat([first, second]), []
    for i in range(10):
        similarities = F.cosine_similarity(views[i][None], views) / 0.5
        others = similarities[torch.arange(10) != i]
        terms.append(-(similarities[(i + 5) % 10].exp() / others.exp().sum()).log())
    assert torch.allclose(techniques.nt_xent(first, second), torch.stack(terms).mean(), atol=1e-6)


def test_distillation_is_its_formula():
    torch.manual_seed(0)
    net, teacher, t = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), techniques.make_net().eval(), 2.0
    p, q = (teacher(X[:8]) / t).softmax(1), (net(X[:8]) / t).softmax(1)
    soft = t**2 * (p * (p.log() - q.log())).sum(1).mean()
    expected = 0.5 * F.cross_entropy(net(X[:8]), Y[:8]) + 0.5 * soft
    model = techniques.Distillation(net, teacher, device="cpu").compile("sgd", "cross_entropy", lr=0.0)
    scores = model.train_on_batch(X[:8], Y[:8])
    assert scores.loss == pytest.approx(expected.item(), rel=1e-5)
    assert scores["distillation"] == pytest.approx(soft.item(), rel=1e-5)


# Training


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"precision": "bf16"}])
def test_gradient_checkpointing_changes_no_weight(options):
    nets = techniques.Blocks(False), techniques.Blocks(True)
    for net in nets:
        torch.manual_seed(1)
        Model(net, device="cpu").compile("adam", "cross_entropy", **options).fit(
            X, Y, epochs=2, batch_size=16, verbose=0
        )
    assert furthest(nets[0].state_dict(), nets[1].state_dict()) == 0


def test_gradient_noise_has_the_variance_of_its_formula():
    noise, seen = techniques.GradientNoise(eta=0.5), []
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 300, bias=False))
    model = Model(net, device="cpu").compile("sgd", lambda y_pred, y: 0 * y_pred.sum(), lr=0.0)
    record = LambdaCallback(on_before_optimizer_step=lambda: seen.append(net[1].weight.grad.var().item()))
    model.fit(X, Y, batch_size=16, epochs=2, callbacks=[noise, record], verbose=0)
    assert seen == pytest.approx([0.5 / (1 + step) ** 0.55 for step in range(6)], rel=0.05)


def test_gradient_noise_equals_a_plain_loop():
    net, generator = techniques.make_net().eval(), torch.Generator().manual_seed(0)
    net[3].p = 0.0
    plain = copy.deepcopy(net)
    model = Model(net, device="cpu").compile("sgd", "cross_entropy", lr=0.1)
    model.fit(X, Y, batch_size=16, epochs=2, shuffle=False, callbacks=[techniques.GradientNoise()], verbose=0)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(6):
        rows = slice(step % 3 * 16, step % 3 * 16 + 16)
        optimizer.zero_grad()
        F.cross_entropy(plain(X[rows]), Y[rows]).backward()
        for p in plain.parameters():
            p.grad.add_(torch.randn(p.shape, generator=generator), alpha=(0.01 / (1 + step) ** 0.55) ** 0.5)
        optimizer.step()
    assert furthest(net.state_dict(), plain.state_dict()) == 0


def test_a_mean_teacher_equals_a_plain_loop():
    student, ema = techniques.make_net(), EMA(0.9)
    plain = copy.deepcopy(student)
    teacher = copy.deepcopy(plain)
    model = techniques.MeanTeacher(student, ema, device="cpu").compile("sgd", "cross_entropy", lr=0.1)
    torch.manual_seed(3)
    model.fit(X, Y, batch_size=16, epochs=2, shuffle=False, callbacks=[ema], verbose=0)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    torch.manual_seed(3)
    for step in range(6):
        rows = slice(step % 3 * 16, step % 3 * 16 + 16)
        optimizer.zero_grad()
        s = plain(X[rows] + 0.1 * torch.randn_like(X[rows]))
        with torch.no_grad():
            t = teacher(X[rows] + 0.1 * torch.randn_like(X[rows]))
        consistency = F.mse_loss(s.softmax(1), t.softmax(1))
        (F.cross_entropy(s, Y[rows]) + min(2 * step / 6, 1.0) * consistency).backward()
        optimizer.step()
        for mean, weight in zip(teacher.parameters(), plain.parameters(), strict=True):
            mean.data.lerp_(weight.data, 1.0 if step == 0 else 0.1)  # EMA starts with the first weights
    assert furthest(student.state_dict(), plain.state_dict()) < 1e-6
    assert furthest(ema.average.module.state_dict(), teacher.state_dict()) < 1e-6


def test_swa_is_the_mean_of_the_last_weights():
    weights = []
    net = techniques.make_net()
    model = Model(net, device="cpu").compile("sgd", "cross_entropy", lr=0.1)
    record = LambdaCallback(on_epoch_end=lambda *_: weights.append(copy.deepcopy(net.state_dict())))
    model.fit(X, Y, batch_size=16, epochs=5, callbacks=[SWA(2, keep_average=True), record], verbose=0)
    means = {name: sum(state[name] for state in weights[2:]) / 3 for name in weights[0]}
    assert furthest(net.state_dict(), means) < 1e-6


# Resume


def check_resume(new, folder):
    """Compare a run that stops after each update with one that does not stop."""

    def run(path, stop=None):
        torch.manual_seed(2)
        model, data, callbacks = new()
        crash = [CrashAfter(stop)] if stop else []
        backup = BackupAndRestore(path, save_freq=1, delete_checkpoint=False)
        try:
            model.fit(data, epochs=2, batch_size=None, callbacks=[*callbacks, backup, *crash], verbose=0)
        except SimulatedCrash:
            return None
        return model

    expected = run(folder / "whole")
    assert expected.state.step == 6
    for stop in range(1, 6):
        run(folder / str(stop), stop)
        resumed = run(folder / str(stop))
        assert resumed.state.step == 6
        assert furthest(resumed.module.state_dict(), expected.module.state_dict()) == 0, stop
        if hasattr(expected, "ema"):
            states = [model.ema.average.module.state_dict() for model in (resumed, expected)]
            assert furthest(*states) == 0, stop


def with_noise():
    return Model(techniques.make_net(), device="cpu").compile("adam", "cross_entropy"), [
        techniques.GradientNoise(eta=1.0)
    ]


def with_teacher():
    ema = EMA(0.9)
    return techniques.MeanTeacher(techniques.make_net(), ema, device="cpu").compile("adam", "cross_entropy"), [ema]


def with_distillation():
    teacher = techniques.make_net()
    return techniques.Distillation(techniques.make_net(), teacher, device="cpu").compile("adam", "cross_entropy"), []


def with_contrast():
    return techniques.SimCLR(techniques.make_net(16), device="cpu").compile("adam"), []


PROGRAMS = (with_noise, with_teacher, with_distillation, with_contrast)


@pytest.mark.parametrize("make", PROGRAMS)
def test_a_technique_resumes_after_every_update(make, tmp_path):
    def new():
        model, callbacks = make()
        return model, DataLoader(TensorDataset(X, Y), 16, shuffle=True), callbacks

    check_resume(new, tmp_path)


# Several processes


def train_in_ranks():
    states = []
    for make in (with_noise, with_teacher, with_distillation):
        torch.manual_seed(2)
        model, callbacks = make()
        model.fit(X, Y, epochs=2, batch_size=8, callbacks=callbacks, verbose=0)
        states.append(model.module.state_dict())
    return states


def noise_in_one_process(size):
    net = techniques.make_net()
    net[3].p = 0.0
    model = Model(net, device="cpu").compile("sgd", "cross_entropy", lr=0.1)
    model.fit(X, Y, batch_size=size, shuffle=False, callbacks=[techniques.GradientNoise()], verbose=0)
    return model.module.state_dict()


@pytest.mark.distributed
def test_two_processes_train_techniques_alike():
    first, second = run_ranks(train_in_ranks)
    assert [furthest(*pair) for pair in zip(first, second, strict=True)] == [0, 0, 0]
    for weights in run_ranks(noise_in_one_process, 8):
        assert furthest(weights, noise_in_one_process(16)) < 1e-6


# Prediction


def test_test_time_augmentation_is_the_mean_of_probabilities():
    model = techniques.Shifted(techniques.make_net(), device="cpu").compile(None, "cross_entropy")
    net = model.module.eval()
    views = [net(X.roll(shift, dims=(-2, -1))).softmax(1) for shift in model.shifts]
    mean = torch.stack(views).mean(0).detach()
    assert torch.allclose(torch.from_numpy(model.predict_proba(X)), mean, atol=1e-6)
    assert torch.equal(torch.from_numpy(model.predict_classes(X)), mean.argmax(1))


def test_monte_carlo_dropout_draws_only_dropout():
    net = techniques.make_net()
    model = techniques.MonteCarlo(net, device="cpu").compile(None, "cross_entropy")
    torch.manual_seed(4)
    outputs = model.predict(X, batch_size=48, verbose=0)
    torch.manual_seed(4)
    net.eval()[3].train()
    draws = torch.stack([net(X).softmax(1) for _ in range(model.samples)])
    assert torch.allclose(torch.from_numpy(outputs["mean"]), draws.mean(0), atol=1e-6)
    assert torch.allclose(torch.from_numpy(outputs["deviation"]), draws.std(0), atol=1e-6)
