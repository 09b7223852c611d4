"""Article 001, part 2, on manipulating datasets: split, chosen, joined, sampled, transformed and weighted digits.

    python examples/datasets.py [--quick] [--seed N]

Only the title of the article is left. What it names is told here as one story: eights are rare, one for a hundred threes, so
that a network may well call everything a three. How many of the test images' eights does it find if nothing is done about it;
if a sampler draws both digits equally often; if, besides, each image is moved a little, another way each time; or if an eight
counts for as much as a hundred threes?
"""

import argparse
import os

import torch
import torchvision
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, WeightedRandomSampler, random_split

import easytorch
from easytorch.data import in_memory, split, targets_of
from easytorch.data.seeded import seeded

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a tenth of the data")
options.add_argument("--seed", type=int, default=0, help="of the split, the weights and the order")
args = options.parse_args()
chance = torch.Generator().manual_seed(args.seed)


def mnist(train: bool) -> Dataset:
    to_tensor = torchvision.transforms.ToTensor()
    root = os.environ.get("EASYTORCH_DATA", "data")
    digits = torchvision.datasets.MNIST(root, train=train, download=True, transform=to_tensor)
    return in_memory(Subset(digits, range(len(digits) // 10)) if args.quick else digits)


def only(digit: int, dataset: Dataset) -> Subset:
    return Subset(dataset, (targets_of(dataset) == digit).nonzero().flatten().tolist())


def counted(dataset: Dataset) -> str:
    return ", ".join(str(count) for count in targets_of(dataset).bincount().tolist())


# Split: by chance alone, and with its share of each digit
digits, test = mnist(train=True), mnist(train=False)
print("Of each digit, 0 to 9:", counted(digits))
print("A fifth, by chance:   ", counted(random_split(digits, [0.8, 0.2], generator=chance)[1]))
train, validation = split(digits, fraction=0.2, seed=args.seed)
print("A fifth, with shares: ", counted(validation))

# Chosen by class, and joined: all threes, and few eights
threes, eights = only(3, train), only(8, train)
pair = ConcatDataset([threes, Subset(eights, range(len(threes) // 100))])
test_pair = ConcatDataset([only(3, test), only(8, test)])
targets = targets_of(pair)

# Sampled: a sample is drawn the more often, the fewer there are of its digit
balance = len(pair) / (2 * targets.bincount()[targets])
sampler = WeightedRandomSampler(balance, len(pair), generator=chance)


# Transformed: the few eights come back again and again, but never quite the same
class Moved(Dataset):
    """Moves each image by up to two pixels, another way each time."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, digit = self.dataset[index]
        return image.roll(torch.randint(-2, 3, (2,)).tolist(), (1, 2)), digit


def eights_found(y_pred: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return ((y_pred.argmax(1) == 8) & (y == 8)).sum(), (y == 8).sum()


shuffled = DataLoader(pair, batch_size=32, shuffle=True)
ways = {
    "as it is": (shuffled, {}),
    "sampled": (DataLoader(pair, batch_size=32, sampler=sampler), {}),
    "sampled and moved": (DataLoader(seeded(Moved(pair), args.seed), batch_size=32, sampler=sampler), {}),
    "weighted": (shuffled, {"class_weight": "balanced"}),
    "weighted sample by sample": (shuffled, {"sample_weight": balance}),  # the same, to the last bit
}
found = {}
for name, (loader, weights) in ways.items():
    torch.manual_seed(args.seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    model = easytorch.Model(network).compile("adam", "cross_entropy", metrics=["accuracy", eights_found])
    scores = model.fit(loader, 5, verbose=0, **weights).evaluate(test_pair, verbose=0)
    found[name] = scores.eights_found
    print(f"{name:25} {scores.eights_found:.2%} of the eights, {scores.accuracy:.2%} of both digits")
for name, share in found.items():
    print(f"Result: eights found {name} = {share:.4f}")
