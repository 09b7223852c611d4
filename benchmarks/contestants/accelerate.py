"""Accelerate: https://huggingface.co/docs/accelerate/basic_tutorials/migration. The plain loop with Accelerate."""

import torch
from accelerate import Accelerator


def fit(task):
    accelerator = Accelerator()
    module, optimizer, loader = accelerator.prepare(task.module, task.optimizer(), task.loader)
    for _ in range(task.epochs):
        module.train()
        running_loss, correct, total = 0.0, 0, 0
        for x, y in loader:
            optimizer.zero_grad()
            output = module(x)
            loss = task.loss(output, y)
            accelerator.backward(loss)
            optimizer.step()
            running_loss += loss.item()
            correct += (output.argmax(1) == y).sum().item()
            total += len(y)
        accelerator.print(f"Training loss: {running_loss / len(loader):.4f}, accuracy: {correct / total:.4f}")
        task.tick()


def evaluate(task):
    accelerator = Accelerator()
    module, loader = accelerator.prepare(task.module, task.loader)

    def run():
        module.eval()
        running_loss, correct, total = 0.0, 0, 0
        for x, y in loader:
            with torch.no_grad():
                output = module(x)
            running_loss += task.loss(output, y).item()
            output, y = accelerator.gather_for_metrics((output, y))
            correct += (output.argmax(1) == y).sum().item()
            total += len(y)
        accelerator.print(f"Test loss: {running_loss / len(loader):.4f}, accuracy: {correct / total:.4f}")
        return correct / total

    return run


def predict(task):
    accelerator = Accelerator()
    module, loader = accelerator.prepare(task.module, task.loader)

    def run():
        module.eval()
        with torch.no_grad():
            return torch.cat([accelerator.gather_for_metrics(module(x)) for x, _ in loader]).numpy()

    return run
