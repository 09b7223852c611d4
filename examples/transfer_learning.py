"""Article 004's sibling on transfer learning: what a network knows of the digits 0 to 4 helps it to learn 5 to 9.

    python examples/transfer_learning.py [--quick] [--seed N] [--plot transfer.png]

The article takes a ResNet-18 trained on ImageNet, freezes it, and trains a head of two layers on CIFAR-10, to 80.73 %. Here is
the same in small, without a download: convolutions with BatchNorm learn one half of MNIST, are frozen, and get a new head for
the other half, of which there are only a hundred images. That is when a transfer is worth it. What was mended:

- frozen weights are not a frozen network: in train mode BatchNorm goes on to follow the means and variances of what passes
  through, and the features drift away under the head. A part that is put into eval mode stays in it while fit trains the
  rest, and is afterwards what it was, to the last bit. The article's way stands beside it, and so does a start from nothing;
- the head has nothing between its two linear layers, which makes them one: here a ReLU.
"""

import argparse
import os

import torch
from torch import nn
from torch.utils.data import Dataset, Subset
from torchvision import datasets, transforms

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a tenth of the digits 0 to 4")
options.add_argument("--seed", type=int, default=0, help="of the weights and of the order of the images")
options.add_argument("--plot", metavar="FILE", help="write the figure of the test accuracies")
args = options.parse_args()
torch.manual_seed(args.seed)


def digits(train: bool, classes: range, count: int) -> Dataset:
    root, scaled = os.environ.get("EASYTORCH_DATA", "data"), transforms.ToTensor()
    data = datasets.MNIST(root, train=train, download=True, transform=scaled)
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


def trained(net: nn.Module, data: Dataset, epochs: int, batch_size: int, **options) -> easytorch.Model:
    model = easytorch.Model(net).compile("adam", "cross_entropy", metrics=["accuracy"])
    return model.fit(data, epochs=epochs, batch_size=batch_size, **options).model


print("A network learns the digits 0 to 4")
known = Network()
trained(known, digits(True, range(5), 3000 if args.quick else 30_596), epochs=2, batch_size=32 if args.quick else 128)

print("\nThree others learn the digits 5 to 9 from 100 images")
few, test = digits(True, range(5, 10), 100), digits(False, range(5, 10), 1000 if args.quick else 4_861)
nets = {"frozen": Network(), "frozen but for batchnorm": Network(), "from nothing": Network()}
for name in ("frozen", "frozen but for batchnorm"):
    nets[name].backbone.load_state_dict(known.backbone.state_dict())
    nets[name].backbone.requires_grad_(False)
nets["frozen"].backbone.eval()  # and fit leaves it so
measured = {"validation_data": test, "validation_freq": 5, "verbose": 0}
models = {name: trained(net, few, epochs=30, batch_size=20, **measured) for name, net in nets.items()}

then, now = (net.backbone.state_dict().values() for net in (known, nets["frozen"]))
assert all(torch.equal(a, b) for a, b in zip(then, now, strict=True))  # BatchNorm's statistics among them
models["frozen"].summary()
for name, model in models.items():
    print(f"Result: test accuracy {name} = {model.history['val_accuracy'][-1]:.4f}")
print(f"Result: parameters = {sum(p.numel() for p in known.parameters())}")
print(f"Result: parameters trained = {sum(p.numel() for p in nets['frozen'].parameters() if p.requires_grad)}")

if args.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for name, model in models.items():
        axis.plot(range(5, 31, 5), model.history["val_accuracy"], marker=".", label=name)
    axis.set(xlabel="epoch", ylabel="test accuracy", title="The digits 5 to 9, learned from 100 images")
    axis.legend()
    figure.savefig(args.plot, dpi=150)
