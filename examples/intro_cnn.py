"""A convolutional network that applies one layer five times (after G. Seif).

    python examples/intro_cnn.py [--quick] [--seed N] [--precision bf16] [--resume FOLDER] [--script]

Training has ten epochs of Adam with a learning rate of 0.001 and batches of 32. The article reaches 99.06% test
accuracy. Fixes to the article: ``torch.zeros`` creates tensors of zeros, and columns are taken from the tensor that is
shown. The cross-entropy gets logits, and the pooling accepts images of any size. The saved file contains weights, not
pickled code. On one CPU core a run takes half an hour or more, and a third of that in bf16 on processors that support
it. A run that was stopped continues with the same command if it has --resume.
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
options.add_argument("--seed", type=int, default=0, help="random seed of the weights and the order of the images")
options.add_argument("--precision", default="fp32", help="bf16 is three times as fast on processors that support it")
options.add_argument("--resume", metavar="FOLDER", help="save the run in this folder and continue it after a stop")
options.add_argument("--script", action="store_true", help="print the training as a plain PyTorch program instead")
args = options.parse_args()
torch.manual_seed(args.seed)

# Tensors
print("Zeros and random numbers:", torch.zeros(3, 3), torch.rand(3, 3), sep="\n")
fives = torch.ones(3, 3) + 4 * torch.ones(3, 3)
print(f"The first two columns of a tensor of fives, {list(fives[:, :2].shape)}:", fives[:, :2], sep="\n")

# Data
root, batch_size = os.environ.get("EASYTORCH_DATA", "data"), 8 if args.quick else 32
train = datasets.MNIST(root, train=True, download=True, transform=transforms.ToTensor())
test = datasets.MNIST(root, train=False, download=True, transform=transforms.ToTensor())
if args.quick:
    train, test = Subset(train, range(1500)), Subset(test, range(500))
loader = DataLoader(easytorch.data.in_memory(train), batch_size=batch_size, shuffle=True)
test_loader = DataLoader(easytorch.data.in_memory(test), batch_size=250)


class Network(nn.Module):
    """Six convolutions; the last five are the same layer with the same weights."""

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


# Training and evaluation
# channels_last is a tenth faster on a CPU
model = easytorch.Model(Network().to(memory_format=torch.channels_last))
model.compile("adam", "cross_entropy", metrics=["accuracy"], lr=0.001, precision=args.precision)
epochs = 2 if args.quick else 10
if args.script:
    print(model.to_script(loader, epochs=epochs))
    raise SystemExit
model.fit(loader, epochs=epochs, resume=args.resume)
table = model.summary()
loss, accuracy = model.evaluate(test_loader)

# Save and load
with TemporaryDirectory() as folder:
    path = model.save(Path(folder) / "cnn.pt")
    restored = easytorch.Model(Network()).load(path)
    restored_scores = restored.evaluate(test_loader, verbose=0)

print(f"Result: parameters = {table.total_params}")
print(f"Result: test accuracy = {accuracy:.4f}")
print(f"Result: test accuracy after loading = {restored_scores.accuracy:.4f}")
