"""A small transformer that generates text, trained on the language reference of Python.

    python examples/transformer_text.py [--quick] [--seed N] [--plot text.png]

The text of ``help("if")`` and similar topics has 465,000 characters and is part of every Python installation. The
network sees 64 characters and predicts the next character at each position. The last tenth of the text is for
validation. The baseline counts character pairs. The loss is the cross-entropy of [N, characters, length], and
"accuracy" counts every character.
"""

import argparse
import math
from pydoc_data.topics import topics

import torch
from torch import nn

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a fifth of the text, a network of half the width")
options.add_argument(
    "--seed", type=int, default=0, help="random seed of the weights, the order of the windows, and the generated text"
)
options.add_argument("--plot", metavar="FILE", help="write a figure of the loss and the accuracy")
args = options.parse_args()
torch.manual_seed(args.seed)

text = "\n".join(topics[name] for name in sorted(topics))[: 100_000 if args.quick else None]
letters = sorted(set(text))
index = {letter: i for i, letter in enumerate(letters)}
codes = torch.tensor([index[letter] for letter in text])
train_size, length = len(codes) * 9 // 10, 64


def windows(codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return windows of the text, and the next letter at each of their positions."""
    rows = codes.unfold(0, length + 1, length)
    return rows[:, :-1], rows[:, 1:]


class Writer(nn.Module):
    def __init__(self, width: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(len(letters), width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, len(letters))

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(codes.shape[1], device=codes.device)
        future = torch.ones(len(positions), len(positions), dtype=torch.bool, device=codes.device).triu(1)
        x = self.layers(self.embedding(codes) + self.position(positions), mask=future, is_causal=True)
        # [N, letters, length], because cross-entropy expects the classes in the second dimension
        return self.head(x).transpose(1, 2)


model = easytorch.Model(Writer(64 if args.quick else 128))
model.compile("adamw", "cross_entropy", metrics=["accuracy"], lr=4e-3, scheduler="warmup_cosine", clip_grad_norm=1.0)
data = windows(codes[:train_size])
settings = {"epochs": 4 if args.quick else 8, "batch_size": 16, "validation_data": windows(codes[train_size:])}
model.fit(data, **settings, dry_run=True)  # one batch of everything, and no trace of it
model.fit(data, **settings)
bits = model.history["val_loss"][-1] / math.log(2)

# Each count starts at one, so no pair has the probability zero
pairs = torch.ones(len(letters), len(letters))
pairs.index_put_((codes[: train_size - 1], codes[1:train_size]), torch.ones(train_size - 1), accumulate=True)
baseline = -(pairs / pairs.sum(1, keepdim=True))[codes[train_size:-1], codes[train_size + 1 :]].log2().mean()
print(f"A letter needs {baseline:.2f} bits with counts of letter pairs, and {bits:.2f} bits with the network")


def write(text: str, count: int, temperature: float = 0.7) -> str:
    """Return ``text`` followed by ``count`` sampled letters."""
    codes = torch.tensor([index[letter] for letter in text])
    for _ in range(count):
        logits = torch.from_numpy(model.predict_on_batch(codes[None, -length:]))[0, :, -1]
        codes = torch.cat([codes, (logits / temperature).softmax(0).multinomial(1)])
    return "".join(letters[code] for code in codes)


print(f"\n{write('The function ', 100 if args.quick else 500)}\n")
print(f"Result: bits per letter = {bits:.4f}")
print(f"Result: bits per letter by counting pairs = {baseline:.4f}")
print(f"Result: validation accuracy = {model.history['val_accuracy'][-1]:.4f}")
print(f"Result: parameters = {sum(p.numel() for p in model.module.parameters())}")
if args.plot:
    model.history.plot(path=args.plot)
