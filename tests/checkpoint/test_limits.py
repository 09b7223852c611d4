"""Every state that is written is read again; what no file can hold is refused with its place, before training."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from easytorch import FileError, Model
from easytorch.callbacks import BackupAndRestore, Callback, ModelCheckpoint
from easytorch.checkpoint import files, pickles, validation
from easytorch.checkpoint.serialization import MAX_DEPTH, to_serializable
from easytorch.errors import ResumeError

X, Y = torch.randn(32, 8), torch.arange(32) % 3
BASE = torch.arange(100_000.0)


class Keeper(Callback):
    """Keeps any state."""

    def __init__(self, memory=None):
        self.memory = memory

    def state_dict(self):
        return {"memory": self.memory}

    def load_state_dict(self, state):
        self.memory = state["memory"]


def model(net=None):
    return Model(nn.Linear(8, 3) if net is None else net, device="cpu").compile("sgd", "cross_entropy")


def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


def equal(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


STATES = {
    "dicts": lambda n: [{"state": i, "reward": 0.5} for i in range(64 * n)],
    "texts": lambda n: [f"word {i}" for i in range(200 * n)],
    "bools": lambda n: [i % 2 == 0 for i in range(400 * n)],
    "None": lambda n: [None] * (400 * n),
    "vocabulary": lambda n: {f"word {i}": i for i in range(200 * n)},
    "views of one tensor": lambda n: [BASE[i : i + 3] for i in range(30 * n)],
    "small tensors": lambda n: [torch.tensor(float(i)) for i in range(20 * n)],
    "empty dicts": lambda n: [{} for _ in range(100 * n)],
    "tuples": lambda n: [(i, i) for i in range(100 * n)],
    "numbers as keys": lambda n: {i + 1000: None for i in range(200 * n)},
}


@pytest.mark.parametrize("kind", STATES)
def test_small_states_need_no_padding(kind, tmp_path):
    value = STATES[kind](10)
    path = files.write(tmp_path / "state.pt", {"value": value})
    assert equal(files.read(path)["value"], value)
    assert not any("padding" in name for name in zipfile.ZipFile(path).namelist())


@pytest.mark.slow
@pytest.mark.parametrize("kind", STATES)
def test_large_states_of_callbacks_are_read_again(kind, tmp_path):
    value = STATES[kind](1000)
    net = nn.Linear(8, 3)
    model(net).fit(X, Y, callbacks=[Keeper(value)], resume=tmp_path / "run", verbose=0)
    keeper, again = Keeper(), model()
    again.fit(X, Y, epochs=2, callbacks=[keeper], resume=tmp_path / "run", verbose=0)
    assert equal(keeper.memory, value)
    assert again.history.epoch == [0, 1]
    path = next((tmp_path / "run").glob("*.pt"))
    assert isinstance(Model(nn.Linear(8, 3), device="cpu").load_weights(path), Model)
    assert isinstance(torch.load(path, weights_only=True), dict)


def test_padding_makes_a_file_as_large_as_its_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "FREE_MEMORY", 2**20)
    monkeypatch.setattr(files, "MANY_VALUES", 100)
    value = [{"state": i} for i in range(20_000)]
    path = files.write(tmp_path / "state.pt", {"value": value, "weights": torch.ones(1000)})
    assert files.read(path)["value"] == value
    assert torch.load(path, weights_only=True)["value"] == value
    with zipfile.ZipFile(path) as archive:
        padding = next(info for info in archive.infolist() if info.filename.endswith("/padding"))
        needed = pickles.needed_memory(archive.read("archive/data.pkl"))
    assert padding.file_size > 10**6
    assert 0 <= 2**20 + 2 * path.stat().st_size + 10 * 2560 - needed < 10**5
    data = path.read_bytes()
    position = data.rindex(bytes(1000))
    path.write_bytes(data[:position] + b"\1" + data[position + 1 :])
    with pytest.raises(FileError, match="damaged"):
        files.read(path)


LARGE_STATES = ["dicts", "texts", "numbers as keys", "empty dicts", "tuples"]

# Prints for each file how much memory reading it takes. A forked process imports nothing.
MEMORY_OF_FILES = """
import os, sys, torch, zipfile
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
small, *paths = sys.argv[1:]
for path in paths:
    if os.fork() == 0:
        with zipfile.ZipFile(small) as archive:
            torch.load(small, weights_only=True)
            del archive
        open("/proc/self/clear_refs", "w").write("5")
        before = peak()
        with open(path, "rb") as file:
            value = torch.load(file, weights_only=True)
        print(peak() - before, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.fixture(scope="module")
def large_files(tmp_path_factory):
    """Return the path of a file with each kind of state, and the memory that reading it takes."""
    if sys.platform != "linux":
        pytest.skip("memory is read from /proc")
    folder = tmp_path_factory.mktemp("large")
    small = files.write(folder / "small.pt", {"value": 1})
    paths = {kind: files.write(folder / f"{kind}.pt", {"value": STATES[kind](200)}) for kind in LARGE_STATES}
    command = [sys.executable, "-c", MEMORY_OF_FILES, small, *paths.values()]
    sizes = map(int, subprocess.check_output(command, timeout=120).split())
    return {kind: (path, size) for (kind, path), size in zip(paths.items(), sizes, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE_STATES)
def test_estimated_memory_is_not_below_the_real_one(kind, large_files):
    path, real = large_files[kind]
    with zipfile.ZipFile(path) as archive:
        needed = pickles.needed_memory(archive.read("archive/data.pkl"))
    assert real < needed + 2**21


@pytest.mark.parametrize("levels", [MAX_DEPTH - 4, MAX_DEPTH + 1, 5000])
def test_nesting_that_is_written_is_read_again(levels, tmp_path):
    value = nested(levels)
    if levels > MAX_DEPTH:
        with pytest.raises(TypeError, match=r"^value\[0\]\[0\].*at most 100 levels"):
            files.write(tmp_path / "state.pt", {"value": value})
        assert not list(tmp_path.iterdir())
    else:
        files.write(tmp_path / "state.pt", {"value": value})
        assert files.read(tmp_path / "state.pt")["value"] == value


def test_list_that_contains_itself_is_refused(tmp_path):
    endless = []
    endless.append(endless)
    with pytest.raises(TypeError, match="contain themselves"):
        files.write(tmp_path / "state.pt", {"value": endless})


BAD = {
    "a set": lambda: {1},
    "a function": lambda: len,
    "bytes": lambda: b"x",
    "complex": lambda: 1j,
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "4 bits": lambda: torch.zeros(4, dtype=torch.uint8).view(torch.uint4),
    "text array": lambda: np.array(["a"]),
    "too deep": lambda: nested(200),
    "a key": lambda: {(1, 2): 3},
    "a large number": lambda: 2**70,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", BAD)
def test_bad_state_is_refused_before_training(kind, tmp_path):
    trained = model()
    with pytest.raises(TypeError, match=r"^callbacks\[1\]\.memory"):
        trained.fit(X, Y, callbacks=[Callback(), Keeper(BAD[kind]())], resume=tmp_path / "run", verbose=0)
    assert trained.state.step == 0
    assert not list((tmp_path).glob("run/*.pt"))


def test_bad_state_of_a_module_is_refused_before_training(tmp_path):
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {1}

        def set_extra_state(self, state):
            """Needed to load."""

    for callback in (BackupAndRestore(tmp_path / "run"), ModelCheckpoint(tmp_path / "{epoch}.pt")):
        trained = model(nn.Sequential(Odd(8, 3)))
        with pytest.raises(TypeError, match=r"^module\['0\._extra_state'\]: a file .* cannot hold set"):
            trained.fit(X, Y, callbacks=[callback], verbose=0)
        assert trained.state.step == 0


def test_state_without_a_value_before_training_is_allowed(tmp_path):
    class Late(Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.value = epoch

        def state_dict(self):
            return {"value": self.value}

    trained = model()
    trained.fit(X, Y, callbacks=[Late()], resume=tmp_path / "run", verbose=0)
    assert files.read(next((tmp_path / "run").glob("*.pt")))["callbacks"][0][1] == {"value": 0}


def test_parameters_with_attributes_and_views_are_read_again(tmp_path):
    parameter = nn.Parameter(torch.ones(3))
    parameter.note = {"any": object}
    content = {"p": parameter, "conj": torch.ones(2, dtype=torch.complex64).conj(), "view": BASE[5:9]}
    found = files.read(files.write(tmp_path / "state.pt", content))
    assert all(torch.equal(found[name], content[name]) for name in content)


@pytest.mark.slow
def test_text_of_any_size_counts(tmp_path):
    value = "\N{GRINNING FACE}" + "a" * 60_000_000
    assert files.read(files.write(tmp_path / "state.pt", {"value": value}))["value"] == value


def test_place_of_a_value_is_a_path():
    with pytest.raises(TypeError, match=r"^state\.layers\[1\]\['a b'\]\[3\]: "):
        to_serializable({"layers": [0, {"a b": {3: {1}}}]}, "state")


# safetensors


def extra(state):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return state

        def set_extra_state(self, state):
            self.found = state

    return Extra(8, 3)


@pytest.mark.parametrize("state", [None, {"a": 1}, 5], ids=["None", "dict", "int"])
def test_extra_state_in_safetensors_is_refused_clearly(state, tmp_path):
    trained = model(extra(state))
    with pytest.raises(TypeError, match=rf"'_extra_state' is {type(state).__name__}, .*'w\.pt'"):
        trained.save_weights(tmp_path / "w.safetensors")
    with pytest.raises(TypeError, match="_extra_state"):
        trained.fit(X, Y, callbacks=[ModelCheckpoint(tmp_path / "w.safetensors", save_weights_only=True)], verbose=0)
    assert trained.state.step == 0
    assert not list(tmp_path.iterdir())


def test_extra_state_that_is_a_tensor_is_written(tmp_path):
    path = model(extra(torch.tensor([4]))).save_weights(tmp_path / "w.safetensors")
    assert model(extra(None)).load_weights(path).module.found == torch.tensor([4])


def test_complex128_in_safetensors_is_refused_clearly(tmp_path):
    net = nn.Module()
    net.register_buffer("phase", torch.ones(2, dtype=torch.complex128))
    with pytest.raises(TypeError, match=r"'phase' has the dtype complex128"):
        Model(net, device="cpu").save_weights(tmp_path / "w.safetensors")


ODD_TENSORS = {
    "scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4), "bool": torch.tensor([True, False, True]),
    "bf16": torch.ones(3, dtype=torch.bfloat16), "int8": torch.ones(5, dtype=torch.int8), "f64": torch.ones(2).double(),
    "complex": torch.tensor([1 + 2j]), "conj": torch.tensor([1 + 2j]).conj(), "strided": torch.arange(6.0).view(2, 3).t(),
    "fp8": torch.ones(3).to(torch.float8_e4m3fn), "uint16": torch.ones(3, dtype=torch.uint16),
    "expanded": torch.ones(1).expand(4),
    "name with \"quotes\" and ü": torch.ones(1), "parameter": nn.Parameter(torch.ones(2)),
}  # fmt: skip


def test_safetensors_equal_those_of_the_library(tmp_path):
    library = pytest.importorskip("safetensors.torch")
    path = files.write_safetensors(tmp_path / "w.safetensors", ODD_TENSORS)
    theirs, ours = library.load_file(path), files.read(path)
    assert theirs.keys() == ours.keys() == ODD_TENSORS.keys()
    for name, value in ODD_TENSORS.items():
        for found in (theirs[name], ours[name]):
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            assert torch.equal(
                found.float() if name == "fp8" else found, value.float() if name == "fp8" else value.detach()
            )
    plain = {name: value.detach().resolve_conj().contiguous().clone() for name, value in ODD_TENSORS.items()}
    library.save_file(plain, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    read = files.read(tmp_path / "theirs.safetensors")
    assert all(torch.equal(read[name].float(), plain[name].float()) for name in plain if not plain[name].is_complex())


def test_safetensors_without_alignment_are_read(tmp_path):
    data = torch.arange(3.0)
    header = b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, '
    header += b'"b": {"dtype": "F32", "shape": [3], "data_offsets": [1, 13]}}'
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\7" + data.numpy().tobytes())
    found = files.read(path)
    assert found["a"].tolist() == [7]
    assert torch.equal(found["b"], data)


MEMORY = """
import sys, torch
from easytorch.checkpoint import files
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
tensors = {f"w{i}": torch.ones(1024, 1024) for i in range(int(sys.argv[2]))}
files.write_safetensors(sys.argv[1] + ".small.safetensors", {"a": torch.ones(10)})
files.read(sys.argv[1] + ".small.safetensors")
open("/proc/self/clear_refs", "w").write("5")
before = peak()
files.write_safetensors(sys.argv[1], tensors)
print(peak() - before)
del tensors
open("/proc/self/clear_refs", "w").write("5")
before = peak()
files.read(sys.argv[1])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.slow
def test_safetensors_need_no_copy_to_write_and_one_to_read(tmp_path):
    megabytes = 4 * int(os.environ.get("EASYTORCH_TENSORS", "16"))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "w.safetensors"), str(megabytes // 4)]
    written, read = map(int, subprocess.check_output(command, timeout=300).split())
    assert written < 12 * 2**20
    assert read < (megabytes + 12) * 2**20


# Loading


def test_weights_that_fit_are_loaded_with_strict_false(tmp_path):
    torch.manual_seed(1)
    old = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10), nn.Linear(10, 2))
    new = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    head = new[2].weight.detach().clone()
    torch.save(old.state_dict(), tmp_path / "old.pt")
    loaded = Model(new, device="cpu")
    with pytest.raises(FileError, match="strict=False"):
        loaded.load_weights(tmp_path / "old.pt")
    with pytest.warns(UserWarning, match="2 of 4 weights keep their values") as caught:
        loaded.load_weights(tmp_path / "old.pt", strict=False)
    message = str(caught[0].message)
    assert torch.equal(new[0].weight, old[0].weight)
    assert torch.equal(new[2].weight, head)
    assert all(
        row in message for row in ("another shape      2.weight  [10, 16] in the file", "not in the module  3.bias")
    )


def test_strict_false_is_silent_if_everything_fits(tmp_path, recwarn):
    path = model().save_weights(tmp_path / "w.pt")
    model().load_weights(path, strict=False)
    assert not recwarn.list


def test_strict_false_refuses_a_file_without_any_fitting_weight(tmp_path):
    torch.save(nn.Conv2d(1, 1, 1, bias=False).state_dict(), tmp_path / "w.pt")
    with pytest.raises(FileError, match="belongs to another module"):
        model().load_weights(tmp_path / "w.pt", strict=False)


EVIL = "\x1b[2J\x1b[32mloaded: all well\x1b[0m\x1b]52;c;aGk=\x07\u202e\ud800\nforged line"


@pytest.mark.parametrize("place", ["name", "missing", "safetensors", "global", "value", "history"])
def test_control_characters_in_a_file_reach_no_terminal(place, tmp_path, capsys):
    path = tmp_path / ("w.safetensors" if place == "safetensors" else "w.pt")
    weights = nn.Linear(8, 3).state_dict()
    evil = EVIL.replace("\ud800", "") if place in ("safetensors", "global") else EVIL
    if place == "safetensors":
        files.write_safetensors(path, {**weights, evil: torch.ones(1)})
    elif place == "global":
        torch.save(weights, path)
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        members["w/data.pkl"] = b"\x80\x02c" + evil.replace("\n", "").encode() + b"\nname\n."
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    elif place == "missing":
        torch.save({evil: torch.ones(1), "weight": weights["weight"]}, path)
    elif place == "value":
        torch.save({**weights, "bias": torch.ones(2), evil: 1}, path)
    elif place == "history":
        trained = model().fit(X, Y, verbose=0)
        trained.model.recorded_history.rows[0][evil] = 1.0
        loaded = model().load(trained.model.save(path))
        print(repr(loaded.history))
        assert "\x1b" not in capsys.readouterr().out
        return
    else:
        torch.save({**weights, evil: torch.ones(1)}, path)
    with pytest.raises(FileError) as caught:
        model().load_weights(path)
    message = str(caught.value)
    assert message.replace("\n", "").isprintable()
    assert not any(line.startswith("forged") for line in message.splitlines())
    assert "\\x1b[2J" in message or "\\\\x1b" in message


def test_logs_print_no_control_characters(capsys):
    class Log(Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["\x1b[2J"] = "\x1b]0;title\x07"

    model().fit(X, Y, callbacks=[Log()], verbose=2)
    assert capsys.readouterr().out.replace("\n", "").isprintable()


def test_errors_escape_names():
    for kind in (FileError, ResumeError):
        assert str(kind("a\x1b[2J\nb")) == "a\\x1b[2J\nb"


def test_file_that_is_verified_is_the_file_that_is_loaded(tmp_path, monkeypatch):
    good, bad = model(), model()
    path = good.save_weights(tmp_path / "w.pt")
    other = bad.save_weights(tmp_path / "other.pt")
    check = validation.check_archive

    def swap(file, *args):
        check(file, *args)
        os.replace(other, path)

    monkeypatch.setattr(validation, "check_archive", swap)
    loaded = model().load_weights(path)
    assert torch.equal(loaded.module.weight, good.module.weight)


def test_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = model().save_weights(tmp_path / "w.pt")
    check = validation.check_archive

    def write(file, *args):
        check(file, *args)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        with path.open("r+b") as target:
            target.write(data)
        os.utime(path, (1, 1))

    monkeypatch.setattr(validation, "check_archive", write)
    with pytest.raises(FileError, match=r"w\.pt"):
        model().load_weights(path)


def test_every_file_is_opened_once(tmp_path, monkeypatch):
    paths = [model().save_weights(tmp_path / name) for name in ("w.pt", "w.safetensors")]
    opened, real = [], Path.open

    def count(path, *args, **options):
        opened.append(path.name)
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "open", count)
    for path in paths:
        model().load_weights(path)
    assert opened == ["w.pt", "w.safetensors"]


# Quantization-aware training


def prepared(folder, name):
    import torch.ao.quantization as quantization

    torch.manual_seed(1)
    net = nn.Sequential(quantization.QuantStub(), nn.Linear(8, 3), quantization.DeQuantStub()).train()
    net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    return quantization.prepare_qat(net)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:UserWarning:torch", "ignore:.*reduce_range")
@pytest.mark.parametrize("stop", [1, 6])
def test_quantization_aware_training_is_loaded_and_resumed(stop, tmp_path):
    def run(folder, stop=None):
        class Stop(Callback):
            def on_train_batch_end(self, batch, logs=None):
                self.model.stop_training = False
                if self.model.state.step == stop:
                    raise InterruptedError

        trained = Model(prepared(tmp_path, folder), device="cpu").compile("sgd", "cross_entropy")
        backup = BackupAndRestore(tmp_path / folder, save_freq=1, delete_checkpoint=False)
        try:
            trained.fit(X, Y, epochs=2, batch_size=8, callbacks=[backup, Stop()], verbose=0)
        except InterruptedError:
            return run(folder)
        return trained

    expected, resumed = run("undisturbed"), run("stopped", stop)
    state = expected.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.module.state_dict().items())
    complete = expected.save(tmp_path / "model.pt")
    for path in (complete, expected.save_weights(tmp_path / "w.pt"), expected.save_weights(tmp_path / "w.safetensors")):
        loaded = Model(prepared(tmp_path, "x"), device="cpu").load_weights(path)
        assert all(torch.equal(value, state[name]) for name, value in loaded.module.state_dict().items())
    loaded = Model(prepared(tmp_path, "x"), device="cpu").load(complete)
    assert all(torch.equal(value, state[name]) for name, value in loaded.module.state_dict().items())
