"""Models of other libraries: a run that is stopped after every update ends with the weights of an undisturbed run."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from easytorch import Model
from easytorch.callbacks import StopAfter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]
RANDOM = torch.Generator().manual_seed(1)


def make_classifier():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50, num_labels=3
    )
    return transformers.BertForSequenceClassification(config)


def make_segmenter():
    models = pytest.importorskip("torchvision").models.segmentation
    return models.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)


def make_detector():
    models = pytest.importorskip("torchvision").models.detection
    return models.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)


TOKENS = [{"input_ids": torch.randint(50, (8,), generator=RANDOM), "labels": torch.tensor(i % 3)} for i in range(12)]
IMAGES = torch.rand(4, 3, 64, 64, generator=RANDOM)
MASKS = torch.randint(3, (4, 64, 64), generator=RANDOM)
BOXES = {"boxes": torch.tensor([[5.0, 5.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
CASES = {
    "transformers": (make_classifier, None, TOKENS, None),
    "segmentation": (
        make_segmenter,
        {"out": "cross_entropy"},
        [(x, {"out": y}) for x, y in zip(IMAGES, MASKS, strict=True)],
        None,
    ),
    "detection": (
        make_detector,
        None,
        [(x, BOXES) for x in IMAGES],
        lambda batch: tuple(map(list, zip(*batch, strict=True))),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_stopped_after_every_update_ends_equal(case, tmp_path):
    make, loss, samples, collate = CASES[case]

    def train(**options):
        torch.manual_seed(0)
        model = Model(make(), device="cpu").compile("sgd", loss, lr=0.01)
        loader = DataLoader(samples, 2, shuffle=True, collate_fn=collate)
        return model, model.fit(loader, epochs=2, verbose=0, **options)

    expected, _ = train()
    for updates in range(1, expected.state.step):
        assert train(resume=tmp_path, callbacks=[StopAfter(updates=updates)])[1].interrupted
    model, history = train(resume=tmp_path)
    assert not history.interrupted
    pairs = zip(expected.module.parameters(), model.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
