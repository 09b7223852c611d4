"""Wasserstein GAN with gradient penalty on a ring of eight Gaussians: five steps of the critic for one of the generator.

    python examples/wgan_gp.py [--quick] [--seed N] [--plot ring.png]

The penalty of ``critic_step`` needs a second derivative: ``torch.autograd.grad`` with ``create_graph=True`` (Gulrajani et al.,
2017). ``update_every={"generator": 5}`` lets the generator step in every fifth update only. The samples of a bad GAN gather at
a few of the eight Gaussians, or between them. So the results are the share of samples within three standard deviations of a
Gaussian, and the share of the least frequent of the eight, which is 1/8 for perfect samples.
"""

import argparse
import math

import torch
from torch import nn

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a quarter of the updates")
options.add_argument("--seed", type=int, default=0, help="random seed")
options.add_argument("--plot", metavar="FILE", help="write a figure of samples and data")
args = options.parse_args()
torch.manual_seed(args.seed)

LATENT, SPREAD = 8, 0.1
angles = torch.arange(8) * math.pi / 4
centers = torch.stack([angles.cos(), angles.sin()], dim=1) * 2
points = centers.repeat(1000, 1) + SPREAD * torch.randn(8000, 2)


def make_network(inputs: int, outputs: int) -> nn.Sequential:
    hidden = [nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    return nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), *hidden, nn.Linear(128, outputs))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = make_network(LATENT, 2), make_network(2, 1)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.generator(noise)


class WassersteinGAN(easytorch.Model):
    def critic_step(self, batch):
        real, critic = self.unpack(batch).x, self.module.critic
        fake = self.generate(len(real)).detach()
        mixed = torch.lerp(real, fake, torch.rand(len(real), 1, device=self.device)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
        distance, penalty = critic(real).mean() - critic(fake).mean(), (slope.norm(dim=1) - 1).square().mean()
        return {"loss": penalty - distance, "distance": distance.detach()}

    def generator_step(self, batch):
        return {"loss": -self.module.critic(self.generate(self.batch_size(batch))).mean()}

    def generate(self, count: int) -> torch.Tensor:
        return self(torch.randn(count, LATENT, device=self.device))


def measure(samples: torch.Tensor) -> tuple[float, float]:
    distances, nearest = torch.cdist(samples, centers).min(dim=1)
    is_close = distances < 3 * SPREAD
    counts = torch.bincount(nearest[is_close], minlength=8)
    return is_close.float().mean().item(), counts.min().item() / len(samples)


adam = ("adam", {"lr": 1e-3, "betas": (0.5, 0.9)})
model = WassersteinGAN(Pair()).compile(
    {"critic": adam, "generator": adam}, update_every={"generator": 5}, scheduler="cosine"
)
model.fit(points, epochs=30 if args.quick else 120, batch_size=128, verbose=2)
samples = torch.from_numpy(model.predict(torch.randn(4000, LATENT), verbose=0))
close, rarest = measure(samples)
print(f"Result: samples close to a Gaussian = {close:.4f}")
print(f"Result: share of the rarest Gaussian = {rarest:.4f}")
print(f"Result: parameters = {sum(p.numel() for p in model.module.parameters())}")
if args.plot:
    import matplotlib.pyplot as plt

    plt.scatter(*points[:2000].T, s=2, label="data")
    plt.scatter(*samples[:2000].T, s=2, label="samples")
    plt.legend()
    plt.savefig(args.plot)
