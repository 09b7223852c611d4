"""Errors name their real cause: custom losses, metrics of several outputs, dict batches, several loaders."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model

X, Y = torch.randn(64, 8), torch.arange(64) % 10
IMAGES = torch.randn(8, 1, 4, 4)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 10)

    def forward(self, x):
        return self.layer(x), self.layer(x)


class TwoByName(Two):
    def forward(self, x):
        return {"main": self.layer(x), "aux": self.layer(x)}


def both(outputs, y):
    first, second = outputs.values() if isinstance(outputs, dict) else outputs
    return functional.cross_entropy(first, y) + functional.cross_entropy(second, y)


class TestCustomLoss:
    def test_wrong_labels_in_a_loss_of_several_outputs_are_named(self):
        model = Model(Two()).compile("sgd", both)
        with pytest.raises(ValueError, match=r"The loss, both, failed.*out of bounds"):
            model.fit(X, Y + 3, verbose=0)

    def test_a_wrong_dtype_in_a_loss_of_several_outputs_is_named(self):
        with pytest.raises(ValueError, match=r"int32 \[32\]: expected .*Long"):
            Model(Two()).compile("sgd", both).fit(X, Y.int(), verbose=0)

    def test_targets_of_a_custom_loss_may_have_any_structure(self):
        def fails(y_pred, y):
            raise ValueError("the cause")

        with pytest.raises(ValueError, match="the cause"):
            Model(nn.Linear(8, 1)).compile("sgd", fails).fit([(X, {"a": Y})], verbose=0)

    def test_a_loss_of_torch_still_asks_for_one_tensor(self):
        with pytest.raises(TypeError, match="expects one tensor, but the module returned"):
            Model(Two()).compile("sgd", "cross_entropy").fit(X, Y, verbose=0)


class TestMetric:
    @pytest.mark.parametrize(("net", "key"), [(Two(), r"\[0\]"), (TwoByName(), r"\['main'\]")])
    def test_a_metric_of_several_outputs_is_blamed_itself(self, net, key):
        model = Model(net).compile("sgd", both, ["multiclass_accuracy"])
        with pytest.raises(TypeError, match=rf"metric 'multiclass_accuracy' expects one tensor.*y_pred{key}"):
            model.fit(X, Y, verbose=0)

    def test_the_advice_of_the_error_works(self):
        model = Model(Two()).compile("sgd", both, [lambda y_pred, y: (y_pred[0].argmax(1) == y).float()])
        assert len(model.fit(X, Y, verbose=0)) == 3


class TestDictBatch:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return self.layer(x)

    class Relu(Net):
        def forward(self, x):
            return self.layer(torch.relu(x))

    class View(Net):
        def forward(self, x):
            return self.layer(x.view(8, 1, 4, 4))

    @pytest.mark.parametrize("net", [Net, Relu, View])
    @pytest.mark.parametrize(("x", "y"), [("image", "mask"), ("LR", "HR"), ("A", "B"), ("img", "gt")])
    def test_keys_that_are_no_arguments_are_named(self, net, x, y):
        model = Model(net()).compile("sgd", "bce_with_logits")
        with pytest.raises(TypeError) as caught:
            model.fit([{x: IMAGES, y: (IMAGES > 0).float()}], verbose=0)
        message = str(caught.value)
        assert f"forward expects 'x', but the batch has '{x}', '{y}'" in message
        assert f"Rename '{x}' to 'x'" in message
        assert f"easytorch.Batch(batch['{x}'], batch['{y}'])" in message

    def test_the_first_fix_of_the_error_works(self):
        model = Model(self.Net()).compile("sgd", "bce_with_logits")
        assert model.fit([{"x": IMAGES, "mask": (IMAGES > 0).float()}], verbose=0)["loss"]

    def test_an_error_of_a_module_that_takes_a_dict_is_its_own(self):
        class TakesDict(self.Net):
            def forward(self, batch):
                return self.layer(batch["image"]) + batch["missing"]

        model = Model(TakesDict()).compile("sgd", lambda y_pred, y: y_pred.mean())
        with pytest.raises(KeyError, match="missing"):
            model.fit([{"image": IMAGES, "mask": IMAGES}], verbose=0)


class TestSeveralLoaders:
    loader = DataLoader(TensorDataset(X, Y), 16)

    def test_batches_of_zipped_loaders_are_explained(self):
        model = Model(nn.Linear(8, 10)).compile("sgd", "cross_entropy")
        with pytest.raises(TypeError, match=r"zip\(loader, loader\).*train_step"):
            model.fit(lambda: zip(self.loader, self.loader, strict=True), verbose=0)

    def test_a_tuple_of_loaders_is_explained(self):
        model = Model(nn.Linear(8, 10)).compile("sgd", "cross_entropy")
        with pytest.raises(TypeError, match=r"two data sets.*easytorch\.data\.combine.*validation_data"):
            model.fit((self.loader, self.loader), verbose=0)
