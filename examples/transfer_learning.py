"""Transfer learning from the digits 0 to 4 to the digits 5 to 9 (after a notebook of P. Mahajan).

    python examples/transfer_learning.py [--quick] [--seed N] [--plot transfer.png]

The article freezes a ResNet-18 trained on ImageNet and trains a new head on CIFAR-10, to 80.73%. This small version
needs no download: a network with BatchNorm learns one half of MNIST, and a new head learns the other half from a
hundred images. In training mode, BatchNorm updates its running statistics even if its weights are frozen. The callback
``Freeze`` therefore puts a frozen BatchNorm into eval mode, too. The program also runs the article's version, which
freezes weights alone, and training from random weights. The head has a ReLU between its two linear layers, which the
article lacks.
"""

import argparse
import os

import torch
from torch import nn
from torch.utils.data import Dataset, Subset
from torchvision import datasets, transforms

import easytorch
from easytorch.callbacks import Freeze

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a tenth of the digits 0 to 4")
options.add_argument("--seed", type=int, default=0, help="random seed of the weights and the order of the images")
options.add_argument("--plot", metavar="FILE", help="write a figure of the test accuracies")
args = options.parse_args()
torch.manual_seed(args.seed)


def digits(train: bool, classes: range, count: int) -> Dataset:
    root, to_tensor = os.environ.get("EASYTORCH_DATA", "data"), transforms.ToTensor()
    data = datasets.MNIST(root, train=train, download=True, transform=to_tensor)
    rows = torch.isin(data.targets, torch.tensor(classes)).nonzero().flatten()[:count]
    return easytorch.data.in_memory(Subset(data, rows.tolist()), verbose=0)


def conv(inputs: int, outputs: int, size: int) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv(1, 16, 5), conv(16, 32, 5), conv(32, 64, 3), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(576, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))


def train(net: nn.Module, data: Dataset, epochs: int, batch_size: int, **options) -> easytorch.Model:
    model = easytorch.Model(net).compile("adam", "cross_entropy", metrics=["accuracy"])
    return model.fit(data, epochs=epochs, batch_size=batch_size, **options).model


print("A network learns the digits 0 to 4")
source = Network()
train(source, digits(True, range(5), 3000 if args.quick else 30_596), epochs=2, batch_size=32 if args.quick else 128)

print("\nThree others learn the digits 5 to 9 from 100 images")
train_data, test = digits(True, range(5, 10), 100), digits(False, range(5, 10), 1000 if args.quick else 4_861)
nets = {"frozen": Network(), "frozen but for batchnorm": Network(), "from nothing": Network()}
for name in ("frozen", "frozen but for batchnorm"):
    nets[name].backbone.load_state_dict(source.backbone.state_dict())
nets["frozen but for batchnorm"].backbone.requires_grad_(False)
callbacks = {"frozen": [Freeze("backbone")]}
settings = {"validation_data": test, "validation_freq": 5, "verbose": 0, "epochs": 30, "batch_size": 20}
models = {name: train(net, train_data, callbacks=callbacks.get(name, ()), **settings) for name, net in nets.items()}

# The frozen backbone is unchanged, including the statistics of BatchNorm
source_state, frozen_state = (net.backbone.state_dict().values() for net in (source, nets["frozen"]))
assert all(torch.equal(a, b) for a, b in zip(source_state, frozen_state, strict=True))
models["frozen"].summary()
for name, model in models.items():
    print(f"Result: test accuracy {name} = {model.history['val_accuracy'][-1]:.4f}")
print(f"Result: parameters = {sum(p.numel() for p in source.parameters())}")
print(f"Result: parameters trained = {sum(p.numel() for p in nets['frozen'].head.parameters())}")

if args.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for name, model in models.items():
        axis.plot(range(5, 31, 5), model.history["val_accuracy"], marker=".", label=name)
    axis.set(xlabel="epoch", ylabel="test accuracy", title="The digits 5 to 9, learned from 100 images")
    axis.legend()
    figure.savefig(args.plot, dpi=150)
