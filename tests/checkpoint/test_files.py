"""Promise 3 for files: they are complete or absent, readable by torch alone, and training continues from them."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import signal
import stat

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from easytorch import Model
from easytorch._utils import atomic_file
from easytorch.checkpoint import files
from tests.loops import blob_loader, blobs, mlp, same_weights


class Tied(nn.Module):
    """An encoder and a decoder that share their weights."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(8, 8, bias=False)
        self.decoder = nn.Linear(8, 8, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(self.encoder(x))


class Wrapped(nn.Module):
    """A module whose only submodule is called ``module``."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(8, 3)

    def forward(self, x):
        return self.module(x)


def normed():
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def compiled(net=None, optimizer="adam", loss="cross_entropy", **options):
    return Model(normed() if net is None else net, device="cpu").compile(optimizer, loss, **options)


# Round trips


def test_a_loaded_model_gives_the_same_scores(tmp_path):
    model = compiled(metrics=["accuracy"])
    model.fit(blob_loader(), 2, verbose=0)
    path = model.save(tmp_path / "model.pt")
    other = compiled(metrics=["accuracy"]).load(path)
    assert other.evaluate(blob_loader(), verbose=0) == model.evaluate(blob_loader(), verbose=0)


@pytest.mark.parametrize("optimizer", [momentum, "adam", "rmsprop"], ids=["momentum", "adam", "rmsprop"])
def test_two_epochs_save_load_and_two_more_equal_four_epochs(tmp_path, optimizer):
    torch.manual_seed(5)
    uninterrupted = compiled(optimizer=optimizer)
    torch.manual_seed(5)
    first = compiled(optimizer=optimizer)
    uninterrupted.fit(blob_loader(), 4, verbose=0)
    first.fit(blob_loader(), 2, verbose=0)
    first.save(tmp_path / "model.pt")
    torch.manual_seed(99)
    second = compiled(optimizer=optimizer).load(tmp_path / "model.pt")
    second.fit(blob_loader(), 2, verbose=0)
    assert same_weights(second.module, uninterrupted.module)


def test_scheduler_continues_after_load(tmp_path):
    halving = {"scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)}
    uninterrupted, first, second = compiled(**halving), compiled(**halving), compiled(**halving)
    uninterrupted.fit(blob_loader(), 6, verbose=0)
    first.fit(blob_loader(), 3, verbose=0)
    second.load(first.save(tmp_path / "model.pt")).fit(blob_loader(), 3, verbose=0)
    assert second.history["lr"] == uninterrupted.history["lr"]


def test_load_compiles_a_scheduler_given_by_name(tmp_path):
    path = compiled(scheduler="cosine").fit(blob_loader(), 2, verbose=0).save(tmp_path / "model.pt")
    loaded = Model(normed(), device="cpu").load(path)
    assert loaded.fit(blob_loader(), 2, verbose=0)["lr"][2] > 0


def test_history_continues_after_load(tmp_path):
    model = compiled()
    model.fit(blob_loader(), 2, verbose=0)
    losses = model.history["loss"]
    model.save(tmp_path / "model.pt")
    other = compiled().load(tmp_path / "model.pt")
    other.fit(blob_loader(), 1, verbose=0)
    assert other.history.epoch == [0, 1, 2]
    assert other.history["loss"][:2] == losses
    assert other.state.step == 3 * 7


def test_save_returns_the_path_and_load_the_model(tmp_path):
    model = compiled()
    path = model.save(str(tmp_path / "model.pt"))
    assert path == tmp_path / "model.pt"
    assert model.load(str(path)) is model


def test_save_without_a_name_writes_model_pt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compiled().save()
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def test_torch_alone_reads_a_saved_model(tmp_path):
    model = compiled()
    model.fit(blob_loader(), verbose=0)
    path = model.save(tmp_path / "model.pt")
    net = normed()
    net.load_state_dict(torch.load(path, weights_only=True)["module"])
    assert same_weights(net, model.module)


def test_file_contains_its_format_version(tmp_path):
    content = torch.load(compiled().save(tmp_path / "model.pt"), weights_only=True)
    assert (content["format"], content["version"]) == ("easytorch", 1)


def test_submodule_called_module_keeps_its_names(tmp_path):
    model = compiled(Wrapped())
    path = model.save(tmp_path / "model.pt")
    assert list(torch.load(path, weights_only=True)["module"]) == ["module.weight", "module.bias"]


@pytest.mark.parametrize("kind", ["model.pt", "weights.pt", "weights.safetensors"])
def test_submodule_called_module_is_loaded_again(tmp_path, kind):
    model, other = compiled(Wrapped()), compiled(Wrapped())
    (model.save if kind == "model.pt" else model.save_weights)(tmp_path / kind)
    (other.load if kind == "model.pt" else other.load_weights)(tmp_path / kind)
    assert same_weights(other.module, model.module)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "torch.compile"])
def test_wrapped_module_is_saved_without_wrapper_prefixes(tmp_path, wrap):
    net = normed()
    path = compiled(wrap(net)).save(tmp_path / "model.pt")
    assert list(torch.load(path, weights_only=True)["module"]) == list(net.state_dict())


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "torch.compile"])
def test_wrapped_module_loads_its_own_file(tmp_path, wrap):
    model, other = compiled(wrap(normed())), compiled(wrap(normed()))
    other.load(model.save(tmp_path / "model.pt"))
    assert same_weights(other.module, model.module)


# Weights only


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("net", [normed, Tied], ids=["batchnorm", "tied"])
def test_weights_survive_a_round_trip(tmp_path, net, name):
    model, other = compiled(net()), compiled(net())
    path = model.save_weights(tmp_path / name)
    assert not same_weights(other.module, model.module)
    assert other.load_weights(path) is other
    assert same_weights(other.module, model.module)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_tied_weights_stay_tied(tmp_path, name):
    model = compiled(Tied())
    model.load_weights(model.save_weights(tmp_path / name))
    assert model.module.decoder.weight is model.module.encoder.weight


def test_saved_weights_are_a_plain_state_dict(tmp_path):
    model, net = compiled(), normed()
    net.load_state_dict(torch.load(model.save_weights(tmp_path / "weights.pt"), weights_only=True))
    assert same_weights(net, model.module)


def test_safetensors_alone_reads_saved_weights(tmp_path):
    from safetensors.torch import load_file

    model, net = compiled(), normed()
    net.load_state_dict(load_file(model.save_weights(tmp_path / "weights.safetensors")))
    assert same_weights(net, model.module)


def test_strided_weights_are_saved_as_safetensors(tmp_path):
    net = nn.Linear(8, 3, bias=False)
    net.weight = nn.Parameter(torch.randn(8, 3).t())
    other = compiled(nn.Linear(8, 3, bias=False))
    other.load_weights(compiled(net).save_weights(tmp_path / "weights.safetensors"))
    assert same_weights(other.module, net)


def test_a_state_dict_saved_by_torch_is_loaded(tmp_path):
    net = normed()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    assert same_weights(compiled().load_weights(tmp_path / "net.pth").module, net)


def test_load_weights_reads_a_complete_model(tmp_path):
    model = compiled()
    path = model.save(tmp_path / "model.pt")
    assert same_weights(Model(normed(), device="cpu").load_weights(path).module, model.module)


def test_load_weights_keeps_optimizer_and_history(tmp_path):
    model = compiled(optimizer=momentum)
    path = model.save_weights(tmp_path / "weights.pt")
    model.fit(blob_loader(), verbose=0)
    moments, losses = model.optimizer.state_dict()["state"], model.history["loss"]
    model.load_weights(path)
    assert model.optimizer.state_dict()["state"].keys() == moments.keys() != set()
    assert model.history["loss"] == losses


# Arguments of compile


def test_load_compiles_a_model_compiled_by_names(tmp_path):
    model = compiled(
        optimizer="adamw", lr=0.02, metrics=["accuracy"], clip_grad_norm=1.0, gradient_accumulation_steps=2
    )
    model.fit(blob_loader(), verbose=0)
    path = model.save(tmp_path / "model.pt")
    other = Model(normed(), device="cpu").load(path)
    assert isinstance(other.optimizer, torch.optim.AdamW)
    assert other.optimizer.param_groups[0]["lr"] == 0.02
    assert (other.clip_grad_norm, other.gradient_accumulation_steps) == (1.0, 2)
    assert other.evaluate(blob_loader(), verbose=0).keys() == ["loss", "accuracy"]


def test_loaded_model_trains_like_one_never_saved(tmp_path):
    model = compiled(optimizer="adam", lr=0.02)
    model.fit(blob_loader(), verbose=0)
    path = model.save(tmp_path / "model.pt")
    other = Model(normed(), device="cpu").load(path)
    for each in (model, other):
        each.fit(blob_loader(), 2, verbose=0)
    assert same_weights(other.module, model.module)


def test_load_keeps_the_compile_arguments_of_a_compiled_model(tmp_path):
    path = compiled(optimizer="adam", lr=0.02).save(tmp_path / "model.pt")
    other = compiled(optimizer="adam", metrics=["accuracy"]).load(path)
    assert other.metrics.names == ["accuracy"]


def test_settings_missing_in_an_older_torch_get_defaults(tmp_path):
    model = compiled(optimizer="adam")
    model.fit(blob_loader(), verbose=0)
    content = files.read(model.save(tmp_path / "model.pt"))
    for group in content["optimizer"]["param_groups"]:
        del group["decoupled_weight_decay"]
    other = compiled(optimizer="adam").load(files.write(tmp_path / "older.pt", content))
    assert other.optimizer.param_groups[0]["decoupled_weight_decay"] is False
    for each in (model, other):
        each.fit(blob_loader(), verbose=0)
    assert same_weights(other.module, model.module)


def test_compiled_model_loads_a_file_without_an_optimizer(tmp_path):
    model = Model(normed(), device="cpu")
    other = compiled().load(model.save(tmp_path / "model.pt"))
    assert same_weights(other.module, model.module)
    other.fit(blob_loader(), verbose=0)


def test_load_compiles_a_model_compiled_with_numpy_numbers(tmp_path):
    path = compiled(optimizer="adam", lr=np.float64(0.02)).save(tmp_path / "model.pt")
    assert Model(normed(), device="cpu").load(path).optimizer.param_groups[0]["lr"] == 0.02


def test_state_of_another_optimizer_is_skipped_with_a_warning(tmp_path):
    model = compiled(optimizer="adam")
    model.fit(blob_loader(), verbose=0)
    other = compiled(optimizer=momentum)
    with pytest.warns(UserWarning, match="not that of SGD"):
        other.load(model.save(tmp_path / "model.pt"))
    assert same_weights(other.module, model.module)
    assert other.history["loss"] == model.history["loss"]
    other.fit(blob_loader(), verbose=0)


# Complete or absent


@pytest.fixture
def large():
    """Return a model of 200 kB."""
    return Model(nn.Linear(200, 256), device="cpu").compile("sgd", "mse")


@pytest.fixture
def full_disk():
    """Limit every file to 64 kB, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def saves(model, path):
    return model.save(path) if path.stem == "model" else model.save_weights(path)


NAMES = ["model.pt", "weights.pt", "weights.safetensors"]


@pytest.mark.parametrize("name", NAMES)
def test_full_disk_during_a_write_raises_and_leaves_no_file(tmp_path, large, full_disk, name):
    with pytest.raises(OSError, match=rf"Cannot write '{tmp_path / name}': File too large.* bytes are needed"):
        saves(large, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_full_disk_during_a_write_keeps_the_old_file(tmp_path, large, full_disk, name):
    path = saves(compiled(), tmp_path / name)
    before = path.read_bytes()
    with pytest.raises(OSError, match="The existing file is unchanged"):
        saves(large, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("function", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("name", NAMES)
def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch, name, function):
    def refuse(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = saves(compiled(), tmp_path / name)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, function, refuse)
        with pytest.raises(OSError, match="Cannot write"):
            saves(compiled(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    path = compiled().save(tmp_path / "model.pt")
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            compiled().save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unsupported_value_keeps_the_old_file(tmp_path):
    class Odd(nn.Linear):
        def get_extra_state(self):
            return lambda: None

        def set_extra_state(self, state):
            pass

    path = compiled().save(tmp_path / "model.pt")
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"_extra_state.*cannot hold"):
        compiled(Odd(8, 3)).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", NAMES)
def test_data_is_synced_before_the_rename(tmp_path, monkeypatch, name):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("folder" if is_folder(fd) else "file"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    saves(compiled(), tmp_path / name)
    assert events == ["file", "rename", "folder"]


def is_folder(descriptor):
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


@pytest.mark.parametrize("name", NAMES)
def test_save_overwrites_an_existing_file(tmp_path, name):
    saves(compiled(), tmp_path / name)
    model, other = compiled(), compiled()
    path = saves(model, tmp_path / name)
    other.load_weights(path)
    assert same_weights(other.module, model.module)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)], ids=oct)
@pytest.mark.parametrize("name", NAMES)
def test_new_file_has_the_permissions_of_the_umask(tmp_path, name, mask, mode):
    before = os.umask(mask)
    try:
        path = saves(compiled(), tmp_path / name)
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_an_overwritten_file_keeps_its_permissions(tmp_path):
    path = compiled().save(tmp_path / "model.pt")
    path.chmod(0o640)
    compiled().save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_save_to_a_link_replaces_its_target(tmp_path):
    target = tmp_path / "run-1.pt"
    target.touch()
    link = tmp_path / "model.pt"
    link.symlink_to(target)
    compiled().save(link)
    assert link.is_symlink()
    Model(normed(), device="cpu").load(target)


def test_save_does_not_change_the_model(tmp_path):
    torch.manual_seed(5)
    plain = compiled(optimizer=momentum)
    torch.manual_seed(5)
    saved = compiled(optimizer=momentum)
    x, y = blobs()
    for model in (plain, saved):
        torch.manual_seed(3)
        for _ in range(2):
            model.fit(DataLoader(TensorDataset(x, y), 8, shuffle=True), verbose=0)
            if model is saved:
                model.save(tmp_path / "model.pt")
    assert same_weights(saved.module, plain.module)


def test_an_uncompiled_model_is_saved_and_loaded(tmp_path):
    model = Model(mlp(), device="cpu")
    path = model.save(tmp_path / "model.pt")
    assert same_weights(Model(mlp(), device="cpu").load(path).module, model.module)


@pytest.mark.parametrize("call", range(1, 13))
def test_ctrl_c_during_a_write_is_raised_and_keeps_the_old_file(tmp_path, monkeypatch, call):
    """torch.save raises a RuntimeError about a wrong position in this case."""
    path = files.write(tmp_path / "a.pt", {"x": torch.zeros(3)})
    calls, original_write = itertools.count(1), atomic_file.ErrorRecordingFile.write

    def write(self, data):
        if next(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return original_write(self, data)

    monkeypatch.setattr(atomic_file.ErrorRecordingFile, "write", write)
    with pytest.raises(KeyboardInterrupt):
        files.write(path, {f"x{i}": torch.ones(64) for i in range(8)})
    assert files.read(path)["x"].tolist() == [0, 0, 0]
    assert list(tmp_path.iterdir()) == [path]


# Every written file can be read


def test_long_lists_of_numbers_are_read_again(tmp_path):
    numbers = [0.5, 3, 300, 70_000, 2**40] * 61_000
    path = files.write(tmp_path / "numbers.pt", {"numbers": numbers})
    assert files.read(path)["numbers"] == numbers


class Tagged(torch.Tensor):
    """A subclass of Tensor, as image libraries define them."""


def tensor_with_attribute():
    tensor = torch.ones(3)
    tensor.note = "text"
    return tensor


ODD = {
    "a subclass": lambda: torch.ones(3).as_subclass(Tagged),
    "expanded": lambda: torch.ones(1).expand(3000),
    "overlapping": lambda: torch.arange(9.0).unfold(0, 3, 1),
    "with an attribute": tensor_with_attribute,
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_are_read_again_as_plain_ones(tmp_path, kind):
    tensor = ODD[kind]()
    read = files.read(files.write(tmp_path / "odd.pt", {"odd": tensor}))["odd"]
    assert type(read) is torch.Tensor
    assert read.tolist() == tensor.tolist()


@pytest.mark.parametrize("kind", ODD)
def test_a_module_with_an_odd_buffer_is_loaded_again(tmp_path, kind):
    odd, plain = nn.Linear(8, 3), nn.Linear(8, 3)
    odd.register_buffer("odd", ODD[kind]())
    # torch cannot copy into values that share memory.
    plain.register_buffer("odd", torch.zeros(ODD[kind]().shape))
    other = compiled(plain).load(compiled(odd).save(tmp_path / "model.pt"))
    assert other.module.odd.tolist() == odd.odd.tolist()


# Quantized tensors are deprecated, but still exist.
@pytest.mark.filterwarnings("ignore:.*quantize")
@pytest.mark.parametrize(
    "make",
    [lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), lambda: torch.ones(3, device="meta")],
    ids=["quantized", "without values"],
)
def test_tensors_that_no_file_can_hold_are_refused(tmp_path, make):
    with pytest.raises(TypeError, match=r"^odd: a file .* cannot hold this tensor"):
        files.write(tmp_path / "odd.pt", {"odd": make()})
    assert list(tmp_path.iterdir()) == []
