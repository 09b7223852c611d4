"""Classification, detection and segmentation of torchvision, with random weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from easytorch import EpochMetric, Model
from tests.loops import same_weights

pytestmark = pytest.mark.slow


def detector():
    from torchvision.models.detection import FasterRCNN, faster_rcnn
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()
    )
    backbone.out_channels = 8
    counts = {f"rpn_{when}_nms_top_n_{mode}": 20 for when in ("pre", "post") for mode in ("train", "test")}
    return FasterRCNN(
        backbone, min_size=32, max_size=48, rpn_anchor_generator=AnchorGenerator(((8, 16),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2), box_head=faster_rcnn.TwoMLPHead(8 * 9, 16),
        box_predictor=faster_rcnn.FastRCNNPredictor(16, 3), **counts,
    )  # fmt: skip


def images(count=10):
    samples = []
    for i in range(count):
        generator = torch.Generator().manual_seed(i)
        corner = torch.rand(1 + i % 2, 2, generator=generator) * 16
        boxes = torch.cat([corner, corner + 10], 1)
        labels = torch.randint(1, 3, (len(boxes),), generator=generator)
        samples.append((torch.rand(3, 32 + 8 * (i % 3), 40, generator=generator), {"boxes": boxes, "labels": labels}))
    return samples


def loader(**options):
    return DataLoader(images(), 4, collate_fn=lambda samples: tuple(zip(*samples, strict=True)), **options)


def test_a_detector_trains_as_in_the_hand_written_loop():
    net = detector()
    plain = copy.deepcopy(net)
    torch.manual_seed(1)
    history = (
        Model(net, device="cpu").compile("sgd", lr=0.01, momentum=0.9).fit(loader(shuffle=True), epochs=2, verbose=0)
    )
    torch.manual_seed(1)
    optimizer, means = torch.optim.SGD(plain.parameters(), 0.01, momentum=0.9), []
    batches = loader(shuffle=True)
    for _ in range(2):
        total = 0.0
        for pictures, targets in batches:
            losses = plain(list(pictures), list(targets))
            loss = sum(losses.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(pictures)
        means.append(total / 10)
    assert same_weights(net, plain)
    assert history["loss"] == pytest.approx(means, abs=1e-6)
    assert {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"} <= set(history.history)


def test_detections_are_validated_and_predicted(tmp_path):
    from torchmetrics.detection import IntersectionOverUnion

    def boxes_per_image(y_pred, y):
        assert all(set(target) == {"boxes", "labels"} for target in y)
        return sum(len(prediction["boxes"]) for prediction in y_pred) / len(y)

    torch.manual_seed(0)
    model = Model(detector(), device="cpu")
    model.compile(
        "sgd", lr=0.01, metrics=[EpochMetric(boxes_per_image), IntersectionOverUnion()],
        validation_only=["boxes_per_image", "intersection_over_union"],
    )  # fmt: skip
    before = copy.deepcopy(model.module.state_dict())
    scores = model.evaluate(loader(), verbose=0, return_dict=True)
    assert all(torch.equal(before[key], value) for key, value in model.module.state_dict().items())
    history = model.fit(loader(), validation_data=loader(), verbose=0)
    assert scores["loss"] == pytest.approx(sum(scores[name] for name in scores if name.startswith("loss_")))
    assert {"val_loss", "val_loss_classifier", "val_boxes_per_image"} <= set(history.history)
    outputs = model.predict(loader(), verbose=0)
    assert len(outputs) == 10
    expected = model.module.eval()([image for image, _ in images()[8:]])[1]  # a batch pads its images
    assert outputs[9]["boxes"] == pytest.approx(expected["boxes"].detach().numpy(), abs=1e-3)
    twin = Model(detector(), device="cpu").load_weights(model.save(tmp_path / "model.pt"))
    assert same_weights(twin.module, model.module)
    assert "training_step" not in str(model.check(loader(), ignore=["cannot_fit_batch"]))
    model.summary(loader(), verbose=0)


def test_a_loss_of_the_user_for_a_detector_names_the_fix():
    model = Model(detector(), device="cpu").compile("sgd", lambda y_pred, y: sum(y_pred.values()))
    with pytest.raises(ValueError, match="FasterRCNN computes its loss in train mode, and needs 'targets'"):
        model.fit(loader(), verbose=0)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)

    def forward(self, x):
        features = self.first(x).relu()
        return {"out": self.second(features).relu(), "aux": features}


def segmenter(has_auxiliary=True):
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    torch.manual_seed(0)
    return FCN(Backbone(), FCNHead(16, 3), FCNHead(8, 3) if has_auxiliary else None)


def masks():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (6, 16, 16), generator=generator)
    y[0, :12], y[4:, :3] = 255, 255
    return torch.randn(6, 3, 16, 16, generator=generator), y


def test_segmentation_with_an_auxiliary_output():
    x, y = masks()
    net = segmenter()
    plain = copy.deepcopy(net)
    loss = nn.CrossEntropyLoss(ignore_index=255)
    model = Model(net, device="cpu").compile(
        "sgd", {"out": loss, "aux": loss}, loss_weights={"aux": 0.5}, metrics={"out": ["accuracy"]}, lr=0.1
    )
    torch.manual_seed(1)
    history = model.fit(x, {"out": y, "aux": y}, batch_size=3, shuffle=False, verbose=0)
    torch.manual_seed(1)
    optimizer, sums, counts = torch.optim.SGD(plain.parameters(), 0.1), 0.0, 0
    for images_, labels in zip(x.split(3), y.split(3), strict=True):
        outputs = plain(images_)
        out = F.cross_entropy(outputs["out"], labels, ignore_index=255)
        total = out + 0.5 * F.cross_entropy(outputs["aux"], labels, ignore_index=255)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        count = int((labels != 255).sum())
        sums, counts = sums + out.item() * count, counts + count
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=0, atol=1e-7)
    assert history["out_loss"][0] == pytest.approx(sums / counts, abs=1e-6)
    assert model.predict(x, verbose=0)["out"].shape == (6, 3, 16, 16)
    assert model.predict_classes(x, verbose=0)["out"].shape == (6, 16, 16)
    assert "iou" in str(model.report(x, {"out": y, "aux": y}, output="out", bootstrap=0))


def test_segmentation_without_an_auxiliary_output_needs_one_loss():
    x, y = masks()
    model = Model(segmenter(False), device="cpu")
    model.compile("sgd", nn.CrossEntropyLoss(ignore_index=255), metrics=["accuracy"], lr=0.1)
    model.fit(x, y, batch_size=3, verbose=0)
    loss = model.evaluate(x, y, batch_size=4, verbose=0)["loss"]
    expected = F.cross_entropy(model.module.eval()(x)["out"], y, ignore_index=255).item()
    assert loss == pytest.approx(expected, abs=1e-6)
    assert "iou" in str(model.report(x, y, bootstrap=0))


def test_a_classifier_with_auxiliary_outputs_names_untrained_layers():
    from torchvision.models import googlenet

    net = googlenet(weights=None, num_classes=4, init_weights=False, aux_logits=True)
    model = Model(net, device="cpu").compile("sgd", "cross_entropy", metrics=["accuracy"])
    with pytest.warns(UserWarning, match=r"Some parameters are not trained: 'aux1\.conv"):
        model.fit(torch.randn(2, 3, 64, 64), torch.arange(2), verbose=0)


def test_samples_of_a_detector_that_make_no_batch_name_the_fix():
    model = Model(detector(), device="cpu").compile("sgd", lr=0.01)
    same_size = [images(2)[0]] * 4
    for data in (images(), DataLoader(images(), 4), DataLoader(same_size, 4)):
        with pytest.raises(ValueError, match=r"collate_fn=lambda batch: tuple\(zip\(\*batch\)\)"):
            model.fit(data, verbose=0)


def test_a_report_on_detections_names_the_metric():
    model = Model(detector(), device="cpu").compile("sgd", lr=0.01)
    with pytest.raises(ValueError, match=r"as detectors do.*MeanAveragePrecision.*validation_only"):
        model.report(loader())
