"""A small transformer learns to write, letter by letter, from the language reference that comes with Python.

    python examples/transformer_text.py [--quick] [--seed N] [--plot text.png]

The text behind ``help("if")`` and its like is 465,000 letters long and there wherever Python is. The network sees 64 letters
and says for each of them which one comes next; the last tenth of the text is held back. Counting which letter follows which
is the number to beat. The loss is the cross-entropy of [N, letters, length], and "accuracy" counts every letter.
"""

import argparse
import math
from pydoc_data.topics import topics

import torch
from torch import nn

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a fifth of the text, a network of half the width")
options.add_argument("--seed", type=int, default=0, help="of the weights, the order of the pieces and what is written")
options.add_argument("--plot", metavar="FILE", help="write the figure of the loss and the accuracy")
args = options.parse_args()
torch.manual_seed(args.seed)

text = "\n".join(topics[name] for name in sorted(topics))[: 100_000 if args.quick else None]
letters = sorted(set(text))
number = {letter: i for i, letter in enumerate(letters)}
codes = torch.tensor([number[letter] for letter in text])
cut, length = len(codes) * 9 // 10, 64


def pieces(codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pieces of the text, and beside each letter of them the one that follows."""
    windows = codes.unfold(0, length + 1, length)
    return windows[:, :-1], windows[:, 1:]


class Writer(nn.Module):
    def __init__(self, width: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(len(letters), width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, len(letters))

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        places = torch.arange(codes.shape[1], device=codes.device)
        future = torch.ones(len(places), len(places), dtype=torch.bool, device=codes.device).triu(1)
        x = self.layers(self.letter(codes) + self.place(places), mask=future, is_causal=True)
        return self.head(x).transpose(1, 2)  # [N, letters, length]: classes come second, as the loss wants them


model = easytorch.Model(Writer(64 if args.quick else 128))
model.compile("adamw", "cross_entropy", metrics=["accuracy"], lr=4e-3, scheduler="warmup_cosine", clip_grad_norm=1.0)
model.fit(pieces(codes[:cut]), epochs=4 if args.quick else 8, batch_size=16, validation_data=pieces(codes[cut:]))
bits = model.history["val_loss"][-1] / math.log(2)

pairs = torch.ones(len(letters), len(letters))  # one of each, so that none is impossible
pairs.index_put_((codes[: cut - 1], codes[1:cut]), torch.ones(cut - 1), accumulate=True)
counted = -(pairs / pairs.sum(1, keepdim=True))[codes[cut:-1], codes[cut + 1 :]].log2().mean()
print(f"A letter takes {counted:.2f} bits if one counts which follows which, and {bits:.2f} bits from the network")


def write(text: str, count: int, temperature: float = 0.7) -> str:
    """Return ``text``, continued by ``count`` letters, one drawn after the other."""
    codes = torch.tensor([number[letter] for letter in text])
    for _ in range(count):
        logits = torch.from_numpy(model.predict_on_batch(codes[None, -length:]))[0, :, -1]
        codes = torch.cat([codes, (logits / temperature).softmax(0).multinomial(1)])
    return "".join(letters[code] for code in codes)


print(f"\n{write('The function ', 100 if args.quick else 500)}\n")
print(f"Result: bits per letter = {bits:.4f}")
print(f"Result: bits per letter by counting pairs = {counted:.4f}")
print(f"Result: validation accuracy = {model.history['val_accuracy'][-1]:.4f}")
print(f"Result: parameters = {sum(p.numel() for p in model.module.parameters())}")
if args.plot:
    model.history.plot(path=args.plot)
