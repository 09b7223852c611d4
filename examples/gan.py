"""Conditional GAN for MNIST digits: two networks and two optimizers in one ``fit``.

    python examples/gan.py [--quick] [--seed N] [--plot gan.png]

``critic_step`` and ``generator_step`` each return the loss of their optimizer: ``fit`` makes one step of the critic and one
of the generator for each batch. Data, device, logs, and callbacks work as usual. The digit is an input of the generator; the
critic uses the one of its ten scores that belongs to the digit. The losses of a GAN do not measure image quality. So a
classifier reads a hundred generated images of each digit after every epoch. The result is the share that it recognizes as
the requested digit.
"""

import argparse
import os

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Subset
from torchvision import datasets, transforms

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a twentieth of the images, fewer updates")
options.add_argument("--seed", type=int, default=0, help="random seed")
options.add_argument("--plot", metavar="FILE", help="write a figure of the images from the same noise after each epoch")
args = options.parse_args()
torch.manual_seed(args.seed)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(64 + 10, 32 * 7 * 7), nn.Unflatten(1, (32, 7, 7)), nn.BatchNorm2d(32), nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1), nn.Sigmoid(),
        )  # fmt: skip
        self.critic = nn.Sequential(
            nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Dropout(0.3),
            nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Dropout(0.3),
            nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
        )  # fmt: skip

    def forward(self, noise: torch.Tensor, digit: torch.Tensor) -> torch.Tensor:
        return self.generator(torch.cat([noise, F.one_hot(digit, 10)], dim=1))


class GAN(easytorch.Model):
    def critic_step(self, batch):
        real, digit, _ = self.unpack(batch)
        fake = self.generate(digit).detach()
        return {"loss": F.softplus(-self.score(real, digit)).mean() + F.softplus(self.score(fake, digit)).mean()}

    def generator_step(self, batch):
        digit = self.unpack(batch).y
        return {"loss": F.softplus(-self.score(self.generate(digit), digit)).mean()}

    def generate(self, digit: torch.Tensor) -> torch.Tensor:
        return self((torch.randn(len(digit), 64, device=self.device), digit))

    def score(self, images: torch.Tensor, digit: torch.Tensor) -> torch.Tensor:
        return self.module.critic(images).gather(1, digit[:, None])


def evaluate_images(epoch, logs):
    images = gan.predict((noise, digits), batch_size=250, verbose=0)
    logs["read_as_asked"] = (classifier.predict_classes(images, verbose=0) == digits.numpy()).mean()
    rows.append(np.block([image.squeeze() for image in images[:20]]))


root, to_tensor = os.environ.get("EASYTORCH_DATA", "data"), transforms.ToTensor()
mnist = datasets.MNIST(root, train=True, download=True, transform=to_tensor)
train = easytorch.data.in_memory(Subset(mnist, range(3000)) if args.quick else mnist)
classifier = easytorch.Model(nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10)))
classifier.compile("adam", "cross_entropy").fit(train, epochs=3, batch_size=64, verbose=0)
noise, digits, rows = torch.randn(1000, 64), torch.arange(10).repeat(100), []
adam = ("adam", {"lr": 1e-3, "betas": (0.5, 0.999)})
gan = GAN(Pair()).compile({"critic": adam, "generator": adam})
gallery = easytorch.callbacks.LambdaCallback(on_epoch_end=evaluate_images)
gan.fit(train, 2 if args.quick else 8, steps_per_epoch=80 if args.quick else 300, batch_size=64, callbacks=[gallery])
print(f"Result: digits read as asked = {gan.history['read_as_asked'][-1]:.4f}")
print(f"Result: parameters = {sum(p.numel() for p in gan.module.parameters())}")
if args.plot:  # one row for each epoch
    from matplotlib.image import imsave

    imsave(args.plot, np.vstack(rows), cmap="gray_r")
