"""Variational autoencoder that generates MNIST digits from four numbers (after E. Anello).

    python examples/vae.py [--quick] [--seed N] [--plot vae.png]

The loss is the squared error of the pixels plus the KL divergence from the standard normal distribution. Fixes to the
article: the divergence includes the factor 1/2 of sigma^2 + mu^2, which turns the article's loss of 32.40 into 31.01.
Images are decoded from the mean. The article passes two latent values to a decoder that expects four; here the other
two are 0. The split has a seed, images are shuffled, and the learning rate follows a cosine without weight decay.
"""

import argparse
import os

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset
from torchvision import datasets, transforms

import easytorch
from easytorch.callbacks import LambdaCallback

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a tenth of the data, eight epochs of smaller batches")
options.add_argument("--seed", type=int, default=0, help="random seed")
options.add_argument("--plot", metavar="FILE", help="write a figure of generated digits and the latent space")
args = options.parse_args()
epochs, batch_size = (8, 64) if args.quick else (50, 256)

root, to_tensor = os.environ.get("EASYTORCH_DATA", "data"), transforms.ToTensor()
train, test = (datasets.MNIST(root, train=is_train, download=True, transform=to_tensor) for is_train in (True, False))
if args.quick:
    train, test = Subset(train, range(6000)), Subset(test, range(1000))
test = easytorch.data.in_memory(test)
train, validation = easytorch.data.split(easytorch.data.in_memory(train), fraction=0.2, seed=args.seed)


class VAE(nn.Module):
    def __init__(self, latent: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(288, 128), nn.ReLU(), nn.Linear(128, 2 * latent),  # mean and log of sigma
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(latent, 128), nn.ReLU(), nn.Linear(128, 288), nn.ReLU(), nn.Unflatten(1, (32, 3, 3)),
            nn.ConvTranspose2d(32, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.ConvTranspose2d(8, 1, 3, stride=2, padding=1, output_padding=1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean, log_sigma = self.encoder(x).chunk(2, dim=1)
        return self.decoder(mean + log_sigma.exp() * torch.randn_like(mean)), mean, log_sigma


class Variational(easytorch.Model):
    def train_step(self, batch):
        x = self.unpack(batch).x  # without labels
        output, mean, log_sigma = self(x)
        error = (output - x).square().sum((1, 2, 3)).mean()
        kl = (0.5 * (log_sigma.exp().square() + mean.square() - 1) - log_sigma).sum(1).mean()
        return {"loss": error + kl, "error": error, "kl": kl}

    def predict_step(self, batch):
        mean, _ = self.module.encoder(self.unpack(batch).x).chunk(2, dim=1)
        return self.module.decoder(mean), mean


torch.manual_seed(args.seed)
# Five test images and their reconstructions after every epoch
snapshots = [torch.stack([test[i][0] for i in range(5)]).numpy()]
recorder = LambdaCallback(on_epoch_end=lambda epoch, logs: snapshots.append(model.predict_on_batch(snapshots[0])[0]))

model = Variational(VAE()).compile("adam", scheduler="cosine")
history = model.fit(train, epochs=epochs, batch_size=batch_size, validation_data=validation, callbacks=[recorder])
print(f"Result: validation loss = {history['val_loss'][-1]:.3f}")
print(f"Result: test loss = {model.evaluate(test, batch_size=256).loss:.3f}")

if args.plot:
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    grid = torch.cartesian_prod(*2 * [torch.linspace(-2, 2, 10)], *2 * [torch.zeros(1)])
    drawings = easytorch.Model(model.module.decoder).predict(grid, verbose=0).reshape(10, 10, 1, 28, 28)
    codes, labels = model.predict(test, verbose=0)[1], easytorch.data.targets_of(test)
    latent = {"Latents 0 and 1": codes[:, :2], "t-SNE": TSNE(random_state=args.seed).fit_transform(codes)}
    pictures = {"By epoch": snapshots[:3] + snapshots[10::10], "Generated": drawings}
    figure = Figure(figsize=(15, 4), layout="constrained")
    axes = figure.subplots(1, 4)
    for axis, (title, rows) in zip(axes, pictures.items(), strict=False):
        axis.imshow(np.block([[image[0] for image in row] for row in rows]), cmap="gray_r")
        axis.set(title=title, xticks=[], yticks=[])
    for axis, (title, points) in zip(axes[2:], latent.items(), strict=True):
        axis.scatter(*points.T, c=labels, cmap="tab10", s=1)
        axis.set(title=title)
    figure.savefig(args.plot, dpi=150)
