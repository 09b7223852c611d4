"""Modules that take the targets and return losses: detectors, and language models that shift the labels."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from easytorch import EpochMetric, Model
from tests.loops import blobs, same_weights, twins

X, Y = blobs(48)


class Detector(nn.Module):
    """Takes a list of images; returns losses in train mode and a dict for each image in eval mode, as those of torchvision.

    It draws a random number for each batch of losses, as samplers of anchors do.
    """

    def __init__(self):
        super().__init__()
        self.body = Body()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, images, targets=None):
        assert isinstance(images, list)
        features = self.body(torch.stack([image.mean((1, 2)) for image in images]))
        features = self.norm(features)
        if not self.training:
            return [{"boxes": row.repeat(i + 1, 1)} for i, row in enumerate(features)]
        assert targets is not None, "targets should not be none when in training mode"
        boxes = torch.stack([target["boxes"].mean(0) for target in targets])
        return {"loss_box": F.l1_loss(features, boxes) * (1 + torch.rand(())), "loss_size": features.square().mean()}


class Body(nn.Module):
    """A part with layers, whose mode decides nothing."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))

    def forward(self, x):
        return self.layers(x)


def images(count=8):
    generator = torch.Generator().manual_seed(0)
    samples = []
    for i in range(count):
        target = {"boxes": torch.rand(1 + i % 2, 3, generator=generator)}
        samples.append((torch.rand(3, 4 + i % 3, 5, generator=generator), target))
    return samples


def collate(samples):
    return tuple(zip(*samples, strict=True))


def loader(batch_size=2):
    return DataLoader(images(), batch_size, collate_fn=collate)


def test_a_detector_trains_as_in_the_hand_written_loop():
    torch.manual_seed(0)
    net, plain = twins(Detector())
    torch.manual_seed(1)
    history = Model(net, device="cpu").compile("sgd", lr=0.1).fit(loader(3), epochs=2, verbose=0)
    torch.manual_seed(1)
    optimizer, sums, plain_means = torch.optim.SGD(plain.parameters(), 0.1), {}, []
    for _ in range(2):
        total = 0.0
        for pictures, targets in loader(3):
            sums = plain(list(pictures), list(targets))
            loss = sum(sums.values())
            total += loss.item() * len(pictures)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        plain_means.append(total / 8)
    assert same_weights(net, plain)
    assert history["loss"] == pytest.approx(plain_means, abs=1e-6)
    parts = [box + size for box, size in zip(history["loss_box"], history["loss_size"], strict=True)]
    assert history["loss"] == pytest.approx(parts, abs=1e-6)


def test_losses_of_a_detector_are_measured_in_an_evaluation():
    """The losses need train mode, while BatchNorm and dropout compute as in eval mode, and nothing changes."""
    torch.manual_seed(0)
    net = Detector()
    model = Model(net, device="cpu").compile("sgd", lr=0.1)
    batches = list(loader())  # a loader draws a seed
    before, rng = {key: value.clone() for key, value in net.state_dict().items()}, torch.get_rng_state()
    loss = model.evaluate(batches, verbose=0)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert net.training == net.norm.training
    total = 0.0
    for pictures, _ in loader():
        features = net.eval().norm(net.body(torch.stack([image.mean((1, 2)) for image in pictures])))
        total += features.square().mean().item() * len(pictures)
    assert loss["loss_size"] == pytest.approx(total / 8, abs=1e-6)


def test_validation_does_not_change_the_training_of_a_detector():
    def train(**options):
        torch.manual_seed(0)
        model = Model(Detector(), device="cpu").compile("sgd", lr=0.1)
        model.fit(loader(), epochs=2, verbose=0, **options)
        return model

    validated, plain = train(validation_data=list(loader())), train()
    assert same_weights(validated.module, plain.module)
    assert {"val_loss", "val_loss_box", "val_loss_size"} <= set(validated.history.history)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_list_of_images_is_one_argument(batch_size):
    outputs = Model(Detector(), device="cpu").predict(loader(batch_size), verbose=0)
    assert len(outputs) == 8
    assert all(set(output) == {"boxes"} for output in outputs)


def test_images_without_targets_are_predicted():
    pictures = [image for image, _ in images(3)]
    assert len(Model(Detector(), device="cpu").predict([(pictures,)], verbose=0)) == 3


def test_a_metric_of_detections_is_measured_in_evaluations():
    def count_boxes(y_pred, y):
        assert len(y_pred) == len(y) == 8
        return sum(len(prediction["boxes"]) for prediction in y_pred) / sum(len(target["boxes"]) for target in y)

    def fit(**options):
        metrics = [EpochMetric(count_boxes)]
        model = Model(Detector(), device="cpu").compile("sgd", metrics=metrics, **options)
        return model.fit(loader(), validation_data=loader(), verbose=0)

    assert fit(validation_only=["count_boxes"])["val_count_boxes"] == [1.0]
    with pytest.raises(ValueError, match=r"returns only losses.*validation_only=\[\.\.\.\]"):
        fit()


def test_a_loss_for_a_detector_names_the_fix():
    model = Model(Detector(), device="cpu").compile("sgd", lambda y_pred, y: sum(y_pred.values()))
    with pytest.raises(ValueError, match=r"(?s)Detector computes its loss .*needs 'targets'.*Leave the loss out"):
        model.fit(loader(), verbose=0)


def test_check_and_export_of_a_detector(tmp_path):
    model = Model(Detector(), device="cpu").compile("sgd", lr=0.01)
    assert "training_step" not in str(model.check(loader()))
    with pytest.raises(ValueError, match="received a list with an array for each"):
        model.export(tmp_path / "net.pt2", loader())


class Classifier(nn.Module):
    """Takes optional labels, as the models of transformers do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, features, scale=None, labels=None):
        logits = self.layer(features if scale is None else features * scale)
        return {"logits": logits} | ({} if labels is None else {"loss": F.cross_entropy(logits, labels)})


def test_targets_of_a_pair_become_the_argument_labels():
    net, other = twins(Classifier())
    history = (
        Model(net, device="cpu").compile("sgd", lr=0.1).fit(X, Y, shuffle=False, validation_data=(X, Y), verbose=0)
    )
    expected = (
        Model(other, device="cpu")
        .compile("sgd", lr=0.1)
        .fit({"features": X, "labels": Y}, shuffle=False, validation_data={"features": X, "labels": Y}, verbose=0)
    )
    assert same_weights(net, other)
    assert history.history == expected.history
    assert set(Model(net, device="cpu").predict((X, Y)[0], verbose=0)) == {"logits"}


def test_a_custom_step_gets_inputs_without_targets():
    class Custom(Model):
        def train_step(self, batch):
            x, y, _ = self.unpack(batch)
            assert torch.is_tensor(x)
            return {"loss": F.cross_entropy(self(x)["logits"], y)}

    Custom(Classifier(), device="cpu").compile("sgd").fit(X, Y, verbose=0)


class Language(nn.Module):
    """Compares each output with the label of the next token, or of the same one."""

    def __init__(self, shifts):
        super().__init__()
        self.table, self.shifts = nn.Embedding(11, 11), shifts

    def forward(self, tokens, labels=None):
        logits = self.table(tokens)
        if labels is None:
            return {"logits": logits}
        outputs, targets = (logits[:, :-1], labels[:, 1:]) if self.shifts else (logits, labels)
        return {"loss": F.cross_entropy(outputs.flatten(0, 1), targets.flatten()), "logits": logits}


def texts():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(11, (10, 6), generator=generator)
    lengths = torch.tensor([6, 2, 3, 5, 2, 2, 6, 4, 3, 6])
    return tokens, torch.where(torch.arange(6) < lengths[:, None], tokens, -100)


@pytest.mark.parametrize("shifts", [True, False])
def test_labels_are_counted_as_the_module_counts_them(shifts):
    tokens, labels = texts()
    net = Language(shifts)
    model = Model(net, device="cpu").compile("sgd", lr=0.1)
    loss = model.evaluate({"tokens": tokens, "labels": labels}, batch_size=3, verbose=0)["loss"]
    assert loss == pytest.approx(net(tokens, labels)["loss"].item(), abs=1e-6)


def test_accumulated_texts_equal_one_batch_after_an_evaluation():
    tokens, labels = texts()
    data = {"tokens": tokens, "labels": labels}
    net, plain = twins(Language(True))
    model = Model(net, device="cpu").compile("sgd", lr=0.1, gradient_accumulation_steps=4)
    model.fit(data, epochs=2, batch_size=3, shuffle=False, validation_data=data, verbose=0)
    Model(plain, device="cpu").compile("sgd", lr=0.1).fit(data, epochs=2, batch_size=10, verbose=0)
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=0, atol=1e-6)


def test_a_first_update_with_wrong_weights_is_a_warning():
    tokens, labels = texts()
    model = Model(Language(True), device="cpu").compile("sgd", lr=0.1, gradient_accumulation_steps=4)
    with pytest.warns(UserWarning, match=r"The first update weighted .*the next label.*call evaluate\(\) before fit"):
        model.fit({"tokens": tokens, "labels": labels}, batch_size=3, shuffle=False, verbose=0)
