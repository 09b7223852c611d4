"""Tensors, products, gradients, one neuron, and a network (after E. Anello).

    python examples/tensors_to_network.py [--quick] [--seed N] [--plot curves.png] [--script]

The program checks every number of the article that can be reproduced. The article claims that ``view`` copies data, but
it shares the memory. Three linear layers without an activation equal one linear layer, so a ReLU comes between them.
The article does not train its network. Here it learns which of ten numbers has the largest absolute value. A linear
network cannot learn this: its best loss is log(10) = 2.303.
"""

import argparse
import itertools

import numpy as np
import torch
from torch import nn

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a tenth of the data")
options.add_argument("--seed", type=int, default=0, help="random seed of the data, the weights, and the order")
options.add_argument("--plot", metavar="FILE", help="write a figure of the three curves")
options.add_argument("--script", action="store_true", help="print the training as a plain PyTorch program instead")
args = options.parse_args()

# Tensors, products, and NumPy
square = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
product = square @ torch.tensor([[2, 3], [2, 3], [2, 3]])
assert product.tolist() == [[12, 18], [30, 45], [48, 72]]
assert (2 * square).tolist() == [[2, 4, 6], [8, 10, 12], [14, 16, 18]]
assert (torch.eye(3).numpy() == np.identity(3)).all()
assert square.view(1, 9).data_ptr() == square.data_ptr()  # shared memory
print("The product of a 3 x 3 and a 3 x 2 tensor:", product, sep="\n")

tensor = torch.from_numpy(array := np.ones(3))
array[0] = 7
print(f"What NumPy writes, the tensor sees: {tensor.tolist()}; and back it is a {type(tensor.numpy()).__name__}")

# Gradients: the slopes of x, x ** 2 and x ** 3 where x is 2
x = torch.tensor(2.0, requires_grad=True)
slopes = [int(torch.autograd.grad(x**power, x)[0]) for power in (1, 2, 3)]
print(f"The slopes at 2: {slopes}")
assert slopes == [1, 4, 12]

# One neuron, with the seed of the article
torch.manual_seed(7)
features, weights, bias = torch.randn(1, 10), torch.randn(1, 10), torch.randn(1, 1)
try:
    torch.sigmoid(features @ weights + bias)
except RuntimeError as error:
    print(f"Ten weights in a row do not fit ten features in a row: {error}")
neuron = torch.sigmoid(features @ weights.view(10, 1) + bias)
print(f"As a column they do: the neuron outputs {neuron.item():.4f}")
assert round(neuron.item(), 4) == 0.3030

# A network by hand: without activations the values grow
torch.manual_seed(args.seed)
sizes, hidden = (10, 20, 20, 10), torch.rand(1, 10)
for inputs, outputs in itertools.pairwise(sizes):
    hidden = hidden @ torch.rand(inputs, outputs) + torch.randn(1, outputs)
    print(f"{inputs} -> {outputs} by hand: up to {hidden.max():.0f}")


# The same network as a module, with training
def network(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(10, 20), activation(), nn.Linear(20, 20), activation(), nn.Linear(20, 10))


numbers = torch.randn(7000 if args.quick else 22000, 10)
labels = numbers.abs().argmax(1)  # 0 to 9
results = {"neuron": f"{neuron.item():.4f}"}
test, train = ((numbers[rows], labels[rows]) for rows in (slice(2000), slice(2000, None)))
for name, activation in {"without": nn.Identity, "with": nn.ReLU}.items():
    model = easytorch.Model(network(activation)).compile("adam", "cross_entropy", metrics=["accuracy"], lr=0.003)
    if args.script:
        print(model.to_script(*train, epochs=20))
        raise SystemExit
    print(f"\nThe network as a module, {name} a ReLU between its layers")
    model.fit(*train, epochs=10 if args.quick else 20, verbose=0)
    scores = model.evaluate(*test)
    results |= {f"test {key} {name} relu": f"{value:.4f}" for key, value in scores.items()}

results["parameters"] = model.summary().total_params
for name, value in results.items():
    print(f"Result: {name} = {value}")

if args.plot:
    from matplotlib.figure import Figure

    x = torch.linspace(-1, 1, 5000, requires_grad=True)
    figure = Figure(figsize=(15, 4), layout="constrained")
    for power, axis in enumerate(figure.subplots(1, 3), start=1):
        (slope,) = torch.autograd.grad((x**power).sum(), x)
        axis.plot(x.detach(), (x**power).detach(), label="the curve")
        axis.plot(x.detach(), slope, "--", label="its slope")
        axis.set(title=f"x to the power of {power}", xlabel="x")
        axis.legend()
    figure.savefig(args.plot, dpi=150)
