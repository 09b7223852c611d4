"""Public training programs, stopped after every update and resumed: the weights equal those of an undisturbed run.

No program has a line about checkpoints: ``fit(resume=folder)`` keeps all that they add to the model.
"""

from __future__ import annotations

import copy
import random
import signal
from collections import deque, namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from easytorch import Model
from easytorch.callbacks import Callback, LambdaCallback

EPOCHS, UPDATES = 2, 4
QUIET = {"on_interrupt": "return", "verbose": 0}
Transition = namedtuple("Transition", ("state", "action", "next_state", "reward"))


def interrupt(model, step):
    """Return a callback that presses Ctrl-C in update ``step``, counted from 1; None does not."""

    def press(batch, logs):
        if model.state.step + 1 == step:
            signal.raise_signal(signal.SIGINT)

    return LambdaCallback(on_train_batch_begin=press)


def seed():
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)


# DCGAN (pytorch/examples)


class DCGAN(Model):
    def __init__(self):
        generator = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh())
        super().__init__(generator, device="cpu")
        self.discriminator = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
        self.optimizer_d = torch.optim.Adam(self.discriminator.parameters(), lr=0.01, betas=(0.5, 0.999))

    def update(self, window):
        (real,) = window
        noise, ones, zeros = torch.randn(len(real), 4), torch.ones(len(real), 1), torch.zeros(len(real), 1)
        fake = self(noise)
        loss_d = F.binary_cross_entropy_with_logits(self.discriminator(real), ones)
        loss_d = loss_d + F.binary_cross_entropy_with_logits(self.discriminator(fake.detach()), zeros)
        self.optimizer_d.zero_grad()
        loss_d.backward()
        self.optimizer_d.step()
        loss_g = F.binary_cross_entropy_with_logits(self.discriminator(fake), ones)
        self.optimizer.zero_grad()
        loss_g.backward()
        self.optimizer.step()
        self.metrics.record({"loss": loss_g, "critic": loss_d}, len(real))


def dcgan(folder, stop):
    model = DCGAN().compile(lambda parameters: torch.optim.Adam(parameters, 0.01, (0.5, 0.999)))
    model.fit(data(8), batch_size=8, epochs=EPOCHS, callbacks=[interrupt(model, stop)], resume=folder, **QUIET)
    return [model.module, model.discriminator]


# CycleGAN (junyanz/pytorch-CycleGAN-and-pix2pix)


class ImagePool:
    """Returns images of earlier updates with a probability of one half."""

    def __init__(self, size):
        self.size, self.count, self.images = size, 0, []

    def query(self, images):
        result = []
        for image in images.detach():
            if self.count < self.size:
                self.count += 1
                self.images.append(image)
                result.append(image)
            elif random.random() > 0.5:
                i = random.randint(0, self.size - 1)
                result.append(self.images[i].clone())
                self.images[i] = image
            else:
                result.append(image)
        return torch.stack(result)


class CycleGAN(Model):
    def __init__(self):
        super().__init__(nn.ModuleDict({"a_to_b": nn.Linear(8, 8), "b_to_a": nn.Linear(8, 8)}), device="cpu")
        self.critics = {"a": nn.Linear(8, 1), "b": nn.Linear(8, 1)}
        self.optimizers = [torch.optim.Adam(critic.parameters(), 0.02) for critic in self.critics.values()]
        self.schedulers = [lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)) for o in self.optimizers]
        self.pools = {"a": ImagePool(10), "b": ImagePool(10)}

    def update(self, window):
        (batch,) = window
        a, b = batch[:, :8], batch[:, 8:]
        fake_b, fake_a = self.module["a_to_b"](a), self.module["b_to_a"](b)
        cycle = F.l1_loss(self.module["b_to_a"](fake_b), a) + F.l1_loss(self.module["a_to_b"](fake_a), b)
        adversarial = sum((self.critics[k](v) - 1).square().mean() for k, v in (("a", fake_a), ("b", fake_b)))
        self.optimizer.zero_grad()
        (adversarial + 10 * cycle).backward()
        self.optimizer.step()
        for optimizer, (kind, real, fake) in zip(self.optimizers, (("a", a, fake_a), ("b", b, fake_b)), strict=True):
            old = self.pools[kind].query(fake)
            loss = (self.critics[kind](real) - 1).square().mean() + self.critics[kind](old).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.metrics.record({"loss": adversarial + 10 * cycle}, len(batch))


class StepSchedulers(Callback):
    def on_epoch_end(self, epoch, logs=None):
        for scheduler in self.model.schedulers:
            scheduler.step()


def cyclegan(folder, stop):
    model = CycleGAN()
    model.compile("adam", lr=0.02, scheduler=lambda optimizer: lr_scheduler.StepLR(optimizer, 1))
    callbacks = [StepSchedulers(), interrupt(model, stop)]
    model.fit(data(16), batch_size=8, epochs=EPOCHS, callbacks=callbacks, resume=folder, **QUIET)
    return [model.module, *model.critics.values()]


# DQN (PyTorch tutorial), with a custom environment


class Walk:
    """A walk on a line: action 1 goes up, action 0 down, with wind; it ends at a distance of 3."""

    def __init__(self):
        self.wind = np.random.default_rng(5)
        self.reset()

    def reset(self):
        self.position, self.time = 0.0, 0
        return self.observe()

    def observe(self):
        return torch.tensor([[self.position, float(self.time)]])

    def step(self, action):
        self.position += (1.0 if action else -1.0) + 0.5 * float(self.wind.normal())
        self.time += 1
        return self.observe(), 1.0 - abs(self.position), abs(self.position) > 3


class ReplayMemory:
    def __init__(self, capacity):
        self.memory = deque(maxlen=capacity)

    def push(self, *values):
        self.memory.append(Transition(*values))

    def sample(self, size):
        return random.sample(self.memory, size)

    def __len__(self):
        return len(self.memory)


class DQN(Model):
    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)), device="cpu")
        self.target = copy.deepcopy(self.module)
        self.memory, self.walk, self.acts = ReplayMemory(40), Walk(), 0
        self.observation = self.walk.reset()

    def select_action(self):
        self.acts += 1
        if random.random() < 0.9 * 0.9**self.acts:
            return torch.tensor([[random.randrange(2)]])
        with torch.no_grad():
            return self.module(self.observation).max(1).indices.view(1, 1)

    def update(self, window):
        for _ in range(6):
            action = self.select_action()
            observation, reward, is_over = self.walk.step(action.item())
            self.memory.push(self.observation, action, None if is_over else observation, torch.tensor([reward]))
            self.observation = self.walk.reset() if is_over else observation
        batch = Transition(*zip(*self.memory.sample(6), strict=True))
        value = self.module(torch.cat(batch.state)).gather(1, torch.cat(batch.action))
        following = torch.zeros(6)
        is_alive = torch.tensor([state is not None for state in batch.next_state])
        with torch.no_grad():
            states = [state for state in batch.next_state if state is not None]
            if states:
                following[is_alive] = self.target(torch.cat(states)).max(1).values
        loss = F.smooth_l1_loss(value, (torch.cat(batch.reward) + 0.99 * following).unsqueeze(1))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        for old, new in zip(self.target.parameters(), self.module.parameters(), strict=True):
            old.data.lerp_(new.data, 0.1)
        self.metrics.record({"loss": loss}, 1)


def dqn(folder, stop):
    model = DQN().compile("adamw", lr=0.01)
    steps = torch.zeros(UPDATES, 1)
    model.fit(steps, batch_size=1, epochs=EPOCHS, callbacks=[interrupt(model, stop)], resume=folder, **QUIET)
    return [model.module, model.target]


# Mean teacher (CuriousAI/mean-teacher)


class MeanTeacher(Model):
    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3)), device="cpu")
        self.teacher = copy.deepcopy(self.module).requires_grad_(False)

    def train_step(self, batch):
        x, y, _ = self.unpack(batch)
        output = self(x + 0.1 * torch.randn_like(x))
        soft = self.teacher(x + 0.1 * torch.randn_like(x)).softmax(1)
        ramp = min(1.0, self.state.step / 6)
        return {"loss": self.loss(output, y) + ramp * F.mse_loss(output.softmax(1), soft)}

    def update(self, window):
        super().update(window)
        for old, new in zip(self.teacher.parameters(), self.module.parameters(), strict=True):
            old.lerp_(new.detach(), 0.1)


def mean_teacher(folder, stop):
    model = MeanTeacher().compile("sgd", nn.CrossEntropyLoss(ignore_index=-1), lr=0.1)
    x, y = data(8), torch.arange(8 * UPDATES) % 4 - 1  # a quarter of the labels is missing
    model.fit(x, y, batch_size=8, epochs=EPOCHS, callbacks=[interrupt(model, stop)], resume=folder, **QUIET)
    return [model.module, model.teacher]


# SAM (davda54/sam)


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization around another optimizer, whose state its state dict leaves out."""

    def __init__(self, parameters, base, rho=0.05, **options):
        super().__init__(parameters, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def parameters(self):
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def first_step(self):
        norm = torch.stack([p.grad.norm() for p in self.parameters()]).norm()
        for p in self.parameters():
            self.state[p]["old"] = p.data.clone()
            p.add_(p.grad * (self.param_groups[0]["rho"] / (norm + 1e-12)))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p in self.parameters():
            p.data = self.state[p]["old"]
        self.base_optimizer.step()
        self.zero_grad()

    def step(self, closure=None):
        raise RuntimeError("SAM needs first_step and second_step")

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.base_optimizer.param_groups = self.param_groups


class SharpnessAware(Model):
    def update(self, window):
        (batch,) = window
        x, y, _ = self.unpack(batch)
        loss = self.loss(self(x), y)
        loss.backward()
        self.optimizer.first_step()
        self.loss(self(x), y).backward()
        self.optimizer.second_step()
        self.metrics.record({"loss": loss}, len(x))


def sam(folder, stop):
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = SAM(net.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    model = SharpnessAware(net, device="cpu").compile(optimizer, "cross_entropy")
    x, y = data(8), torch.arange(8 * UPDATES) % 3
    callbacks = [interrupt(model, stop), LambdaCallback(on_epoch_end=lambda epoch, logs: halve(model.optimizer))]
    model.fit(x, y, batch_size=8, epochs=EPOCHS, callbacks=callbacks, resume=folder, **QUIET)
    return [model.module]


def halve(optimizer):
    for group in optimizer.param_groups:
        group["lr"] /= 2


# Word language model (pytorch/examples)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.lstm, self.output = nn.Embedding(11, 8), nn.LSTM(8, 8), nn.Linear(8, 11)

    def forward(self, tokens, hidden):
        output, hidden = self.lstm(self.embedding(tokens), hidden)
        return self.output(output), hidden


class LanguageModel(Model):
    hidden = None

    def train_step(self, batch):
        tokens, targets, _ = self.unpack(batch)
        if self.hidden is None:
            self.hidden = (torch.zeros(1, 3, 8), torch.zeros(1, 3, 8))
        output, hidden = self((tokens, tuple(h.detach() for h in self.hidden)))
        self.hidden = hidden
        return {"loss": self.loss(output.flatten(0, 1), targets.flatten())}


def word_language_model(folder, stop):
    text = torch.randint(11, (5 * UPDATES + 1, 3))
    batches = [(text[i : i + 5], text[i + 1 : i + 6]) for i in range(0, 5 * UPDATES, 5)]
    model = LanguageModel(Recurrent(), device="cpu").compile("sgd", "cross_entropy", lr=2.0, clip_grad_norm=0.25)
    model.fit(batches, epochs=EPOCHS, callbacks=[interrupt(model, stop)], resume=folder, **QUIET)
    return [model.module]


def data(features):
    return torch.randn(8 * UPDATES, features, generator=torch.Generator().manual_seed(2))


PROGRAMS = [dqn, dcgan, cyclegan, mean_teacher, sam, word_language_model]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_public_program_resumes_exactly_after_any_update(program, tmp_path):
    seed()
    expected = program(tmp_path / "undisturbed", None)
    for step in range(1, EPOCHS * UPDATES + 1):
        folder = tmp_path / str(step)
        seed()
        program(folder, step)
        seed()
        for module, reference in zip(program(folder, None), expected, strict=True):
            for name, value in reference.state_dict().items():
                assert torch.equal(module.state_dict()[name], value), (step, name)
