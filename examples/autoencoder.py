"""Autoencoder that compresses MNIST digits to four numbers (after E. Anello).

    python examples/autoencoder.py [--quick] [--seed N] [--plot autoencoder.png]

The target is the input, so training is ``fit(x, x)``. After training, the encoder and the decoder are used as separate
models. A callback records reconstructions after every epoch. Fixes to the article: the split has a seed, training
images are shuffled, the epoch loss is a mean over images, and test images are encoded in batches. The article passes
two latent values to a decoder that expects four; here the other two are their means.
"""

import argparse
import os

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import nn
from torchvision import datasets

import easytorch
from easytorch.callbacks import LambdaCallback

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a tenth of the data, three epochs of smaller batches")
options.add_argument("--seed", type=int, default=0, help="random seed of the split, the weights, and the order")
options.add_argument("--plot", metavar="FILE", help="write a figure of generated digits and the latent space")
args = options.parse_args()
epochs, batch_size = (3, 64) if args.quick else (30, 256)


def mnist(train: bool, quick_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = datasets.MNIST(os.environ.get("EASYTORCH_DATA", "data"), train=train, download=True)
    rows = slice(quick_size if args.quick else None)
    return data.data[rows, None] / 255, data.targets[rows]


torch.manual_seed(args.seed)
images, _ = mnist(True, 6000)
test, labels = mnist(False, 1000)
train, validation = images[torch.randperm(len(images))].tensor_split([len(images) * 4 // 5])

encoder = nn.Sequential(
    nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(),
    nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
    nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
    nn.Flatten(), nn.Linear(288, 128), nn.ReLU(), nn.Linear(128, 4),
)  # fmt: skip
decoder = nn.Sequential(
    nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 288), nn.ReLU(), nn.Unflatten(1, (32, 3, 3)),
    nn.ConvTranspose2d(32, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
    nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1), nn.BatchNorm2d(8), nn.ReLU(),
    nn.ConvTranspose2d(8, 1, 3, stride=2, padding=1, output_padding=1), nn.Sigmoid(),
)  # fmt: skip


# Five test images and their reconstructions after every epoch
snapshots = [test[:5].numpy()]
recorder = LambdaCallback(on_epoch_end=lambda epoch, logs: snapshots.append(model.predict_on_batch(snapshots[0])))

model = easytorch.Model(nn.Sequential(encoder, decoder))
model.compile(lambda weights: torch.optim.Adam(weights, lr=0.001, weight_decay=1e-5), "mse")
model.fit(
    train, train, epochs=epochs, batch_size=batch_size, validation_data=(validation, validation), callbacks=[recorder]
)
error = model.evaluate(test, test, batch_size=256).loss

codes, pca = easytorch.Model(encoder).predict(test, verbose=0), PCA(2)
components = pca.fit_transform(codes)
print(f"Result: test mse = {error:.5f}")
print(f"Result: variance explained by two components = {pca.explained_variance_ratio_.sum():.4f}")

if args.plot:
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    # Steps in standard deviations
    steps = np.stack(np.meshgrid(*2 * [np.linspace(-2, 2, 10)]), -1).reshape(100, 2)
    grid = np.tile(codes.mean(0), (100, 1))
    grid[:, :2] += steps * codes.std(0)[:2]
    drawings = easytorch.Model(decoder).predict(grid, verbose=0).reshape(10, 10, 1, 28, 28)
    latent = {
        "Latents 0 and 1": codes[:, :2],
        "PCA": components,
        "t-SNE": TSNE(random_state=args.seed).fit_transform(codes),
    }
    pictures = {"By epoch": snapshots[:3] + snapshots[5::5], "Generated": drawings}
    figure = Figure(figsize=(18, 4), layout="constrained")
    axes = figure.subplots(1, 5)
    for axis, (title, rows) in zip(axes, pictures.items(), strict=False):
        axis.imshow(np.block([[image[0] for image in row] for row in rows]), cmap="gray_r")
        axis.set(title=title, xticks=[], yticks=[])
    for axis, (title, points) in zip(axes[2:], latent.items(), strict=True):
        axis.scatter(*points.T, c=labels, cmap="tab10", s=1)
        axis.set(title=title)
    figure.savefig(args.plot, dpi=150)
