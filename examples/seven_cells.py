"""Multilayer perceptron for MNIST (after K. Patel).

    python examples/seven_cells.py [--quick] [--seed N] [--plot digit.png] [--script]

The article trains for five epochs with SGD and a learning rate of 0.003, which underfits. It does not use the test set.
This program runs that recipe, and then the same network with Adam. Other fixes: a layer flattens the images,
cross-entropy replaces log-softmax with NLL loss, and the predicted image is a test image. The normalization of the
article is left out, because its code has a syntax error and expects three channels.
"""

import argparse
import os

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a tenth of the data, two epochs")
options.add_argument("--seed", type=int, default=0, help="random seed of the weights and the order of the images")
options.add_argument("--plot", metavar="FILE", help="write a figure of a digit and its class probabilities")
options.add_argument("--script", action="store_true", help="print the training as a plain PyTorch program instead")
args = options.parse_args()

# Cells 1 and 2: data
root = os.environ.get("EASYTORCH_DATA", "data")
train = datasets.MNIST(root, train=True, download=True, transform=transforms.ToTensor())
test = datasets.MNIST(root, train=False, download=True, transform=transforms.ToTensor())
if args.quick:
    train, test = Subset(train, range(6000)), Subset(test, range(1000))
train, test = easytorch.data.in_memory(train), easytorch.data.in_memory(test)
loader, test_loader = DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=250)


# Cells 3 and 4: network, loss, and optimizer
def network() -> nn.Module:
    torch.manual_seed(args.seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


# Cell 5: training with the article's optimizer, and with Adam
epochs, results = 2 if args.quick else 5, {}
for title, optimizer in {"The article's recipe": "sgd", "With Adam instead": "adam"}.items():
    model = easytorch.Model(network())
    model.compile(optimizer, "cross_entropy", metrics=["accuracy"], lr=0.003 if optimizer == "sgd" else 0.001)
    if args.script:
        print(model.to_script(loader, epochs))
        raise SystemExit
    print(f"\n{title}: {optimizer}, learning rate 0.003" if optimizer == "sgd" else f"\n{title}, learning rate 0.001")
    accuracy = model.fit(loader, epochs).evaluate(test_loader).accuracy
    print(f"Test accuracy {accuracy:.2%}")
    results[f"test accuracy with {optimizer}"] = f"{accuracy:.4f}"

results["parameters"] = model.summary().total_params

# Cells 6 and 7: prediction for one test image
image, label = test[0]
probabilities = model.predict_proba(image[None], verbose=0)[0]
print(f"Label {label}, prediction {probabilities.argmax()} with probability {probabilities.max():.1%}")
for name, value in results.items():
    print(f"Result: {name} = {value}")

if args.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(image.squeeze().numpy(), cmap="gray_r")
    left.axis("off")
    right.barh(range(10), probabilities)
    right.set(xlim=(0, 1.1), yticks=range(10), title="Class probability")
    right.invert_yaxis()
    figure.savefig(args.plot, dpi=150)
