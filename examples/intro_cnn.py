"""Article 000, "Introduction to PyTorch neural networks": a convolutional network that uses one layer five times reads MNIST.

    python examples/intro_cnn.py [--quick] [--seed N] [--precision bf16] [--resume FOLDER]

Ten epochs of Adam at 0.001 in batches of 32, as in the article, which reads 99.06 % of the test images. What was mended:

- a tensor that is only given a size holds whatever was in memory, not zeros: zeros are asked for;
- the columns are cut out of the tensor of fives, which the article shows, and not out of another one;
- the cross-entropy has the softmax in it: the network ends in plain numbers, and predict_proba gives the probabilities;
- the average over 7 x 7 pixels is one over all there are: images of other sizes fit, too;
- fit brings network and batches to the device, evaluate measures in eval mode and without gradients;
- what is saved is numbers, not a pickle of the program, and it is shown that they come back.

On one core of a CPU this takes half an hour or more, and a third of that in bf16, if the processor knows it. With --resume it may
be stopped at any time: the same command goes on there.
"""

import argparse
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="1,500 images in small batches, two epochs")
options.add_argument("--seed", type=int, default=0, help="of the weights and of the order of the images")
options.add_argument("--precision", default="fp32", help="bf16 is three times as fast, where the processor has it")
options.add_argument("--resume", metavar="FOLDER", help="keep the run there, and go on where it was stopped")
args = options.parse_args()
torch.manual_seed(args.seed)

# Tensors
print("Zeros and random numbers:", torch.zeros(3, 3), torch.rand(3, 3), sep="\n")
fives = torch.ones(3, 3) + 4 * torch.ones(3, 3)
print(f"The first two columns of a tensor of fives, {list(fives[:, :2].shape)}:", fives[:, :2], sep="\n")

# The data
root, batch_size = os.environ.get("EASYTORCH_DATA", "data"), 8 if args.quick else 32
train = datasets.MNIST(root, train=True, download=True, transform=transforms.ToTensor())
test = datasets.MNIST(root, train=False, download=True, transform=transforms.ToTensor())
if args.quick:
    train, test = Subset(train, range(1500)), Subset(test, range(500))
loader = DataLoader(easytorch.data.in_memory(train), batch_size=batch_size, shuffle=True)
test_loader = DataLoader(easytorch.data.in_memory(test), batch_size=250)


class Network(nn.Module):
    """Six convolutions, of which the last five are one and the same layer, with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
        self.fc1 = nn.Linear(64, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # 28 x 28 pixels become 14 x 14
        x = F.relu(self.conv2(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # 7 x 7
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv2(x))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # 64 numbers
        return self.fc2(F.relu(self.fc1(x)))


# Training, testing
model = easytorch.Model(Network().to(memory_format=torch.channels_last))  # on a CPU a tenth faster
model.compile("adam", "cross_entropy", metrics=["accuracy"], lr=0.001, precision=args.precision)
model.fit(loader, epochs=2 if args.quick else 10, resume=args.resume)
table = model.summary()
loss, accuracy = model.evaluate(test_loader)

# Saving, loading
with TemporaryDirectory() as folder:
    path = model.save(Path(folder) / "cnn.pt")
    again = easytorch.Model(Network()).load(path).evaluate(test_loader, verbose=0)

print(f"Result: parameters = {table.total_params}")
print(f"Result: test accuracy = {accuracy:.4f}")
print(f"Result: test accuracy after loading = {again.accuracy:.4f}")
