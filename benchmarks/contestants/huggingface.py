"""Trainer of transformers: https://huggingface.co/docs/transformers/main_classes/trainer. The model returns its loss."""

from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments


class WithLoss(nn.Module):
    def __init__(self, task):
        super().__init__()
        self.module, self.loss = task.module, task.loss

    def forward(self, x, labels):
        logits = self.module(x)
        return {"loss": self.loss(logits, labels), "logits": logits}


class Samples(Dataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        x, y = self.dataset[index]
        return {"x": x, "labels": y}


class Clock(TrainerCallback):
    def __init__(self, tick):
        self.tick = tick

    def on_epoch_end(self, *args, **kwargs):
        self.tick()


def fit(task):
    args = TrainingArguments(
        output_dir="trainer",
        per_device_train_batch_size=task.batch_size,
        num_train_epochs=task.epochs,
        lr_scheduler_type="constant",
        use_cpu=True,
    )
    trainer = Trainer(
        WithLoss(task),
        args,
        train_dataset=Samples(task.dataset),
        optimizers=(task.optimizer(), None),
        callbacks=[Clock(task.tick)],
    )
    trainer.train()
