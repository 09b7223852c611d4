"""Article 001, part 8: an autoencoder takes the noise off digits.

    python examples/denoising.py [--quick] [--seed N] [--plot denoised.png]

It sees noisy digits and is told the clean ones. The noise is a layer at the front, which acts in training only, as dropout
does; so every epoch draws other noise, and the target is never touched. What was mended:

- the noise of the validation images was drawn anew in every epoch, so that epochs could not be compared: here it is drawn once,
  and validation is as plain as `(noisy, clean)`;
- only the noisy batch was moved to the device, not the clean one: fit moves both;
- the split has a seed, and the training images come in random order;
- the learning rate falls from 0.003 to zero along a cosine, in forty epochs: with 0.001 to the end of thirty the last ones still
  jump about.
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
options.add_argument("--seed", type=int, default=0, help="of the split, the weights, the order and the noise")
options.add_argument("--plot", metavar="FILE", help="write the figure: clean, noisy and denoised digits")
args = options.parse_args()
epochs, batch_size = (6, 64) if args.quick else (40, 256)


def mnist(train: bool, quick: int) -> Tensor:
    data = datasets.MNIST(os.environ.get("EASYTORCH_DATA", "data"), train=train, download=True)
    return data.data[: quick if args.quick else None, None] / 255  # [n, 1, 28, 28], from 0 to 1


def noisy(images: Tensor) -> Tensor:
    return (images + 0.3 * torch.randn_like(images)).clamp(0, 1)


class Noise(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return noisy(images) if self.training else images


torch.manual_seed(args.seed)
images, test = mnist(True, 6000), mnist(False, 1000)
train, validation = images[torch.randperm(len(images))].tensor_split([len(images) * 4 // 5])
noisy_validation, noisy_test = noisy(validation), noisy(test)

network = nn.Sequential(
    Noise(),
    nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(),
    nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
    nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
    nn.Flatten(), nn.Linear(288, 128), nn.ReLU(), nn.Linear(128, 4),  # all that is kept of a digit
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

    few = slice(10)
    rows = test[few], noisy_test[few], model.predict(noisy_test[few], verbose=0)
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.imshow(np.block([[np.asarray(image)[0] for image in row] for row in rows]), cmap="gray_r")
    axis.set(xticks=[], yticks=(14, 42, 70), yticklabels=("clean", "noisy", "denoised"))
    figure.savefig(args.plot, dpi=150)
