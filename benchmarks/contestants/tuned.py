"""An optimized plain loop: sliced rows, a fused optimizer, and no synchronization in a step.

Data that cannot be sliced come from the loader. Images are decoded once.
"""

import torch


def make_batches(task):
    """Return a function that yields the batches of an epoch."""
    tensors = task.tensors
    if task.workload.kind == "images":
        samples = [task.dataset[i] for i in range(len(task.dataset))]
        tensors = torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])
    if tensors is None:
        return lambda: task.loader
    x, y = tensors
    if task.workload.verb == "fit":
        return lambda: ((x[rows], y[rows]) for rows in torch.randperm(len(x)).split(task.batch_size))
    return lambda: zip(x.split(task.batch_size), y.split(task.batch_size), strict=True)


def fit(task):
    optimizer, batches = task.optimizer(fused=True), make_batches(task)
    for _ in range(task.epochs):
        task.module.train()
        running_loss, correct, total = torch.zeros(()), torch.zeros((), dtype=torch.int64), 0
        for x, y in batches():
            optimizer.zero_grad()
            output = task.module(x)
            loss = task.loss(output, y)
            loss.backward()
            optimizer.step()
            running_loss += loss.detach() * len(y)
            correct += (output.argmax(1) == y).sum()
            total += len(y)
        print(f"Training loss: {running_loss.item() / total:.4f}, accuracy: {correct.item() / total:.4f}")
        task.tick()


def evaluate(task):
    batches = make_batches(task)

    def run():
        task.module.eval()
        running_loss, correct, total = torch.zeros(()), torch.zeros((), dtype=torch.int64), 0
        with torch.no_grad():
            for x, y in batches():
                output = task.module(x)
                running_loss += task.loss(output, y) * len(y)
                correct += (output.argmax(1) == y).sum()
                total += len(y)
        print(f"Test loss: {running_loss.item() / total:.4f}, accuracy: {correct.item() / total:.4f}")
        return correct.item() / total

    return run


def predict(task):
    batches = make_batches(task)

    def run():
        task.module.eval()
        with torch.no_grad():
            return torch.cat([task.module(x) for x, _ in batches()]).numpy()

    return run
