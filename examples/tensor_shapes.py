"""Article 001, part 3: the shapes that tensors take on their way through a network, without computing one by hand.

    python examples/tensor_shapes.py [--quick] [--seed N]

Nothing is trained here: `summary` shows the shapes, and an error names the layer where they do not fit. What was mended:

- the formula of a convolution's output subtracts the padding: it is added, once for each side;
- the flattening is given the size of the batch: it takes the tensor, and nn.Flatten needs no number at all;
- the input of a two-dimensional convolution is listed with a depth, which it has not: it is (batch, channels, height, width);
- the iterator's `.next()` is gone from torch: nothing here needs it.
"""

import argparse
from collections import OrderedDict

import torch
from torch import nn

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="the same: nothing here takes time")
options.add_argument("--seed", type=int, default=0, help="of the pictures and the weights")
torch.manual_seed(options.parse_args().seed)


def convolved(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Return what a convolution, or a pooling, makes of a height or a width."""
    return (size + 2 * padding - kernel) // stride + 1


def transposed(size: int, kernel: int, stride: int = 1, padding: int = 0, output_padding: int = 0) -> int:
    """Return the size that a convolution would have made ``size`` of: the way back."""
    return (size - 1) * stride - 2 * padding + kernel + output_padding


def trace(table) -> str:
    """Return the shapes of one sample on its way, each where it changes."""
    layers = [layer for layer in table.summary_list if layer.is_leaf_layer]
    shapes = [str(layer.output_size[1:]) for layer in layers]
    return " -> ".join(shape for before, shape in zip(["", *shapes], shapes, strict=False) if shape != before)


print("Series have 3 dimensions, images 4, films 5: the batch, the channels, and the sizes.")
for layer, x in (
    (nn.Conv1d(2, 8, 3), torch.rand(4, 2, 32)),
    (nn.Conv2d(3, 8, 3), torch.rand(4, 3, 32, 32)),
    (nn.Conv3d(1, 8, 3), torch.rand(4, 1, 32, 32, 32)),
):
    print(f"  {type(layer).__name__}: {list(x.shape)} -> {list(layer(x).shape)}")

print("\nA network for CIFAR-10, four pictures of 32 x 32 pixels in three colours:")
pictures = torch.rand(4, 3, 32, 32)
network = nn.Sequential(
    OrderedDict(
        conv1=nn.Conv2d(3, 6, 5), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, 5), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2), flatten=nn.Flatten(),
        hidden1=nn.Linear(400, 120), relu3=nn.ReLU(), hidden2=nn.Linear(120, 84), relu4=nn.ReLU(), classes=nn.Linear(84, 10),
    )
)  # fmt: skip
table = easytorch.Model(network).summary(pictures)
print(trace(table))
size = convolved(convolved(convolved(convolved(32, kernel=5), 2, stride=2), 5), 2, stride=2)
print(f"By the formula 16 maps of {size} x {size} are left, which makes {16 * size * size} features")

print("\nAn autoencoder with two numbers in the middle; strides make the pictures smaller, and larger again:")
encoder = nn.Sequential(
    nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(784, 2),
)  # fmt: skip
decoder = nn.Sequential(
    nn.Linear(2, 784), nn.ReLU(), nn.Unflatten(1, (16, 7, 7)), nn.ConvTranspose2d(16, 8, 3, stride=2), nn.ReLU(),
    nn.ConvTranspose2d(8, 3, 3, stride=2, output_padding=1), nn.Sigmoid(),
)  # fmt: skip
both = easytorch.Model(nn.Sequential(OrderedDict(encoder=encoder, decoder=decoder))).summary(pictures)
print(trace(both))
print(f"By the formula {transposed(transposed(7, 3, stride=2), 3, stride=2, output_padding=1)} pixels come back")

print("\nA wrong size, as if the pictures had 36 pixels, and colours that come last:")
network.hidden1 = nn.Linear(576, 120)
for wrong in (pictures, pictures.movedim(1, -1)):
    try:
        easytorch.Model(network).predict(wrong, verbose=0)
    except ValueError as error:
        print(f"  {error}")

print(f"\nResult: parameters = {table.total_params}")
print(f"Result: autoencoder parameters = {both.total_params}")
