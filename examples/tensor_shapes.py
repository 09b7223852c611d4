"""Tensor shapes on the way through a network (after E. Anello).

    python examples/tensor_shapes.py [--quick] [--seed N]

Nothing is trained. ``summary`` shows all shapes, and an error names the layer that does not fit. Fixes to the article:
the formula for the output size of a convolution adds the padding on both sides. The input of a 2D convolution is
(batch, channels, height, width), without a depth. ``nn.Flatten`` needs no size. The iterator method ``.next()`` no
longer exists.
"""

import argparse
from collections import OrderedDict

import torch
from torch import nn

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="no effect, because this program is fast")
options.add_argument("--seed", type=int, default=0, help="random seed of the images and the weights")
torch.manual_seed(options.parse_args().seed)


def conv_size(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Return the output height or width of a convolution or a pooling layer."""
    return (size + 2 * padding - kernel) // stride + 1


def transposed_conv_size(size: int, kernel: int, stride: int = 1, padding: int = 0, output_padding: int = 0) -> int:
    """Return the output height or width of a transposed convolution."""
    return (size - 1) * stride - 2 * padding + kernel + output_padding


def trace(table) -> str:
    """Return the shapes of one sample from layer to layer. A shape that does not change is listed once."""
    layers = [layer for layer in table.summary_list if layer.is_leaf_layer]
    shapes = [str(layer.output_size[1:]) for layer in layers]
    return " -> ".join(shape for previous, shape in zip(["", *shapes], shapes, strict=False) if shape != previous)


print("Series have 3 dimensions, images 4, films 5: the batch, the channels, and the sizes.")
for layer, x in (
    (nn.Conv1d(2, 8, 3), torch.rand(4, 2, 32)),
    (nn.Conv2d(3, 8, 3), torch.rand(4, 3, 32, 32)),
    (nn.Conv3d(1, 8, 3), torch.rand(4, 1, 32, 32, 32)),
):
    print(f"  {type(layer).__name__}: {list(x.shape)} -> {list(layer(x).shape)}")

print("\nA network for CIFAR-10, four pictures of 32 x 32 pixels in three colors:")
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
size = conv_size(conv_size(conv_size(conv_size(32, kernel=5), 2, stride=2), 5), 2, stride=2)
print(f"By the formula 16 maps of {size} x {size} are left, which makes {16 * size * size} features")

print("\nAn autoencoder with two numbers in the middle; strides make the pictures smaller, and larger again:")
encoder = nn.Sequential(
    nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(784, 2),
)  # fmt: skip
decoder = nn.Sequential(
    nn.Linear(2, 784), nn.ReLU(), nn.Unflatten(1, (16, 7, 7)), nn.ConvTranspose2d(16, 8, 3, stride=2), nn.ReLU(),
    nn.ConvTranspose2d(8, 3, 3, stride=2, output_padding=1), nn.Sigmoid(),
)  # fmt: skip
autoencoder_table = easytorch.Model(nn.Sequential(OrderedDict(encoder=encoder, decoder=decoder))).summary(pictures)
print(trace(autoencoder_table))
print(
    f"By the formula {transposed_conv_size(transposed_conv_size(7, 3, stride=2), 3, stride=2, output_padding=1)} pixels come back"
)

print("\nA wrong size, as if the pictures had 36 pixels, and colors that come last:")
network.hidden1 = nn.Linear(576, 120)
for images in (pictures, pictures.movedim(1, -1)):
    try:
        easytorch.Model(network).predict(images, verbose=0)
    except ValueError as error:
        print(f"  {error}")

print(f"\nResult: parameters = {table.total_params}")
print(f"Result: autoencoder parameters = {autoencoder_table.total_params}")
