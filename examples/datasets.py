"""Split, select, concatenate, sample, transform, and weight a dataset (after E. Anello).

    python examples/datasets.py [--quick] [--seed N]

Only the title of the article is still available. This program applies its topics to class imbalance: the training data
has one eight for every hundred threes. It compares the recall of the eights for five methods: the original data, a
balanced sampler, a sampler with random shifts, class weights, and sample weights.
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
options.add_argument("--seed", type=int, default=0, help="random seed of the split, the weights, and the order")
args = options.parse_args()
generator = torch.Generator().manual_seed(args.seed)


def mnist(train: bool) -> Dataset:
    to_tensor = torchvision.transforms.ToTensor()
    root = os.environ.get("EASYTORCH_DATA", "data")
    digits = torchvision.datasets.MNIST(root, train=train, download=True, transform=to_tensor)
    return in_memory(Subset(digits, range(len(digits) // 10)) if args.quick else digits)


def select_digit(digit: int, dataset: Dataset) -> Subset:
    return Subset(dataset, (targets_of(dataset) == digit).nonzero().flatten().tolist())


def class_counts(dataset: Dataset) -> str:
    return ", ".join(str(count) for count in targets_of(dataset).bincount().tolist())


# Split: at random, and stratified by digit
digits, test = mnist(train=True), mnist(train=False)
print("Of each digit, 0 to 9:", class_counts(digits))
print("A fifth, at random:   ", class_counts(random_split(digits, [0.8, 0.2], generator=generator)[1]))
train, validation = split(digits, fraction=0.2, seed=args.seed)
print("A fifth, stratified:  ", class_counts(validation))

# Select by class and concatenate: all threes, and few eights
threes, eights = select_digit(3, train), select_digit(8, train)
pair = ConcatDataset([threes, Subset(eights, range(len(threes) // 100))])
test_pair = ConcatDataset([select_digit(3, test), select_digit(8, test)])
targets = targets_of(pair)

# Sample: the probability is inversely proportional to the frequency of the digit
balance = len(pair) / (2 * targets.bincount()[targets])
sampler = WeightedRandomSampler(balance, len(pair), generator=generator)


# Transform: each repetition of an eight has another shift
class RandomShift(Dataset):
    """Shifts each image by up to two pixels, at random."""

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
methods = {
    "as it is": (shuffled, {}),
    "sampled": (DataLoader(pair, batch_size=32, sampler=sampler), {}),
    "sampled and moved": (DataLoader(seeded(RandomShift(pair), args.seed), batch_size=32, sampler=sampler), {}),
    "weighted": (shuffled, {"class_weight": "balanced"}),
    # Bitwise equal to class_weight="balanced"
    "weighted sample by sample": (shuffled, {"sample_weight": balance}),
}
recalls = {}
for name, (loader, weights) in methods.items():
    torch.manual_seed(args.seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    model = easytorch.Model(network).compile("adam", "cross_entropy", metrics=["accuracy", eights_found])
    scores = model.fit(loader, 5, verbose=0, **weights).evaluate(test_pair, verbose=0)
    recalls[name] = scores.eights_found
    print(f"{name:25} {scores.eights_found:.2%} of the eights, {scores.accuracy:.2%} of both digits")
for name, recall in recalls.items():
    print(f"Result: eights found {name} = {recall:.4f}")
