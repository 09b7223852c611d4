"""Healthy programs, after those in ``examples/``, with data that needs no download."""

from __future__ import annotations

import functools
from pydoc_data.topics import topics

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import easytorch


@functools.cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return images ``[1797, 1, 8, 8]`` of 0 to 1 in random order, and labels."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)[order], torch.tensor(labels)[order]


@functools.cache
def large_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return images ``[600, 1, 28, 28]`` of 0 to 1, and labels."""
    images, labels = digits()
    return F.interpolate(images[:600], (28, 28)), labels[:600]


@functools.cache
def tumors() -> tuple[np.ndarray, np.ndarray]:
    """Return a table ``[569, 30]`` that is not scaled, and labels of two classes."""
    return load_breast_cancer(return_X_y=True)


def scaled(table):
    return (table - table.mean(0)) / table.std(0)


def mlp(inputs=64, outputs=10, width=32):
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))


def quickstart():
    net = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Dropout(0.3), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    x, y = digits()
    model = easytorch.Model(net).compile("adam", "cross_entropy", metrics=["accuracy"], lr=0.002)
    return model, (x.flatten(1).numpy(), y.numpy()), {"validation_split": 0.1}


def largest_number():
    x = torch.randn(2000, 10)
    net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 10))
    return easytorch.Model(net).compile("adam", "cross_entropy"), (x, x.abs().argmax(1)), {}


class IntroNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.conv2(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.conv2(F.relu(self.conv2(x))))
        return self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1).flatten(1))))


def intro_cnn():
    loader = DataLoader(TensorDataset(*large_digits()), batch_size=32, shuffle=True)
    return easytorch.Model(IntroNetwork()).compile("adam", "cross_entropy"), (loader,), {}


def fashion_cnn():
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False), nn.ReLU(), nn.Conv2d(16, 32, 3, bias=False), nn.ReLU(),
        nn.Conv2d(32, 64, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 32, 1, bias=False), nn.ReLU(),
        nn.Conv2d(32, 32, 3, bias=False), nn.ReLU(), nn.Conv2d(32, 32, 3, bias=False), nn.ReLU(),
        nn.Conv2d(32, 10, 1, bias=False), nn.ReLU(), nn.Conv2d(10, 10, 7, bias=False), nn.Flatten(),
    )  # fmt: skip
    for weights in net.parameters():
        nn.init.kaiming_normal_(weights)
    x, y = large_digits()
    train, val = random_split(TensorDataset(2 * x - 1, y), [500, 100])
    sgd = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    model = easytorch.Model(net).compile(sgd, "cross_entropy", metrics=["accuracy"])
    return model, (DataLoader(train, 64, shuffle=True),), {"validation_data": DataLoader(val, 100)}


def slow_sgd():
    model = easytorch.Model(mlp()).compile("sgd", "cross_entropy", lr=0.003)
    return model, (TensorDataset(*digits()),), {"batch_size": 64}


def coder(*first):
    return nn.Sequential(
        *first, nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(288, 128), nn.ReLU(),
        nn.Linear(128, 4), nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 288), nn.ReLU(), nn.Unflatten(1, (32, 3, 3)),
        nn.ConvTranspose2d(32, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 1, 3, stride=2, padding=1, output_padding=1), nn.Sigmoid(),
    )  # fmt: skip


def autoencoder():
    x, _ = large_digits()
    model = easytorch.Model(coder()).compile("adam", "mse", weight_decay=1e-5)
    return model, (x[:500], x[:500]), {"batch_size": 64, "validation_data": (x[500:], x[500:])}


class Noise(nn.Module):
    def forward(self, x):
        return (x + 0.3 * torch.randn_like(x)).clamp(0, 1) if self.training else x


def denoising():
    x, _ = large_digits()
    model = easytorch.Model(coder(Noise())).compile("adam", "mse", lr=0.003, scheduler="cosine")
    return model, (x[:500], x[:500]), {"batch_size": 64, "validation_data": (Noise()(x[500:]), x[500:])}


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(64, 8), nn.Sequential(mlp(4, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8)))

    def forward(self, x):
        mean, log_sigma = self.encoder(x).chunk(2, dim=1)
        return self.decoder(mean + log_sigma.exp() * torch.randn_like(mean)), mean, log_sigma


class Variational(easytorch.Model):
    def train_step(self, batch):
        x = self.unpack(batch).x
        output, mean, log_sigma = self(x)
        error = (output - x).square().sum((1, 2, 3)).mean()
        kl = (0.5 * (log_sigma.exp().square() + mean.square() - 1) - log_sigma).sum(1).mean()
        return {"loss": error + kl, "error": error, "kl": kl}


def vae():
    model = Variational(VAE()).compile("adam", lr=0.002, scheduler="cosine")
    return model, (TensorDataset(*digits()),), {"batch_size": 64}


class TumorNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.error = nn.Linear(10, 32), nn.Linear(10, 32)
        self.body = nn.Sequential(nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 32), nn.ReLU())
        self.malignant, self.worst = nn.Linear(32, 1), nn.Linear(32, 10)

    def forward(self, mean, error):
        features = self.body(torch.cat([self.mean(mean), self.error(error)], dim=1))
        return {"malignant": self.malignant(features), "worst": self.worst(features)}


def multi_input():
    table, labels = tumors()
    table, malignant = scaled(table), (labels == 0).astype(np.float32)[:, None]

    def select(rows):
        x = {"mean": table[rows, :10], "error": table[rows, 10:20]}
        return x, {"malignant": malignant[rows], "worst": table[rows, 20:]}

    losses = {"malignant": "bce_with_logits", "worst": "mse"}
    model = easytorch.Model(TumorNetwork())
    model.compile("adam", losses, loss_weights={"malignant": 1.0, "worst": 0.5}, lr=0.003)
    return model, select(slice(450)), {"validation_data": select(slice(450, None))}


class Writer(nn.Module):
    def __init__(self, letters, width=64):
        super().__init__()
        self.embedding, self.position = nn.Embedding(letters, width), nn.Embedding(64, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, letters)

    def forward(self, codes):
        future = torch.ones(codes.shape[1], codes.shape[1], dtype=torch.bool).triu(1)
        x = self.embedding(codes) + self.position(torch.arange(codes.shape[1]))
        return self.head(self.layers(x, mask=future, is_causal=True)).transpose(1, 2)


def transformer_text():
    text = "\n".join(topics[name] for name in sorted(topics))[:40_000]
    letters = {letter: i for i, letter in enumerate(sorted(set(text)))}
    rows = torch.tensor([letters[letter] for letter in text]).unfold(0, 65, 64)
    model = easytorch.Model(Writer(len(letters)))
    model.compile("adamw", "cross_entropy", lr=4e-3, scheduler="warmup_cosine", clip_grad_norm=1.0)
    x, y = rows[:, :-1], rows[:, 1:]
    return model, (x[:500], y[:500]), {"batch_size": 16, "validation_data": (x[500:], y[500:])}


class Reader(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.embedding, self.position = nn.Embedding(64, width), nn.Parameter(0.02 * torch.randn(20, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, input_ids, labels=None):
        logits = self.head(self.layers(self.embedding(input_ids) + self.position).mean(1))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def module_loss():
    x, y = digits()
    words = x.flatten(1).argsort(1)[:, -20:].sort(1).values
    return easytorch.Model(Reader()).compile("adam"), ({"input_ids": words, "labels": y},), {}


class Transfer(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten())
        self.head = mlp(576, 10, 64)

    def forward(self, x):
        return self.head(self.backbone(x))


def transfer_learning():
    net = Transfer()
    net.backbone.requires_grad_(False).eval()
    x, y = digits()
    rows = (y >= 5).nonzero().flatten()[:100]
    return easytorch.Model(net).compile("adam", "cross_entropy"), (TensorDataset(x[rows], y[rows]),), {}


class L1(easytorch.Model):
    def train_step(self, batch):
        outputs = super().train_step(batch)
        penalty = 5e-5 * sum(p.abs().sum() for p in self.module.parameters())
        return {"loss": outputs["loss"] + penalty, "penalty": penalty}


def regularization():
    net = nn.Sequential(nn.Conv2d(1, 10, 3, bias=False), nn.ReLU(), nn.Dropout(0.25), nn.Flatten(), nn.Linear(360, 10))
    nn.init.kaiming_normal_(net[0].weight)
    sgd = functools.partial(torch.optim.SGD, lr=0.03, momentum=0.9)
    x, y = digits()
    return L1(net).compile(sgd, "cross_entropy"), ((x - 0.3) / 0.37, y), {"batch_size": 128}


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 64), nn.Sigmoid()
        )
        self.critic = nn.Sequential(nn.Linear(64, 32), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(32, 1))

    def forward(self, noise):
        return self.generator(noise)


class GAN(easytorch.Model):
    def critic_step(self, batch):
        real = self.unpack(batch).x.flatten(1)
        fake = self(torch.randn(len(real), 16)).detach()
        return {"loss": F.softplus(-self.module.critic(real)).mean() + F.softplus(self.module.critic(fake)).mean()}

    def generator_step(self, batch):
        fake = self(torch.randn(len(self.unpack(batch).x), 16))
        return {"loss": F.softplus(-self.module.critic(fake)).mean()}


def gan():
    model = GAN(Pair()).compile({"critic": "adam", "generator": "adam"}, lr=2e-4)
    return model, (TensorDataset(*digits()),), {"batch_size": 64}


def regression():
    x, y = load_diabetes(return_X_y=True)
    y = scaled(y).astype(np.float32)
    return easytorch.Model(mlp(10, 1)).compile("adam", "mse"), (x, y), {"validation_split": 0.2}


class Reading(nn.Module):
    def __init__(self, batch_first=True):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 32, batch_first=batch_first), nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def lstm():
    x, y = digits()
    return easytorch.Model(Reading()).compile("adam", "cross_entropy", lr=0.003), (x[:, 0], y), {}


def wide_table():
    table, labels = tumors()
    x = scaled(table).astype(np.float32)
    net = nn.Sequential(nn.Linear(30, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 1))
    return easytorch.Model(net).compile("adamw", "bce_with_logits"), (x, labels.astype(np.float32)), {}


PROGRAMS = [
    quickstart, largest_number, intro_cnn, fashion_cnn, slow_sgd, autoencoder, denoising, vae, multi_input, transformer_text,
    module_loss, transfer_learning, regularization, gan, regression, lstm, wide_table,
]  # fmt: skip


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(64, 64), nn.Linear(64, 64), nn.BatchNorm1d(64)
        self.head = nn.Linear(64, 10)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x):
        x = x.flatten(1)
        return self.head((x + self.norm(self.second(self.first(x).relu()))).relu())


def zeros_in_a_residual_branch():
    return easytorch.Model(Residual()).compile("adam", "cross_entropy"), digits(), {}


class LowRank(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = mlp().requires_grad_(False)
        self.first, self.second = nn.Linear(64, 4, bias=False), nn.Linear(4, 10, bias=False)
        nn.init.zeros_(self.second.weight)

    def forward(self, x):
        return self.base(x) + self.second(self.first(x.flatten(1)))


def low_rank():
    return easytorch.Model(LowRank()).compile("adam", "cross_entropy"), digits(), {}


def last_layer_of_zeros():
    net = mlp()
    nn.init.zeros_(net[3].weight)
    nn.init.zeros_(net[3].bias)
    return easytorch.Model(net).compile("adam", "cross_entropy"), digits(), {}


class WassersteinGAN(GAN):
    def critic_step(self, batch):
        real = self.unpack(batch).x.flatten(1)
        fake = self(torch.randn(len(real), 16)).detach()
        return {"loss": self.module.critic(fake).mean() - self.module.critic(real).mean()}


def generator_in_every_fifth_window():
    model = WassersteinGAN(Pair())
    model.compile({"critic": "adam", "generator": "adam"}, lr=2e-4, update_every={"generator": 5})
    return model, (TensorDataset(*digits()),), {"batch_size": 64}


def images_scaled_by_the_module():
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    x, y = digits()
    return easytorch.Model(net).compile("adam", "cross_entropy"), (x * 255, y), {}


def activations_in_place():
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(64, 64),
        nn.Hardswish(inplace=True), nn.Linear(64, 10),
    )  # fmt: skip
    return easytorch.Model(net).compile("adam", "cross_entropy"), digits(), {}


def lbfgs():
    table, labels = tumors()
    model = easytorch.Model(nn.Linear(30, 2)).compile("lbfgs", "cross_entropy")
    return model, (scaled(table).astype(np.float32), labels), {"batch_size": 569}


PROGRAMS += [
    zeros_in_a_residual_branch, low_rank, last_layer_of_zeros, generator_in_every_fifth_window, images_scaled_by_the_module,
    activations_in_place, lbfgs,
]  # fmt: skip
