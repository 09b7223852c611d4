"""A network for a table with missing values and categories.

    python examples/tabular.py [--quick] [--seed N]

The table is synthetic: 4,000 customers with three numbers and two categories, of which a tenth is missing. The target is
whether a customer leaves. A missing number becomes the median of the training rows, and a further column marks it. A
category becomes an index of an embedding; 0 stands for a category that is missing or unknown. The baseline is the
logistic regression of scikit-learn.
"""

import argparse

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import easytorch
from easytorch.callbacks import EarlyStopping

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a quarter of the customers")
options.add_argument("--seed", type=int, default=0, help="random seed of the weights and the order of the rows")
args = options.parse_args()
NUMBERS, CATEGORIES = ["age", "income", "visits"], ["plan", "region"]


def make_customers(count: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({
        "age": rng.normal(45, 15, count), "income": rng.lognormal(10, 0.5, count), "visits": rng.poisson(5.0, count) * 1.0,
        "plan": rng.choice(["free", "basic", "pro"], count), "region": rng.choice(["north", "south", "east"], count),
    })  # fmt: skip
    # Few visits matter for paying customers, and age matters in the south.
    score = np.where(frame["plan"] == "free", -0.5, 0.9 * (4 - frame["visits"]))
    score += np.where(frame["region"] == "south", (frame["age"] - 45) / 8, 0)
    frame["leaves"] = (score + rng.logistic(size=count) > 0).astype(int)
    for name in NUMBERS + CATEGORIES:
        frame.loc[rng.random(count) < 0.1, name] = None
    return frame


class Encoder:
    """Statistics and categories of the training rows."""

    def __init__(self, train: pd.DataFrame) -> None:
        self.median, self.mean, self.std = (getattr(train[NUMBERS], name)() for name in ("median", "mean", "std"))
        values = {name: sorted(train[name].dropna().unique()) for name in CATEGORIES}
        self.indices = {name: {value: i for i, value in enumerate(values[name], 1)} for name in CATEGORIES}

    def __call__(self, frame: pd.DataFrame) -> dict[str, np.ndarray]:
        numbers = (frame[NUMBERS].fillna(self.median) - self.mean) / self.std
        missing = frame[NUMBERS].isna()
        columns = [frame[name].map(self.indices[name]).fillna(0) for name in CATEGORIES]
        return {
            "numbers": np.column_stack([numbers, missing]).astype("float32"),
            "categories": np.column_stack(columns).astype("int64"),
        }


class TableNet(nn.Module):
    def __init__(self, numbers: int, sizes: list[int], width: int = 32) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, 4) for size in sizes)
        inputs = numbers + 4 * len(sizes)
        layers = nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, width), nn.ReLU()
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, numbers: torch.Tensor, categories: torch.Tensor) -> torch.Tensor:
        vectors = [embedding(categories[:, i]) for i, embedding in enumerate(self.embeddings)]
        return self.layers(torch.cat([numbers, *vectors], 1))


torch.manual_seed(args.seed)
frame = make_customers(1000 if args.quick else 4000)
order = np.random.default_rng(1).permutation(len(frame))
train, val, test = (frame.iloc[rows] for rows in np.split(order, [len(frame) * 6 // 10, len(frame) * 8 // 10]))
encode = Encoder(train)
net = TableNet(2 * len(NUMBERS), [len(indices) + 1 for indices in encode.indices.values()])
model = easytorch.Model(net).compile("adamw", "cross_entropy", metrics=["accuracy"], lr=3e-3)
model.fit(
    encode(train), train["leaves"].to_numpy(), epochs=30, batch_size=64, verbose=2,
    validation_data=(encode(val), val["leaves"].to_numpy()),
    callbacks=[EarlyStopping(patience=5, restore_best_weights=True)],
)  # fmt: skip
print(model.report(encode(test), test["leaves"].to_numpy(), by={"plan": test["plan"].fillna("missing")}, verbose=0))


def one_hot(part: pd.DataFrame) -> np.ndarray:
    inputs = encode(part)
    sizes = [len(indices) + 1 for indices in encode.indices.values()]
    return np.hstack([inputs["numbers"], *(np.eye(n)[inputs["categories"][:, i]] for i, n in enumerate(sizes))])


baseline = LogisticRegression(max_iter=1000).fit(one_hot(train), train["leaves"])
print(f"Result: test accuracy = {model.evaluate(encode(test), test['leaves'].to_numpy(), verbose=0).accuracy:.4f}")
print(f"Result: test accuracy of logistic regression = {baseline.score(one_hot(test), test['leaves']):.4f}")
print(f"Result: parameters = {sum(p.numel() for p in net.parameters())}")
