"""The plain loop of the articles 002 and 004, which is the reference."""

import torch


def fit(task):
    optimizer, loader = task.optimizer(), task.loader
    for _ in range(task.epochs):
        task.module.train()
        running_loss, correct, total = 0.0, 0, 0
        for x, y in loader:
            optimizer.zero_grad()
            output = task.module(x)
            loss = task.loss(output, y)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            correct += (output.argmax(1) == y).sum().item()
            total += len(y)
        print(f"Training loss: {running_loss / len(loader):.4f}, accuracy: {correct / total:.4f}")
        task.tick()


def evaluate(task):
    loader = task.loader

    def run():
        task.module.eval()
        running_loss, correct, total = 0.0, 0, 0
        with torch.no_grad():
            for x, y in loader:
                output = task.module(x)
                running_loss += task.loss(output, y).item()
                correct += (output.argmax(1) == y).sum().item()
                total += len(y)
        print(f"Test loss: {running_loss / len(loader):.4f}, accuracy: {correct / total:.4f}")
        return correct / total

    return run


def predict(task):
    loader = task.loader

    def run():
        task.module.eval()
        with torch.no_grad():
            return torch.cat([task.module(x) for x, _ in loader]).numpy()

    return run
