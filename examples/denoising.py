"""Denoising autoencoder for MNIST digits (after E. Anello).

    python examples/denoising.py [--quick] [--seed N] [--plot denoised.png]

The input is a noisy digit, the target is the clean digit. A layer at the front adds the noise in training mode only, as
dropout does, so every epoch has new noise. Fixes to the article: the noise of the validation images is drawn once, so
epochs can be compared. ``fit`` moves inputs and targets to the device. The split has a seed, and training images are
shuffled. The learning rate falls from 0.003 to zero along a cosine in forty epochs, because a constant 0.001 is
unstable at the end.
"""

import argparse
import os

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import datasets

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a tenth of the data, six epochs of smaller batches")
options.add_argument(
    "--seed", type=int, default=0, help="random seed of the split, the weights, the order, and the noise"
)
options.add_argument("--plot", metavar="FILE", help="write a figure of clean, noisy, and denoised digits")
args = options.parse_args()
epochs, batch_size = (6, 64) if args.quick else (40, 256)


def mnist(train: bool, quick_size: int) -> Tensor:
    data = datasets.MNIST(os.environ.get("EASYTORCH_DATA", "data"), train=train, download=True)
    return data.data[: quick_size if args.quick else None, None] / 255  # [n, 1, 28, 28], from 0 to 1


def add_noise(images: Tensor) -> Tensor:
    return (images + 0.3 * torch.randn_like(images)).clamp(0, 1)


class Noise(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return add_noise(images) if self.training else images


torch.manual_seed(args.seed)
images, test = mnist(True, 6000), mnist(False, 1000)
train, validation = images[torch.randperm(len(images))].tensor_split([len(images) * 4 // 5])
noisy_validation, noisy_test = add_noise(validation), add_noise(test)

network = nn.Sequential(
    Noise(),
    nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(),
    nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
    nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
    nn.Flatten(), nn.Linear(288, 128), nn.ReLU(), nn.Linear(128, 4),  # the code of a digit
    nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 288), nn.ReLU(), nn.Unflatten(1, (32, 3, 3)),
    nn.ConvTranspose2d(32, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
    nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1), nn.BatchNorm2d(8), nn.ReLU(),
    nn.ConvTranspose2d(8, 1, 3, stride=2, padding=1, output_padding=1), nn.Sigmoid(),
)  # fmt: skip
model = easytorch.Model(network).compile("adam", "mse", lr=0.003, scheduler="cosine")
model.fit(train, train, epochs=epochs, batch_size=batch_size, validation_data=(noisy_validation, validation))

error = model.evaluate(noisy_test, test, batch_size=256).loss
noise = nn.functional.mse_loss(noisy_test, test)
print(f"The mean squared error of the noise was {noise:.4f}")
print(f"Result: test mse = {error:.5f}")

if args.plot:
    from matplotlib.figure import Figure

    rows = test[:10], noisy_test[:10], model.predict(noisy_test[:10], verbose=0)
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.imshow(np.block([[np.asarray(image)[0] for image in row] for row in rows]), cmap="gray_r")
    axis.set(xticks=[], yticks=(14, 42, 70), yticklabels=("clean", "noisy", "denoised"))
    figure.savefig(args.plot, dpi=150)
