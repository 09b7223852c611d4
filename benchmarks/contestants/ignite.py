"""ignite: https://docs.pytorch.org/ignite/quickstart.html. The progress bar is that of the handlers."""

import torch
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import EpochOutputStore
from ignite.handlers.tqdm_logger import ProgressBar
from ignite.metrics import Accuracy, Loss, RunningAverage


def fit(task):
    trainer = create_supervised_trainer(
        task.module,
        task.optimizer(),
        task.loss,
        output_transform=lambda x, y, y_pred, loss: (loss.item(), y_pred, y),
    )
    RunningAverage(output_transform=lambda output: output[0]).attach(trainer, "loss")
    Accuracy(output_transform=lambda output: output[1:]).attach(trainer, "accuracy")
    ProgressBar().attach(trainer, ["loss"])
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: task.tick())
    trainer.run(task.loader, max_epochs=task.epochs)


def evaluate(task):
    evaluator = create_supervised_evaluator(task.module, {"accuracy": Accuracy(), "loss": Loss(task.loss)})
    ProgressBar().attach(evaluator)
    loader = task.loader
    return lambda: evaluator.run(loader).metrics["accuracy"]


def predict(task):
    evaluator, store, loader = create_supervised_evaluator(task.module), EpochOutputStore(), task.loader
    store.attach(evaluator, "outputs")
    ProgressBar().attach(evaluator)
    return lambda: torch.cat([y_pred for y_pred, _ in evaluator.run(loader).outputs]).numpy()
