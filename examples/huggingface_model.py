"""A Hugging Face model that computes its own loss: a small BERT classifies digits as sentences.

    python examples/huggingface_model.py [--quick] [--seed N] [--plot losses.png]

Each of the 1,797 digits of scikit-learn has 8 x 8 pixels. Its sentence is the list of the positions of the 20 darkest
pixels, so the vocabulary has 64 words. ``compile`` gets no loss, because the output of the module contains it. The data
are dicts, whose entries are passed to the arguments of the same name. The model has random weights, so nothing is
downloaded. Without the package ``transformers`` (``pip install transformers``), a module of torch with the same
arguments and outputs is used.
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="fewer epochs")
options.add_argument(
    "--seed", type=int, default=0, help="random seed of the split, the weights, and the order of the digits"
)
options.add_argument("--plot", metavar="FILE", help="write a figure of the loss and the accuracy")
args = options.parse_args()
torch.manual_seed(args.seed)


class Reader(nn.Module):
    """A transformer with the arguments and the outputs of a Hugging Face model."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(64, width), nn.Parameter(0.02 * torch.randn(20, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.head(self.layers(self.embedding(input_ids) + self.position).mean(1))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def network() -> nn.Module:
    try:
        from transformers import BertConfig, BertForSequenceClassification
    except ImportError:
        return Reader()
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    sizes |= {"vocab_size": 64, "max_position_embeddings": 20, "num_labels": 10}
    # The default initializer_range of 0.02 is for a width of 768
    return BertForSequenceClassification(BertConfig(**sizes, initializer_range=0.1))


pixels, labels = load_digits(return_X_y=True)
words = np.sort(pixels.argsort(1, kind="stable")[:, -20:])  # [1797, 20], positions from 0 to 63
x, x_test, y, y_test = train_test_split(words, labels, test_size=0.2, random_state=args.seed, stratify=labels)
train, test = {"input_ids": x, "labels": y}, {"input_ids": x_test, "labels": y_test}

net = network()
print(f"The module is a {type(net).__name__} of {type(net).__module__.partition('.')[0]}")
model = easytorch.Model(net).compile(
    "adamw", metrics=["multiclass_accuracy"], lr=2e-3, scheduler="warmup_cosine", clip_grad_norm=1.0
)
model.fit(train, epochs=8 if args.quick else 20, batch_size=32, validation_data=test)
scores = model.evaluate(test)

# Without labels the output has logits but no loss
outputs = model.predict({"input_ids": x_test}, verbose=0)
assert (outputs["logits"].argmax(1) == y_test).mean() == scores.multiclass_accuracy
print(f"Result: test accuracy = {scores.multiclass_accuracy:.4f}")
print(f"Result: parameters = {sum(p.numel() for p in net.parameters())}")
if args.plot:
    model.history.plot(path=args.plot)
