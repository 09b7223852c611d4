"""Data of Hugging Face datasets, WebDataset and torchdata, compared with arrays and hand-written loops."""

from __future__ import annotations

import functools
import io
import os
import random
import re
import tarfile
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from easytorch import Model
from easytorch.data import combine, in_memory, seeded, split
from tests.common_resume import X, Y, program, stop_and_resume
from tests.loops import same_weights
from tests.many import run_ranks

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of their imports
    import datasets
    import webdataset as wds
    from datasets.distributed import split_dataset_by_node
    from torchdata.stateful_dataloader import StatefulDataLoader

pytestmark = [
    # WebDataset leaves the files of its shards to the garbage collector, and torchdata calls a deprecated function.
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]
ROWS = datasets.Dataset.from_dict({"x": X.numpy(), "label": Y.numpy()})


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x):
        return self.layers(x)


def make_net():
    torch.manual_seed(0)
    return Net()


def make_model(net=None):
    net = make_net() if net is None else net
    return Model(net, device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1), "cross_entropy", metrics=["accuracy"])


def fit(data, y=None, **options):
    model = make_model()
    torch.manual_seed(1)
    model.fit(data, y, epochs=2, verbose=0, **options)
    return model


def hand_loop(batches_of_epoch):
    """Train with the batches that a function returns for each epoch."""
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for epoch in range(2):
        for x, y in batches_of_epoch(epoch):
            optimizer.zero_grad()
            cross_entropy(net(torch.as_tensor(x)), torch.as_tensor(y)).backward()
            optimizer.step()
    return net


def pairs(loader):
    return ((batch["x"], batch["label"]) for batch in loader)


def stream():
    return ROWS.to_iterable_dataset(num_shards=5)


def in_epoch(rows, epoch):
    """Return the batches of a stream in an epoch, on which the order of its shards depends."""
    rows = rows.with_format("torch")
    rows.set_epoch(epoch)
    return DataLoader(rows, 8)


# Hugging Face datasets

OPTIONS = {
    "shuffled": {},
    "in order": {"shuffle": False},
    "validation split": {"validation_split": 0.2},
    "sample weights": {"sample_weight": np.linspace(0, 2, 50, dtype="float32")},
    "balanced": {"class_weight": "balanced"},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_dataset_trains_like_arrays(kind):
    expected = fit(X.numpy(), Y.numpy(), batch_size=8, **OPTIONS[kind])
    columns = ROWS.add_column("text", ["q"] * 50)  # is no argument of forward
    formats = [ROWS, ROWS.with_format("torch"), ROWS.with_format("numpy"), columns]
    for rows in formats:
        model = fit(rows, batch_size=8, **OPTIONS[kind])
        assert same_weights(model.module, expected.module)
    assert np.array_equal(model.predict(ROWS), expected.predict(X.numpy()))
    assert dict(model.evaluate(ROWS, verbose=0)) == dict(expected.evaluate(X.numpy(), Y.numpy(), verbose=0))


def test_wrapped_datasets_have_tensors_as_samples():
    expected = fit(ROWS, batch_size=8)
    assert same_weights(fit(in_memory(ROWS, verbose=0), batch_size=8).module, expected.module)
    assert same_weights(fit(seeded(ROWS), batch_size=8).module, expected.module)
    assert same_weights(fit(ROWS["x"], ROWS["label"], batch_size=8).module, expected.module)
    train, test = split(ROWS)
    rows, others = (ROWS.select(part.indices) for part in (train, test))
    assert same_weights(fit(train, validation_data=test).module, fit(rows, validation_data=others).module)
    both = combine([DataLoader(ROWS.with_format("torch"), 8)])
    assert next(iter(both))[0]["x"].shape == (8, 8)


@pytest.mark.slow
def test_other_verbs_take_a_dataset():
    model, expected = fit(ROWS), fit(X.numpy(), Y.numpy())
    assert str(model.report(ROWS)) == str(expected.report(X.numpy(), Y.numpy()))
    assert not model.check(ROWS).warnings
    with pytest.raises(ValueError, match=r"Let the loader return \(x, y\)"):
        model.to_script()


def test_a_transform_makes_tensors_of_images():
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    pixels = np.random.default_rng(0).integers(0, 255, (16, 8, 8, 3), dtype="uint8")
    rows = datasets.Dataset.from_dict({"image": list(map(image.fromarray, pixels)), "label": [0, 1] * 8})
    rows = rows.cast_column("image", datasets.Image())

    def to_tensors(batch):
        images = [torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 for picture in batch["image"]]
        return {"image": images, "label": batch["label"]}

    def train(*data):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
        model = Model(net, device="cpu").compile("sgd", "cross_entropy", lr=0.1)
        model.fit(*data, epochs=2, batch_size=8, verbose=0)
        return model.module

    expected = train(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, torch.tensor([0, 1] * 8))
    assert same_weights(train(rows.with_transform(to_tensors)), expected)
    with pytest.raises(TypeError, match=r"received uint8.*Divide images by 255"):
        train(rows)
    sizes = datasets.Dataset.from_dict({"image": [image.new("RGB", (8, 8 + i)) for i in range(4)], "label": [0, 1] * 2})
    with pytest.raises(ValueError, match=r"rows of the column 'image' .*differ in size.*resize images in a transform"):
        train(sizes.cast_column("image", datasets.Image()))
    with pytest.raises(TypeError, match=r"'image' of the dataset has PIL images.*with_transform"):
        fit(DataLoader(rows, 8))


def test_data_that_must_be_selected_names_the_fix():
    parts = {"train": ROWS, "test": ROWS}
    for several in (datasets.DatasetDict(parts), datasets.IterableDatasetDict(parts)):
        with pytest.raises(TypeError, match=r"splits \['train', 'test'\].*dataset\['train'\]"):
            fit(several)
        with pytest.raises(TypeError, match="splits"):
            make_model().predict(several)
    with pytest.raises(TypeError, match=r"DataLoader\(dataset\.with_format\('torch'\)"):
        fit(DataLoader(ROWS, 8))
    with pytest.raises(TypeError, match=r"IterableColumn.*whole stream"):
        fit(stream()["x"], Y)


def run_advice(error, pattern, **names):
    """Return the value of the code that the message has."""
    code = re.search(pattern, str(error.value))
    assert code is not None, str(error.value)
    return eval(code[1], names)


TABLE = datasets.Dataset.from_dict({
    "a": X[:, 0].tolist(), "b": list(range(50)), "name": ["q"] * 50, "label": Y.tolist(),
})  # fmt: skip


def test_columns_of_numbers_name_the_call_that_works():
    model = Model(nn.Linear(2, 3), device="cpu").compile("sgd", "cross_entropy", lr=0.1)
    numbers = TABLE.remove_columns("name")
    with pytest.raises(TypeError, match="columns 'name' are no numbers") as error:
        model.fit(TABLE, verbose=0)
    fit_model = functools.partial(model.fit, verbose=0)
    assert run_advice(error, r"Pass (fit\(.*?\]\))\.", fit=fit_model, dataset=TABLE).history["loss"]
    with pytest.raises(TypeError, match="one number for each") as error:
        model.predict(numbers.remove_columns("label"), verbose=0)
    outputs = run_advice(error, r"Pass (predict\(.*?\]\))\.", predict=model.predict, dataset=TABLE)
    for rows in (numbers.to_iterable_dataset(), DataLoader(numbers.to_iterable_dataset().with_format("torch"), 8)):
        with pytest.raises(TypeError, match="one number for each") as error:
            model.fit(rows, verbose=0)
        combined = run_advice(error, r"Combine them: (.*)\.$", dataset=numbers.to_iterable_dataset())
        assert np.allclose(model.predict(combined, verbose=0), outputs)
    with pytest.raises(TypeError, match=r"torch.stack\(\[batch\[name\]"):
        model.fit([{"a": X[:, 0], "b": X[:, 1], "label": Y}], verbose=0)


NULLS = datasets.Dataset.from_dict({
    "x": [[1.0] * 8, [2.0, None] * 4, [3.0] * 8, None], "label": [0, 1, None, 1], "text": ["a", None, "b", "c"],
})  # fmt: skip


def test_none_in_a_dataset_names_column_and_row():
    found = r"None in the columns 'x' \(row 1 and 1 more\), 'label' \(row 2\)\."
    for rows in (NULLS, NULLS.with_format("numpy")):
        with pytest.raises(ValueError, match=found):
            fit(rows)
        with pytest.raises(ValueError, match=f"In validation_data: .*{found}"):
            fit(ROWS, validation_data=rows)
    with pytest.raises(ValueError, match=r"'x' \(row 1 and 1 more\), 'label' \(row 2\), 'text' \(row 1\)"):
        fit(DataLoader(NULLS.with_format("torch"), 4))
    with pytest.raises(ValueError, match=r"'x' \(row 1 and 1 more\)"):
        make_model().predict(NULLS.select_columns("x"))
    with pytest.raises(ValueError, match=r"has None in 'x'"):
        make_model().predict(NULLS.select_columns("x").to_iterable_dataset())
    with pytest.raises(ValueError, match="target 'label' of the batch is NaN"):
        fit(NULLS.select([0, 2]).to_iterable_dataset())
    with pytest.raises(ValueError, match="has None in row 2, None"):
        fit(ROWS["x"][:4], NULLS["label"])
    # What a filter has removed does not count, and a column that the module does not take neither.
    complete = NULLS.filter(lambda row: row["label"] is not None and row["x"] is not None and None not in row["x"])
    fit(complete)


def test_rows_without_a_format_name_the_fix():
    for rows in (ROWS, stream()):
        for network in (Net(), nn.Linear(8, 3)):
            with pytest.raises(TypeError, match=r"'x' .*lists.*DataLoader\(dataset\.with_format\('torch'\)"):
                make_model(network).fit(DataLoader(rows, 8), verbose=0)
    text = datasets.Dataset.from_dict({"text": ["q"] * 4, "label": [0, 1] * 2})
    ragged = datasets.Dataset.from_dict({"x": [[1.0], [1.0, 2.0]], "label": [0, 1]})
    names = datasets.Dataset.from_dict({"x": [[1.0] * 8] * 2, "label": ["cat", "dog"]})
    for convert in (lambda rows: rows, lambda rows: DataLoader(rows, 2), lambda rows: rows.to_iterable_dataset()):
        with pytest.raises(TypeError, match=r"'text' of the dataset is text, 'q'.*tokenizer\(row\['text'\]"):
            fit(convert(text))
        with pytest.raises(ValueError, match="rows of the column 'x' of the dataset differ in size"):
            fit(convert(ragged))
        batched = datasets.Dataset.from_dict({"x": [[1.0] * 8] * 15, "label": [0, 1, 2] * 5}).batch(10)
        with pytest.raises(
            ValueError, match=r"is a batch already, of 10 rows, .*of 5\. Leave out \.batch.*batch_size=10\)"
        ):
            fit(convert(batched))
        with pytest.raises(TypeError, match="'label' of the dataset is text"):
            fit(convert(names.with_format("torch")))
    assert fit(names.class_encode_column("label")).history["loss"]


def test_a_stream_trains_like_a_hand_written_loop():
    model = fit(stream(), batch_size=8)
    expected = hand_loop(lambda epoch: pairs(in_epoch(stream(), epoch)))
    assert same_weights(model.module, expected)
    assert np.array_equal(model.predict(stream()), model.predict(X.numpy()))
    assert dict(model.evaluate(stream(), verbose=0)) == dict(model.evaluate(X.numpy(), Y.numpy(), verbose=0))
    fit(stream(), steps_per_epoch=4, validation_data=stream())


def test_a_shuffled_stream_gets_the_number_of_the_epoch():
    def shuffled():
        return stream().shuffle(seed=3, buffer_size=10)

    expected = hand_loop(lambda epoch: pairs(in_epoch(shuffled(), epoch)))
    assert same_weights(fit(in_epoch(shuffled(), 0)).module, expected)


# WebDataset


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(5):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for i in range(10 * shard, 10 * shard + 10):
                array = io.BytesIO()
                np.save(array, X[i].numpy())
                for suffix, content in (("x.npy", array.getvalue()), ("y.cls", b"%d" % Y[i])):
                    entry = tarfile.TarInfo(f"{i:04}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return f"{folder}/{{0..4}}.tar"


def samples(urls, *stages, **options):
    pipeline = wds.WebDataset(urls, **{"shardshuffle": False, **options}).compose(*stages)
    return pipeline.decode().to_tuple("x.npy", "y.cls")


PIPELINES = {
    "samples": lambda urls: samples(urls),
    "batched": lambda urls: samples(urls).batched(32),
    "batched in a DataLoader": lambda urls: DataLoader(samples(urls).batched(32), batch_size=None),
    "WebLoader": lambda urls: wds.WebLoader(samples(urls), batch_size=32),
    "WebLoader of batches": lambda urls: wds.WebLoader(samples(urls).batched(32), batch_size=None),
    "batched again": lambda urls: wds.WebLoader(samples(urls).batched(5), batch_size=None).unbatched().batched(32),
    "with a length": lambda urls: wds.WebLoader(samples(urls), batch_size=32).with_length(2, silent=True),
}


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_pipeline_trains_like_arrays(kind, shards):
    expected = fit(X.numpy(), Y.numpy(), shuffle=False)
    model = fit(PIPELINES[kind](shards))
    assert same_weights(model.module, expected.module)
    assert np.array_equal(model.predict(PIPELINES[kind](shards)), model.predict(X.numpy()))
    scores = model.evaluate(PIPELINES[kind](shards), verbose=0)
    assert dict(scores) == dict(model.evaluate(X.numpy(), Y.numpy(), verbose=0))


def test_arguments_without_effect_on_a_pipeline_are_errors(shards):
    with pytest.raises(ValueError, match="batch_size has no effect on a WebLoader"):
        fit(PIPELINES["WebLoader"](shards), batch_size=8)
    with pytest.raises(ValueError, match="shuffle=True has no effect on WebDataset"):
        fit(PIPELINES["batched"](shards), shuffle=True)
    with pytest.raises(ValueError, match="validation_split needs data with a length"):
        fit(PIPELINES["batched"](shards), validation_split=0.2)


@pytest.mark.slow
def test_workers_of_a_pipeline_give_their_order(shards):
    def loader():
        return wds.WebLoader(samples(shards).batched(4), batch_size=None, num_workers=2)

    assert same_weights(fit(loader()).module, hand_loop(lambda epoch: loader()))


# Resume

STREAMS = {
    "stream": lambda urls: DataLoader(stream().with_format("torch"), 8),
    "shuffled stream": lambda urls: DataLoader(stream().shuffle(seed=3, buffer_size=10).with_format("torch"), 8),
    "stateful stream": lambda urls: StatefulDataLoader(stream().with_format("torch"), 8),
    "stateful dataset, workers": lambda urls: StatefulDataLoader(
        ROWS.with_format("torch"), 8, shuffle=True, num_workers=2
    ),
    "stateful stream, workers": lambda urls: StatefulDataLoader(stream().with_format("torch"), 8, num_workers=2),
    "WebDataset": lambda urls: samples(urls).batched(8),
    "WebLoader": lambda urls: wds.WebLoader(samples(urls).batched(8), batch_size=None),
    "WebLoader, workers": lambda urls: wds.WebLoader(samples(urls).batched(8), batch_size=None, num_workers=2),
    "generator": lambda urls: DataLoader(samples(urls, wds.filters.shuffle(20, rng=random.Random(0))), 8),
    "seeds": lambda urls: DataLoader(samples(urls, wds.filters.shuffle(20, seed=0), shardshuffle=5, seed=0), 8),
    "detshuffle": lambda urls: DataLoader(samples(urls, shardshuffle=5, detshuffle=True, seed=0), 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", STREAMS)
def test_streams_are_resumed_exactly(kind, shards, tmp_path):
    def make():
        return STREAMS[kind](shards)

    expected, _, _ = program(tmp_path / "expected", make)
    for step, frequency in ((2, 1), (9, 1), (8, "epoch")):
        resumed, _, messages = stop_and_resume(tmp_path / f"{step}", make, step, save_freq=frequency)
        assert same_weights(resumed.module, expected.module)
        assert not any("Results will differ" in message for message in messages)


def test_a_stream_in_another_order_is_a_warning(shards, tmp_path):
    def unseeded():
        return DataLoader(samples(shards, wds.filters.shuffle(20)), 8)

    *_, messages = stop_and_resume(tmp_path, unseeded, 3)
    assert any("WebDataset yields other batches than before the run was stopped (batch 3" in text for text in messages)


def test_samples_lost_with_a_shuffle_buffer_are_a_warning(tmp_path):
    def make():
        return StatefulDataLoader(stream().shuffle(seed=3, buffer_size=10).with_format("torch"), 8)

    *_, messages = stop_and_resume(tmp_path, make, 3)
    assert any("shuffle buffer of a Hugging Face stream" in text for text in messages)


# Several processes


def train_double(data, batch_size=None):
    torch.manual_seed(0)
    net = Net().double()
    model = Model(net, device="cpu").compile(lambda p: torch.optim.SGD(p, lr=0.1), "cross_entropy")
    history = model.fit(data, epochs=2, batch_size=batch_size, shuffle=None, verbose=0)
    return net.state_dict(), history["loss"], model.evaluate(X.numpy(), Y.numpy(), verbose=0).loss


def of_rank(data):
    rank = int(os.environ.get("RANK", 0))
    return split_dataset_by_node(data, rank=rank, world_size=2)


def train_on_half(data):
    return train_double(of_rank(data))


def read_shards(urls):
    return train_double(samples(urls, nodesplitter=wds.split_by_node).batched(4))


def read_all_shards(urls):
    return train_double(samples(urls, nodesplitter=None).batched(4))


def furthest(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_train_a_dataset_like_one():
    expected = train_double(ROWS, 8)
    for weights, loss, score in run_ranks(train_double, ROWS, 4):
        assert furthest(weights, expected[0]) < 1e-12
        assert loss == pytest.approx(expected[1])
        assert score == pytest.approx(expected[2])


@pytest.mark.slow
@pytest.mark.distributed
def test_streams_may_be_divided_by_node(shards):
    # Rank 0 has shards 0, 2, 4 and rank 1 has shards 1, 3.
    rows = ROWS.to_iterable_dataset(num_shards=2)
    for function, argument in ((train_on_half, rows), (read_shards, shards), (read_all_shards, shards)):
        (weights, loss, score), (others, other_loss, other_score) = run_ranks(function, argument)
        assert furthest(weights, others) == 0
        assert (loss, score) == (other_loss, other_score)
        assert loss[1] < loss[0]


@pytest.mark.slow
@pytest.mark.distributed
def test_rows_that_differ_between_ranks_are_an_error():
    with pytest.raises(Exception, match="rows"):
        run_ranks(train_on_half, ROWS)
