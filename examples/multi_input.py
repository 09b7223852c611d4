"""Two inputs, two outputs, and two losses: diagnosis and cell properties of breast tumors.

    python examples/multi_input.py [--quick] [--seed N] [--plot losses.png]

The Wisconsin breast cancer data of scikit-learn has ten properties of cell nuclei for each of 569 tumors. Each property
has a mean over all cells, its standard error, and the mean of the three largest values. The inputs are the means and
the errors. The outputs are the diagnosis and the ten largest values. Inputs, targets, losses, and metrics are dicts.
``forward`` receives the inputs as arguments and returns a dict. The logs contain the loss and the metrics of each
output; ``loss`` is their weighted sum.
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch import nn

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a third of the epochs")
options.add_argument(
    "--seed", type=int, default=0, help="random seed of the split, the weights, and the order of the samples"
)
options.add_argument("--plot", metavar="FILE", help="write a figure of all losses and metrics")
args = options.parse_args()
torch.manual_seed(args.seed)

data = load_breast_cancer()
malignant = (data.target == 0).astype(np.float32)[:, None]  # [569, 1]: 212 are malignant
rows, test_rows = train_test_split(np.arange(569), test_size=0.2, random_state=args.seed, stratify=malignant)
# Normalize with the statistics of the training data
table = (data.data - data.data[rows].mean(0)) / data.data[rows].std(0)
inputs = {"mean": table[:, :10], "error": table[:, 10:20]}
targets = {"malignant": malignant, "worst": table[:, 20:]}


def select_rows(columns: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: column[rows] for name, column in columns.items()}


class TumorNetwork(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.mean, self.error = nn.Linear(10, width), nn.Linear(10, width)
        self.body = nn.Sequential(nn.ReLU(), nn.Dropout(0.2), nn.Linear(2 * width, width), nn.ReLU())
        self.malignant, self.worst = nn.Linear(width, 1), nn.Linear(width, 10)

    def forward(self, mean: torch.Tensor, error: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body(torch.cat([self.mean(mean), self.error(error)], dim=1))
        return {"malignant": self.malignant(features), "worst": self.worst(features)}


model = easytorch.Model(TumorNetwork()).compile(
    "adam",
    loss={"malignant": "bce_with_logits", "worst": "mse"},
    loss_weights={"malignant": 1.0, "worst": 0.5},
    metrics={"malignant": ["accuracy"], "worst": ["mae"]},
    lr=0.003,
)
x, y = select_rows(inputs, rows), select_rows(targets, rows)
x_test, y_test = select_rows(inputs, test_rows), select_rows(targets, test_rows)
history = model.fit(x, y, epochs=20 if args.quick else 60, validation_data=(x_test, y_test), verbose=0)
print(f"In the logs: {', '.join(history)}")
scores = model.evaluate(x_test, y_test)
# Baseline: the worst cells deviate from the average as much as the mean of all cells
baseline = np.abs(y_test["worst"] - inputs["mean"][test_rows]).mean()

predictions = model.predict(select_rows(inputs, test_rows[:4]), verbose=0)  # a dict of arrays, [4, 1] and [4, 10]
probabilities = 1 / (1 + np.exp(-predictions["malignant"][:, 0]))
for probability, radius, row in zip(probabilities, predictions["worst"][:, 0], test_rows[:4], strict=True):
    radius = radius * data.data[rows, 20].std() + data.data[rows, 20].mean()
    truth = f"{'malignant' if malignant[row, 0] else 'benign'}, radius {data.data[row, 20]:.1f}"
    print(f"Malignant by {probability:6.1%}, radius of the worst cells {radius:4.1f}; in truth {truth}")

print(f"Result: test accuracy malignant = {scores.malignant_accuracy:.4f}")
print(f"Result: mean absolute error worst = {scores.worst_mae:.4f}")
print(f"Result: mean absolute error by the means alone = {baseline:.4f}")
print(f"Result: parameters = {sum(p.numel() for p in model.module.parameters())}")
if args.plot:
    history.plot(path=args.plot)
