"""A convolutional network on MNIST with best-weight checkpoints and cross-validation (after a notebook of E. Anello).

    python examples/skorch_peer.py [--quick] [--seed N] [--precision bf16] [--plot confusion.png]

The network trains for ten epochs with Adam and batches of 64; a fifth of the training images is the validation set. The
notebook reaches 0.9909 test accuracy and 0.987 on average in five folds. Fixes to the notebook: training images are
shuffled, Dropout replaces Dropout2d for rows of features, and ModelCheckpoint saves the best weights by validation
loss. The learning rate falls to zero along a cosine; with a constant rate, in float32, seed 0 reached 0.9908 test
accuracy and 0.9906 in the folds.
"""

import argparse
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import StratifiedKFold
from torch import nn
from torch.utils.data import Dataset, Subset
from torchvision import datasets, transforms

import easytorch
from easytorch.callbacks import ModelCheckpoint

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a twentieth of the data, two epochs, one epoch in the folds")
options.add_argument(
    "--seed", type=int, default=0, help="random seed of the weights, the order of the images, and the folds"
)
options.add_argument(
    "--precision", default="fp32", help="bf16 needs a quarter of the time on hardware that supports it"
)
options.add_argument("--plot", metavar="FILE", help="write a figure of the confusion matrix")
args = options.parse_args()
torch.manual_seed(args.seed)


def mnist(train: bool, quick_size: int) -> Dataset:
    root, to_tensor = os.environ.get("EASYTORCH_DATA", "data"), transforms.ToTensor()
    data = datasets.MNIST(root, train=train, download=True, transform=to_tensor)
    return easytorch.data.in_memory(Subset(data, range(quick_size)) if args.quick else data)


def new_model() -> easytorch.Model:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(16, 32, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(), nn.Dropout2d(0.4),
        nn.Flatten(), nn.Linear(1568, 50), nn.ReLU(), nn.Dropout(0.2), nn.Linear(50, 10),
    )  # fmt: skip
    model = easytorch.Model(net)
    return model.compile("adam", "cross_entropy", metrics=["accuracy"], scheduler="cosine", precision=args.precision)


train, test = mnist(True, 3000), mnist(False, 1000)
targets = easytorch.data.targets_of(train)

model = new_model()
with TemporaryDirectory() as folder:
    checkpoint = ModelCheckpoint(Path(folder) / "best.pt", monitor="val_loss", save_best_only=True)
    model.fit(train, epochs=2 if args.quick else 10, batch_size=64, validation_split=0.2, callbacks=[checkpoint])
    model.load_weights(checkpoint.best_path)
accuracy = model.evaluate(test, batch_size=250).accuracy
confusion = confusion_matrix(easytorch.data.targets_of(test), model.predict_classes(test, verbose=0))
print(f"The best epoch has a validation loss of {checkpoint.best:.4f}. Rows are digits, columns are predictions:")
print(confusion)
print(f"Result: test accuracy = {accuracy:.4f}")
print(f"Result: parameters = {sum(p.numel() for p in model.module.parameters())}")

accuracies = []
folds = StratifiedKFold(5, shuffle=True, random_state=args.seed).split(targets, targets)
for fold, (train_rows, test_rows) in enumerate(folds):
    history = new_model().fit(Subset(train, train_rows), epochs=1 if args.quick else 10, batch_size=64, verbose=0)
    accuracies.append(history.evaluate(Subset(train, test_rows), batch_size=250, verbose=0).accuracy)
    print(f"Fold {fold + 1} of 5: {accuracies[-1]:.4f}")
print(f"Result: cross-validated accuracy = {np.mean(accuracies):.4f}")

if args.plot:
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    figure = Figure(figsize=(6, 6), layout="constrained")
    ConfusionMatrixDisplay(confusion).plot(ax=figure.subplots(), colorbar=False, cmap="Blues")
    figure.savefig(args.plot, dpi=150)
