"""Filters and feature maps of a convolutional network on MNIST (after E. Anello).

    python examples/feature_maps.py [--quick] [--seed N] [--plot maps.png]

Forward hooks collect the output of every convolution for one digit. Fixes to the article: a context manager removes the
hooks, and ``modules()`` also finds nested layers. The figure shows all 32 feature maps of the second layer instead of
32 of its 512 filters. Features without height and width use Dropout, because Dropout2d now warns. The split has a seed,
and images are shuffled.
"""

import argparse
import contextlib
import os

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a tenth of the data, two epochs")
options.add_argument("--seed", type=int, default=0, help="random seed of the split, the weights, and the order")
options.add_argument("--plot", metavar="FILE", help="write a figure of the filters and the feature maps")
args = options.parse_args()

root, to_tensor = os.environ.get("EASYTORCH_DATA", "data"), transforms.ToTensor()
train = datasets.MNIST(root, train=True, download=True, transform=to_tensor)
test = datasets.MNIST(root, train=False, download=True, transform=to_tensor)
if args.quick:
    train, test = Subset(train, range(6000)), Subset(test, range(1000))
train, test = easytorch.data.in_memory(train), easytorch.data.in_memory(test)


@contextlib.contextmanager
def record_outputs(layers):
    """Yield a list that receives the outputs of ``layers`` inside the context."""
    outputs = []
    handles = [layer.register_forward_hook(lambda _, x, y: outputs.append(y.cpu().numpy())) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def mosaic(images: np.ndarray, columns: int) -> np.ndarray:
    """Return one picture of all images [n, height, width], with a frame around each image."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    return np.block([list(row) for row in padded.reshape(-1, columns, *padded.shape[1:])])


torch.manual_seed(args.seed)
digit, label = train[4]
training, validation = easytorch.data.split(train, fraction=0.2, seed=args.seed)

network = nn.Sequential(
    nn.Conv2d(1, 16, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(),
    nn.Conv2d(16, 32, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(), nn.Dropout2d(0.5), nn.Flatten(),
    nn.Linear(1568, 96), nn.ReLU(), nn.Dropout(0.1), nn.Linear(96, 10),
).to(memory_format=torch.channels_last)  # faster on a CPU  # fmt: skip
model = easytorch.Model(network).compile("adam", "cross_entropy", metrics=["accuracy"], lr=0.002)
model.fit(
    DataLoader(training, batch_size=128, shuffle=True),
    epochs=2 if args.quick else 10,
    validation_data=DataLoader(validation, batch_size=1000),
)
loss, accuracy = model.evaluate(DataLoader(test, batch_size=1000))

convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
with record_outputs(convolutions) as maps:
    prediction = model.predict_classes(digit[None], verbose=0)[0]
print(f"Label {label}, prediction {prediction}. Shapes of the filters and the feature maps:")
for layer, output in zip(convolutions, maps, strict=True):
    print(f"  filters {list(layer.weight.shape)}, maps {list(output.shape[1:])}")
print(f"Result: test accuracy = {accuracy:.4f}")
print(f"Result: test loss = {loss:.4f}")

if args.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.8), layout="constrained")
    pictures = {
        "The 16 filters of the first layer": mosaic(convolutions[0].weight.detach().cpu().numpy()[:, 0], 4),
        "Their maps": mosaic(maps[0][0], 4),
        "The 32 maps of the second layer": mosaic(maps[1][0], 8),
    }
    for axis, (title, picture) in zip(figure.subplots(1, 3, width_ratios=(1, 1, 2)), pictures.items(), strict=True):
        axis.imshow(picture)
        axis.set(title=title, xticks=[], yticks=[])
    figure.savefig(args.plot, dpi=150)
