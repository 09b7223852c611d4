"""A small transformer that classifies sentences.

    python examples/text_classification.py [--quick] [--seed N]

The sentences are generated, so the program needs no download: opinions of films such as "the plot was not boring". A
negation turns the meaning of the next adjective. The baseline counts words and cannot see their order, but the
transformer can. Words become indices of a vocabulary of the training sentences: 0 is padding, and 1 is any other word.
Sentences of a batch are padded to its longest one. Attention and mean ignore the padding.
"""

import argparse
import random
import re

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a third of the sentences")
options.add_argument("--seed", type=int, default=0, help="random seed of the weights and the order of the sentences")
args = options.parse_args()
torch.manual_seed(args.seed)

GOOD, BAD = ["good", "funny", "clever", "touching", "brilliant"], ["boring", "silly", "weak", "loud", "dull"]
NOUNS = ["plot", "music", "cast", "ending", "story"]


def make_sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """Return sentences with the names of their classes."""
    rng = random.Random(seed)

    def make_clause(is_good: bool) -> str:
        is_negated = rng.random() < 0.5
        adjective = rng.choice(GOOD if is_good != is_negated else BAD)
        return f"the {rng.choice(NOUNS)} was {'not ' * is_negated}{rng.choice(['', 'really ', 'very '])}{adjective}"

    def make_sentence(is_good: bool) -> str:
        clauses = [make_clause(is_good) for _ in range(rng.randint(1, 3))]
        return f"{rng.choice(['', 'i think ', 'last night ', 'honestly '])}{' and '.join(clauses)}"

    labels = [rng.random() < 0.5 for _ in range(count)]
    return [(make_sentence(label), "positive" if label else "negative") for label in labels]


def split_words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


train, val = make_sentences(1000 if args.quick else 3000, 0), make_sentences(500, 1)
words = sorted({word for text, _ in train for word in split_words(text)})
vocabulary = {word: i for i, word in enumerate(words, 2)}
classes = ["negative", "positive"]


def encode(text: str) -> torch.Tensor:
    return torch.tensor([vocabulary.get(word, 1) for word in split_words(text)])


def collate(samples: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    texts, labels = zip(*samples, strict=True)
    tokens = pad_sequence([encode(text) for text in texts], batch_first=True)  # padded with 0
    return tokens, torch.tensor([classes.index(label) for label in labels])


class Classifier(nn.Module):
    def __init__(self, size: int, width: int = 32, longest: int = 64) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(size, width, padding_idx=0), nn.Embedding(longest, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        is_padding = tokens == 0
        x = self.layers(self.embedding(tokens) + self.position(positions), src_key_padding_mask=is_padding)
        counts = (~is_padding).unsqueeze(2)
        return self.head((x * counts).sum(1) / counts.sum(1))


loaders = [DataLoader(data, 32, shuffle=data is train, collate_fn=collate) for data in (train, val)]
models = {}
word_counts = nn.EmbeddingBag(len(words) + 2, 2, mode="sum", padding_idx=0)  # a weight for each word and class
for name, net in (("transformer", Classifier(len(words) + 2)), ("word counts", word_counts)):
    models[name] = easytorch.Model(net).compile("adamw", "cross_entropy", metrics=["accuracy"], lr=2e-3)
    models[name].fit(loaders[0], epochs=4, validation_data=loaders[1], verbose=2 if name == "transformer" else 0)

model = models["transformer"]
model.class_names = classes
for text in ("The music was really good", "The music was not really good", "the cast was not dull"):
    print(f"{text}: {model.predict_classes(encode(text)[None])[0]}")
for name, model in models.items():
    print(f"Result: validation accuracy of the {name} = {model.history['val_accuracy'][-1]:.4f}")
print(f"Result: parameters = {sum(p.numel() for p in models['transformer'].module.parameters())}")
