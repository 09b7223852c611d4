"""Article 001, part 7: an autoencoder squeezes digits of 784 pixels into four numbers, and draws them again.

    python examples/autoencoder.py [--quick] [--seed N] [--plot autoencoder.png]

Encoder and decoder are two modules in one; the target is the input, so `fit(x, x)` is all there is to say. What was mended:

- the grid of drawn digits fed two numbers into a decoder that takes four, which ran by a fault of one version of torch only:
  here the other two are those of the average digit;
- a line for each of the 5,640 updates is one for each of the 30 epochs, and a callback keeps what the digits look like then;
- the epoch's loss was a mean of batches: here it is one of images;
- the 10,000 test images are encoded in batches, not one by one; the encoder is a model like any other;
- the split has a seed, and the training images come in random order.
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
options.add_argument("--seed", type=int, default=0, help="of the split, the weights and the order")
options.add_argument("--plot", metavar="FILE", help="write the figure: epochs, drawn digits, the latent space")
args = options.parse_args()
epochs, batch_size = (3, 64) if args.quick else (30, 256)


def mnist(train: bool, quick: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = datasets.MNIST(os.environ.get("EASYTORCH_DATA", "data"), train=train, download=True)
    rows = slice(quick if args.quick else None)
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


seen = [test[:5].numpy()]  # and what becomes of them after every epoch
keep = LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(model.predict_on_batch(seen[0])))

model = easytorch.Model(nn.Sequential(encoder, decoder))
model.compile(lambda weights: torch.optim.Adam(weights, lr=0.001, weight_decay=1e-5), "mse")
model.fit(
    train, train, epochs=epochs, batch_size=batch_size, validation_data=(validation, validation), callbacks=[keep]
)
error = model.evaluate(test, test, batch_size=256).loss

codes, pca = easytorch.Model(encoder).predict(test, verbose=0), PCA(2)
components = pca.fit_transform(codes)
print(f"Result: test mse = {error:.5f}")
print(f"Result: variance explained by two components = {pca.explained_variance_ratio_.sum():.4f}")

if args.plot:
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    steps = np.stack(np.meshgrid(*2 * [np.linspace(-2, 2, 10)]), -1).reshape(100, 2)  # in standard deviations
    grid = np.tile(codes.mean(0), (100, 1))
    grid[:, :2] += steps * codes.std(0)[:2]
    drawn = easytorch.Model(decoder).predict(grid, verbose=0).reshape(10, 10, 1, 28, 28)
    latent = {
        "Latents 0 and 1": codes[:, :2],
        "PCA": components,
        "t-SNE": TSNE(random_state=args.seed).fit_transform(codes),
    }
    figure = Figure(figsize=(18, 4), layout="constrained")
    axes = figure.subplots(1, 5)
    for axis, (title, rows) in zip(axes, {"By epoch": seen[:3] + seen[5::5], "Drawn": drawn}.items(), strict=False):
        axis.imshow(np.block([[image[0] for image in row] for row in rows]), cmap="gray_r")
        axis.set(title=title, xticks=[], yticks=[])
    for axis, (title, points) in zip(axes[2:], latent.items(), strict=True):
        axis.scatter(*points.T, c=labels, cmap="tab10", s=1)
        axis.set(title=title)
    figure.savefig(args.plot, dpi=150)
