"""Lightning 2: https://lightning.ai/docs/pytorch/stable/starter/introduction.html. The Trainer has its defaults."""

import lightning as L
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torchmetrics.classification import MulticlassAccuracy


class Classifier(L.LightningModule):
    def __init__(self, task):
        super().__init__()
        self.task, self.module, self.loss = task, task.module, task.loss
        self.accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def training_step(self, batch, batch_idx):
        x, y = batch
        output = self.module(x)
        loss = self.loss(output, y)
        self.accuracy(output, y)
        self.log("loss", loss, prog_bar=True, on_epoch=True)
        self.log("accuracy", self.accuracy, prog_bar=True, on_epoch=True)
        return loss

    def test_step(self, batch, batch_idx):
        x, y = batch
        output = self.module(x)
        self.accuracy(output, y)
        self.log("test_loss", self.loss(output, y))
        self.log("test_accuracy", self.accuracy)

    def predict_step(self, batch, batch_idx):
        return self.module(batch[0])

    def configure_optimizers(self):
        return self.task.optimizer()


def fit(task):
    clock = LambdaCallback(on_train_epoch_end=lambda trainer, module: task.tick())
    trainer = L.Trainer(max_epochs=task.epochs, callbacks=[clock])
    trainer.fit(Classifier(task), task.loader)


def evaluate(task):
    model, trainer, loader = Classifier(task), L.Trainer(), task.loader
    return lambda: trainer.test(model, loader)[0]["test_accuracy"]


def predict(task):
    model, trainer, loader = Classifier(task), L.Trainer(), task.loader
    return lambda: torch.cat(trainer.predict(model, loader)).numpy()
