"""One small network in NumPy, by hand in torch, and with fit (after F. Shaikh).

    python examples/numpy_to_pytorch.py [--quick] [--seed N] [--plot losses.png] [--script]

The network learns three rows of four numbers in 5,000 epochs; a linear model then learns y = 2x from three points. The
torch code of the article updates the first bias with the gradient of the last one, and never uses the last bias. With
seeds such as 2 and 3 one of the three outputs stays wrong. This program runs the code as printed and corrected. The
gradients that the article computes by hand equal those of autograd, which ``fit`` uses.
"""

import argparse

import numpy as np
import torch
from torch import nn

import easytorch

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="fewer epochs of the tiny network")
options.add_argument("--seed", type=int, default=0, help="random seed")
options.add_argument("--plot", metavar="FILE", help="write a figure of the losses")
options.add_argument("--script", action="store_true", help="print the training as a plain PyTorch program instead")
args = options.parse_args()
torch.manual_seed(args.seed)

# Autograd: the gradients of x ** 2 + 3 y are 2 x and 3
x, y = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
z = x**2 + 3 * y
z.backward(torch.ones(5, 3), retain_graph=True)
assert all(map(torch.equal, (x.grad, y.grad), (2 * x, torch.full((5, 3), 3.0))))
assert all(map(torch.equal, torch.autograd.grad(z, (x, y), torch.ones(5, 3)), (x.grad, y.grad)))
print("The gradients are those of the textbook")

# A network of three hidden neurons, for three rows
rows = np.array([[1.0, 0, 1, 0], [1, 0, 1, 1], [0, 1, 0, 1]])
targets = np.array([[1.0], [1], [0]])
epochs = 1000 if args.quick else 5000
network = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 1), nn.Sigmoid()).double()
for parameter in network.parameters():  # all versions start from these weights
    nn.init.normal_(parameter)


def train_by_hand(x, y, weights, exp, as_printed=False):
    """Return the last outputs and the error of every epoch. The code is the same for NumPy arrays and torch tensors."""
    w1, b1, w2, b2 = weights
    errors = []
    for _ in range(epochs):
        hidden = 1 / (1 + exp(-(x @ w1.T + b1)))
        output = 1 / (1 + exp(-(hidden @ w2.T + (0 if as_printed else b2))))
        errors.append(float(((y - output) ** 2).mean()))
        output_delta = (y - output) * output * (1 - output)
        hidden_delta = output_delta @ w2 * hidden * (1 - hidden)
        w2 = w2 + 0.1 * output_delta.T @ hidden
        b2 = b2 + 0.1 * output_delta.sum(0)
        w1 = w1 + 0.1 * hidden_delta.T @ x
        b1 = b1 + 0.1 * (output_delta.sum() if as_printed else hidden_delta.sum(0))
    return output, errors


def half_squared_error(y_pred, y):
    # Its gradient is the one that train_by_hand computes
    return ((y_pred - y) ** 2).sum() / 2


weights = [parameter.detach() for parameter in network.parameters()]
tensors = torch.from_numpy(rows), torch.from_numpy(targets)
model = easytorch.Model(network).compile("sgd", half_squared_error, metrics=["mse"], lr=0.1)
if args.script:
    print(model.to_script(rows, targets, epochs=epochs, batch_size=3, shuffle=False))
    raise SystemExit
runs = {
    "NumPy": train_by_hand(rows, targets, [weight.numpy() for weight in weights], np.exp),
    "torch by hand, as printed": train_by_hand(*tensors, weights, torch.exp, as_printed=True),
    "torch by hand, corrected": train_by_hand(*tensors, weights, torch.exp),
}
history = model.fit(rows, targets, epochs=epochs, batch_size=3, shuffle=False, verbose=0)  # changes the weights
runs["torch with fit"] = model.predict(rows, verbose=0), history["mse"]
for name, (output, _) in runs.items():
    print(f"{name:25} predicts {', '.join(f'{float(value):.3f}' for value in output.ravel())}")
assert np.allclose(runs["NumPy"][1], history["mse"], rtol=1e-4)

# Linear regression: y = 2 x, from three points
points, line = np.array([[1.0], [2], [3]]), nn.Linear(1, 1)
model = easytorch.Model(line).compile("sgd", nn.MSELoss(reduction="sum"), lr=0.01)
model.fit(points, 2 * points, epochs=500, batch_size=3, verbose=0)
print(f"y = {line.weight.item():.3f} x + {line.bias.item():.3f}")
for name, (_, errors) in runs.items():
    print(f"Result: mse of {name.lower().replace(',', '')} = {errors[-1]:.6f}")
print(f"Result: f(4) = {model.predict(np.array([[4.0]]), verbose=0).item():.4f}")

if args.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3), layout="constrained")
    for axis, (name, (_, errors)) in zip(figure.subplots(1, 4, sharey=True), runs.items(), strict=True):
        axis.set(title=name, xlabel="epoch", yscale="log")
        axis.plot(errors)
    figure.savefig(args.plot, dpi=150)
