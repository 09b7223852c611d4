"""Domain-adversarial training: labels for one domain, and a network that works in another.

    python examples/adversarial.py [--quick] [--seed N] [--plot domains.png]

Two half moons have labels. The same moons, rotated by 35 degrees, have none. A discriminator learns to separate the features
of the two domains. The network learns the labels, and features that the discriminator cannot separate (Ganin et al., 2016).
``network_step`` and ``domain_step`` each return the loss of their optimizer. The result is the accuracy on the rotated
moons, with and without the discriminator.
"""

import argparse
import math

import torch
import torch.nn.functional as F
from sklearn.datasets import make_moons
from torch import nn

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="two thirds of the epochs")
options.add_argument("--seed", type=int, default=0, help="random seed")
options.add_argument("--plot", metavar="FILE", help="write a figure of the accuracy after each epoch")
args = options.parse_args()


def make_domains(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, y = make_moons(1000, noise=0.05, random_state=seed)
    source, labels = torch.tensor(x - x.mean(0), dtype=torch.float32), torch.tensor(y)
    sine, cosine = math.sin(math.radians(35)), math.cos(math.radians(35))
    return source, labels, source @ torch.tensor([[cosine, sine], [-sine, cosine]])


class Domains(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        body = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.network = nn.ModuleDict({"body": body, "head": nn.Linear(32, 2)})
        self.domain = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network["head"](self.network["body"](x))


class Adversarial(easytorch.Model):
    weight = 0.5

    def network_step(self, batch):
        (source, target), y, _ = self.unpack(batch)
        features = self.module.network["body"](torch.cat([source, target]))
        cross_entropy = F.cross_entropy(self.module.network["head"](features[: len(y)]), y)
        return {"loss": cross_entropy - self.weight * self.domain_loss(features), "cross_entropy": cross_entropy}

    def domain_step(self, batch):
        source, target = self.unpack(batch).x
        return {"loss": self.domain_loss(self.module.network["body"](torch.cat([source, target])).detach())}

    def domain_loss(self, features):
        is_target = (torch.arange(len(features), device=self.device) >= len(features) / 2).float()
        return F.binary_cross_entropy_with_logits(self.module.domain(features)[:, 0], is_target)

    def test_step(self, batch):
        x, y, _ = self.unpack(batch)
        return {"accuracy": (self(x).argmax(1) == y).float().mean()}


source, labels, target = make_domains(args.seed)
test_source, test_labels, test_target = make_domains(args.seed + 100)
curves = {}
for name, weight in (("alone", 0.0), ("against the discriminator", 0.5)):
    torch.manual_seed(args.seed)
    model = Adversarial(Domains()).compile({"domain": "adam", "network": "adam"}, lr=5e-3)
    model.weight = weight
    history = model.fit(
        (source, target), labels, epochs=100 if args.quick else 150, batch_size=100, verbose=0,
        validation_data=(test_target, test_labels),
    )  # fmt: skip
    curves[name] = history["val_accuracy"]
    (on_source,) = model.evaluate(test_source, test_labels, verbose=0)
    print(f"Result: accuracy with labels {name} = {on_source:.4f}")
    print(f"Result: accuracy without labels {name} = {sum(curves[name][-10:]) / 10:.4f}")
print(f"Result: parameters = {sum(p.numel() for p in model.module.parameters())}")
if args.plot:
    import matplotlib.pyplot as plt

    for name, curve in curves.items():
        plt.plot(curve, label=name)
    plt.legend()
    plt.savefig(args.plot)
