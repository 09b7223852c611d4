"""Train a digit classifier, evaluate it, save it, and load it again. It needs no download.

python examples/quickstart.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import easytorch

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)  # 1,797 real digits, 8 x 8 pixels of 0 to 16
x, x_test, y, y_test = train_test_split(images / 16, labels, test_size=0.2, random_state=0, stratify=labels)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),  # 64 pixels become an image of one channel
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout(0.3), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


model = easytorch.Model(network()).compile("adam", "cross_entropy", metrics=["accuracy"], lr=0.002)
model.fit(x, y, epochs=15, validation_split=0.1)
loss, accuracy = model.evaluate(x_test, y_test)
print(f"Test accuracy {accuracy:.4f}")

with TemporaryDirectory() as folder:
    path = model.save(Path(folder) / "digits.pt")
    # load also restores the settings of compile
    restored = easytorch.Model(network()).load(path)
    scores = restored.evaluate(x_test, y_test, verbose=0)
    print(f"Saved, loaded, and measured again: {scores.accuracy:.4f}")
    assert list(scores) == [loss, accuracy]

print("The first ten:", model.predict_classes(x_test[:10], verbose=0), "are", y_test[:10])
