"""tune_speed: suggests only what was measured as faster."""

from __future__ import annotations

import itertools
import random
import signal
import time
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from easytorch import Model
from easytorch.tuning import candidates
from easytorch.tuning.candidates import Candidates, combine, describe
from easytorch.tuning.speed import Speeds, SpeedSearch
from easytorch.tuning.timing import Timing, UpdateTimer, measure_updates, time_limit
from tests.loops import blobs

X, Y = blobs(96)


class Machine:
    """A machine on which each setting multiplies the time of an update.

    Args:
        factors: The factor of each setting, by its name.
        noise: Standard deviation of the logarithm of the time.
    """

    def __init__(self, factors, noise=0.01, seed=0):
        self.factors, self.noise, self.random, self.now = factors, noise, random.Random(seed), 0.0
        self.calls = []

    def measure(self, setting, updates, limit):
        seconds = 0.02 * np.exp(self.random.gauss(0, self.noise))
        for name in setting:
            factor = self.factors[name]
            if isinstance(factor, Exception):
                raise factor
            seconds *= factor
        self.calls.append(dict(setting))
        self.now += seconds * updates
        size = 64 if "batch_size" in setting else 32
        return Timing(seconds, size, loss=1.0 + 0.001 * len(setting))

    def search(self, **options):
        settings = [{name: SETTINGS[name]} for name in self.factors]
        search = SpeedSearch(self.measure, settings, {}, clock=lambda: self.now, **options)
        search.run()
        return Speeds(search)


SETTINGS = {
    "precision": "bf16",
    "channels_last": True,
    "jit_compile": True,
    "num_workers": 2,
    "batch_size": 64,
    "threads": 2,
}


def test_what_is_faster_is_suggested_together():
    found = Machine({"precision": 0.5, "channels_last": 0.9, "jit_compile": 1.4, "num_workers": 1.0}).search()
    assert found.suggestion == {"precision": "bf16", "channels_last": True}
    assert found.ratio == pytest.approx(0.45, rel=0.05)
    assert found.lines == ["model.compile(..., precision='bf16', channels_last=True)"]
    results = {row["setting"]: row["result"] for row in found.rows}
    assert results["precision='bf16'"] == results["channels_last=True"] == "faster"
    assert results["jit_compile=True"] == "slower"
    assert results["num_workers=2"] == "within the noise"
    assert results["present settings again"] == "control"


def test_settings_that_do_not_add_up_are_not_combined():
    class Conflict(Machine):
        def measure(self, setting, updates, limit):
            timing = super().measure(setting, updates, limit)
            return timing._replace(seconds=timing.seconds * (3.0 if len(setting) > 1 else 1.0))

    found = Conflict({"precision": 0.5, "channels_last": 0.8}).search()
    assert found.suggestion == {"precision": "bf16"}


@pytest.mark.parametrize("noise", [0.005, 0.05, 0.3])
def test_settings_without_an_effect_are_not_suggested(noise):
    count = 0
    for seed in range(40):
        found = Machine(dict.fromkeys(SETTINGS, 1.0), noise, seed).search()
        count += bool(found.suggestion)
    assert count <= 1


def test_a_clear_gain_is_found_on_a_noisy_machine():
    count = sum(
        Machine({"precision": 0.5}, 0.1, seed).search().suggestion == {"precision": "bf16"} for seed in range(20)
    )
    assert count >= 18


def test_another_batch_size_is_measured_and_not_suggested():
    found = Machine({"batch_size": 1.2}).search()
    assert found.suggestion == {}
    assert "batch_size=64 takes 0.60 of the time per sample, but trains otherwise" in str(found)


def test_compilation_that_helps_reports_when_it_pays_off():
    class Slow(Machine):
        def measure(self, setting, updates, limit):
            if "jit_compile" in setting and limit is not None:
                assert limit == pytest.approx(21.0)
                self.now += 12.0
            return super().measure(setting, updates, limit)

    found = Slow({"jit_compile": 0.5}).search()
    assert found.suggestion == {"jit_compile": True}
    assert "Compilation took 12 s, which pays off after 1," in str(found)


def test_errors_of_a_setting_are_its_result():
    factors = {"jit_compile": RuntimeError("no compiler\nmore"), "num_workers": OSError("no memory"), "precision": 0.5}
    found = Machine(factors).search()
    results = {row["setting"]: row["result"] for row in found.rows}
    assert results["jit_compile=True"] == "not measured: no compiler"
    assert results["num_workers=2"] == "not measured: no memory"
    assert found.suggestion == {"precision": "bf16"}


def test_the_search_ends_in_time():
    machine = Machine(dict.fromkeys(SETTINGS, 0.9))
    machine.search(seconds=10.0)
    assert machine.now < 15.0
    short = Machine({"precision": 0.5})
    found = short.search(seconds=0.1)
    assert found.suggestion == {}
    assert "only 1 of 5 rounds: pass a larger number of seconds" in str(found)


def test_a_hopeless_setting_is_not_measured_again():
    machine = Machine({"precision": 0.5, "threads": 8.0, "num_workers": 1.5})
    machine.search()
    assert sum("threads" in call for call in machine.calls) == 1
    assert sum("num_workers" in call for call in machine.calls) == 3


def test_speeds_are_a_table_a_frame_a_dict_and_a_picture(tmp_path):
    found = Machine({"precision": 0.5, "jit_compile": RuntimeError("no compiler")}).search()
    text = str(found)
    assert "Use it: model.compile(..., precision='bf16')" in text
    assert "+0.10%" in text
    assert len(found.to_frame()) == 3
    assert found.to_dict()["suggestion"] == {"precision": "bf16"}
    assert "<table" in found._repr_html_()
    found.plot(path=tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 1000


# Candidates


class Decoded(Dataset):
    """Samples that are made when they are read."""

    def __init__(self, is_random=False):
        self.is_random = is_random

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index] + (torch.rand(8) if self.is_random else 0), Y[index]


def model_of(net=None):
    return Model(net or nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), device="cpu").compile(
        "sgd", "cross_entropy"
    )


@pytest.fixture
def fixed_machine(monkeypatch):
    """A CPU with two cores, bfloat16 instructions and a compiler."""
    monkeypatch.setattr(candidates, "compiler_works", lambda device: True)
    monkeypatch.setattr(candidates, "check_precision", lambda device, dtype: None)
    monkeypatch.setattr(candidates, "count_cores", lambda: 2)


def names_of(found):
    return [describe(setting) for setting in found.settings]


def list_candidates(model, x, y=None, batch_size=None):
    return Candidates(model, x, y, batch_size=batch_size, shuffle=None)


@pytest.mark.usefixtures("fixed_machine")
def test_arrays_have_no_settings_of_a_loader():
    found = list_candidates(model_of(), X, Y)
    assert {"precision='bf16'", "jit_compile=True", "batch_size=64"} <= set(names_of(found))
    assert found.skipped["num_workers=2"] == "the data is not loaded by a DataLoader"
    assert found.skipped["easytorch.data.in_memory(dataset)"] == "the data is in memory already"
    assert found.skipped["channels_last=True"] == "the module has no 2-D convolutions"
    assert found.skipped["pin_memory=True"] == "the model is on the CPU"


@pytest.mark.usefixtures("fixed_machine")
def test_samples_that_are_made_can_be_held_in_memory():
    for data in (Decoded(), DataLoader(Decoded(), 16, shuffle=True)):
        found = list_candidates(model_of(), data)
        assert {"easytorch.data.in_memory(dataset)", "num_workers=2"} <= set(names_of(found))
    found = list_candidates(model_of(), Decoded(is_random=True))
    assert "draws random numbers" in found.skipped["easytorch.data.in_memory(dataset)"]
    found = list_candidates(model_of(), DataLoader(TensorDataset(X, Y), 16))
    assert found.skipped["num_workers=2"] == "the data is in memory already"


@pytest.mark.usefixtures("fixed_machine")
def test_the_format_of_convolutions_is_known():
    net = nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 2), nn.Flatten(), nn.Linear(4, 3))
    assert "channels_last=True" in names_of(list_candidates(model_of(net), X, Y))
    net.to(memory_format=torch.channels_last)
    assert "already" in list_candidates(model_of(net), X, Y).skipped["channels_last=True"]


def test_reasons_are_those_of_this_machine(monkeypatch):
    monkeypatch.setattr(candidates, "compiler_works", lambda device: False)
    monkeypatch.setattr("easytorch._utils.torch_private.cpu_has_bf16", lambda: False)
    found = list_candidates(model_of(), X, Y)
    assert "needs bfloat16 instructions" in found.skipped["precision='bf16'"]
    assert "torch.compile does not work" in found.skipped["jit_compile=True"]


def test_data_in_memory_needs_no_workers():
    assert combine([{"in_memory": True}, {"num_workers": 2}, {"precision": "bf16"}]) == {
        "in_memory": True,
        "precision": "bf16",
    }
    assert combine([{"num_workers": 4}, {"num_workers": 2}]) == {"num_workers": 4}


# Measurement


def test_the_time_of_an_update_is_the_median():
    times = itertools.accumulate([0.0, 1.0, 1.0, 7.0, 1.0, 1.0, 1.0])
    timer = UpdateTimer(2, 5, clock=lambda: next(times))
    timing = measure_updates(model_of(), X, Y, timer, batch_size=32)
    assert timing.seconds == 1.0
    assert timing.samples == 32
    assert timing.loss > 0


def test_a_time_limit_interrupts_and_leaves_no_timer():
    with pytest.raises(TimeoutError, match="longer than 0 seconds"), time_limit(0.01):
        time.sleep(10)
    with time_limit(0.05):
        pass
    time.sleep(0.06)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["arrays", "dataset", "loader"])
def test_a_real_program_is_measured_and_stays_as_it_is(data, monkeypatch):
    monkeypatch.setattr(candidates, "compiler_works", lambda device: False)
    net = nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 2), nn.Flatten(), nn.Dropout(), nn.Linear(4, 3))
    model = model_of(net)
    before = [value.clone() for value in net.state_dict().values()]
    strides, threads, state = net[1].weight.stride(), torch.get_num_threads(), torch.get_rng_state()
    strategy = model.strategy
    arguments = {"arrays": (X, Y), "dataset": (Decoded(),), "loader": (DataLoader(Decoded(), 16, shuffle=True),)}[data]
    found = model.tune_speed(*arguments, seconds=8.0)
    rows = {row["setting"]: row for row in found.rows}
    assert rows["channels_last=True"]["ratio"] > 0
    assert rows["channels_last=True"]["loss_difference"] == pytest.approx(0.0, abs=1e-3)
    assert "torch.compile does not work" in rows["jit_compile=True"]["result"]
    assert (rows["num_workers=2"]["ratio"] is None) == (data == "arrays")
    if data != "arrays":
        assert rows["easytorch.data.in_memory(dataset)"]["loss_difference"] == pytest.approx(0.0, abs=1e-3)
    assert all(map(torch.equal, before, net.state_dict().values()))
    assert net[1].weight.stride() == strides
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert model.strategy is strategy
    assert not len(model.history)


def test_several_processes_and_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="seconds must be"):
        model_of().tune_speed(X, Y, seconds=-1)
    with pytest.raises(RuntimeError, match=r"tune_speed\(\) needs an optimizer"):
        Model(nn.Linear(8, 3), device="cpu").compile(None, "cross_entropy").tune_speed(X, Y)
    with pytest.raises(ValueError, match=r"tune_speed\(\) would use up the first batches"):
        model_of().tune_speed((X[i : i + 8], Y[i : i + 8]) for i in range(0, 96, 8))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer of Unix")
def test_a_limit_that_expires_in_a_finalizer_interrupts_after_it():
    class Slow:
        pass

    finished = []

    def finalize(reference):
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            pass
        finished.append(reference)

    values = [Slow()]
    reference = weakref.ref(values[0], finalize)

    def work():
        values.clear()
        while time.monotonic() < start + 5:
            pass

    start = time.monotonic()
    with pytest.raises(TimeoutError, match="longer than"), time_limit(0.1):
        work()
    assert finished == [reference]
    assert time.monotonic() < start + 4
