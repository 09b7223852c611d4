"""Small GANs for the tests of several optimizers, and the same programs in plain torch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from tests.loops import blobs

LATENT = 3


class Pair(nn.Module):
    """A generator and a critic of vectors with 8 numbers, with dropout and batch normalization."""

    def __init__(self, seed: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.generator = nn.Sequential(nn.Linear(LATENT, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
        self.critic = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(16, 1))

    def forward(self, z):
        return self.generator(z)


def critic_loss(pair, x, fakes):
    return functional.softplus(-pair.critic(x)).mean() + functional.softplus(pair.critic(fakes.detach())).mean()


def generator_loss(pair, fakes):
    return functional.softplus(-pair.critic(fakes)).mean()


def penalty(pair, x, fakes, share=None):
    """Return the gradient penalty of WGAN-GP, which needs a double backward pass."""
    mixed = torch.lerp(x, fakes.detach(), torch.rand(len(x), 1) if share is None else share).requires_grad_()
    (gradient,) = torch.autograd.grad(pair.critic(mixed).sum(), mixed, create_graph=True)
    return (gradient.norm(dim=1) - 1).square().mean()


class StepGAN(Model):
    """One step for each optimizer."""

    def critic_step(self, batch):
        x = self.unpack(batch).x
        return {"loss": critic_loss(self.module, x, self(torch.randn(len(x), LATENT)))}

    def generator_step(self, batch):
        x = self.unpack(batch).x
        fakes = self(torch.randn(len(x), LATENT))
        return {"loss": generator_loss(self.module, fakes), "size": fakes.detach().abs().mean()}


class PenaltyGAN(StepGAN):
    """WGAN-GP."""

    def critic_step(self, batch):
        x = self.unpack(batch).x
        fakes, critic = self(torch.randn(len(x), LATENT)), self.module.critic
        loss = critic(fakes.detach()).mean() - critic(x).mean()
        return {"loss": loss + 10 * penalty(self.module, x, fakes)}

    def generator_step(self, batch):
        fakes = self(torch.randn(len(self.unpack(batch).x), LATENT))
        return {"loss": -self.module.critic(fakes).mean()}

    def test_step(self, batch):
        return {"distance": self.module.critic(self.unpack(batch).x).mean()}


class LossGAN(Model):
    """One forward pass and a loss for each optimizer."""

    def train_step(self, batch):
        x = self.unpack(batch).x
        fakes = self(torch.randn(len(x), LATENT))
        return {"generator_loss": generator_loss(self.module, fakes), "critic_loss": critic_loss(self.module, x, fakes)}


def loader(count=48, size=8, shuffle=False):
    return DataLoader(TensorDataset(blobs(count)[0]), size, shuffle=shuffle)


OPTIMIZERS = {"critic": ("adam", {"lr": 2e-3, "fused": False}), "generator": ("sgd", {"lr": 0.05, "momentum": 0.5})}


def plain_optimizers(pair):
    return (
        torch.optim.Adam(pair.critic.parameters(), lr=2e-3),
        torch.optim.SGD(pair.generator.parameters(), lr=0.05, momentum=0.5),
    )
