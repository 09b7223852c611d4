"""Promise 4 for malicious files: no file runs code, exhausts memory, or touches files outside its folder."""

from __future__ import annotations

import json
import sys
import warnings

import pytest
from torch import nn

from easytorch import FileError, Model
from easytorch.callbacks import ModelCheckpoint
from easytorch.checkpoint import files, rotation
from tests.loops import mlp
from tests.security.common_damage import X, Y, refusal_of, run_module

MB = 2**20


pytestmark = pytest.mark.security


@pytest.fixture(scope="module")
def malicious(tmp_path_factory):
    if sys.platform != "linux":
        pytest.skip("the process that loads malicious files is watched through /proc, which only Linux has")
    folder = tmp_path_factory.mktemp("malice")
    rows = [json.loads(line) for line in run_module("tests.security.malice", folder).splitlines()]
    assert not (folder / "canary").exists(), "a file ran code"
    assert not (folder.parent / "canary").exists()
    return folder, rows


@pytest.fixture(scope="module")
def verdicts(malicious):
    return malicious[1]


CATEGORIES = ["pickle", "zip", "header", "other", "content"]


def rows_of(verdicts, category):
    rows = [row for row in verdicts if "kind" in row and row["file"].startswith(category)]
    assert len({row["file"] for row in rows}) >= 15
    return rows


def describe(rows, *facts):
    return "\n".join(f"{row['file']}, {row['way']}: {[row[fact] for fact in facts]}" for row in rows)


def test_battery_loads_many_files_in_every_way(verdicts):
    loaded = [(row["file"], row["way"]) for row in verdicts if "kind" in row]
    names = {name for name, _ in loaded if ": " in name}
    assert len(names) >= 250
    assert all((name, way) in loaded for name in names for way in ("load", "load_weights", "resume"))


def test_good_files_load_without_side_effects(verdicts):
    rows = [row for row in verdicts if "kind" in row and ": " not in row["file"]]
    loaded = {row["file"]: row["way"] for row in rows if not row["kind"] and row["right"]}
    assert {"model.pt", "weights.pt", "step-0000000004.pt"} <= set(loaded)
    # A run that resumes from an older checkpoint archives the newer ones.
    acts = [
        act
        for row in rows
        for act in row["acts"]
        if not (act.startswith("os.rename") and act.endswith(".archived', -1, -1)"))
    ]
    assert not acts
    checkpoint = [row["kind"] for row in rows if row["file"].startswith("step-") and row["way"] != "load, not compiled"]
    assert checkpoint == [""] * 6


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_malicious_file_runs_imports_or_writes(category, verdicts):
    failures = [row for row in rows_of(verdicts, category) if row["acts"]]
    assert not failures, describe(failures, "acts")


@pytest.mark.parametrize("category", CATEGORIES)
def testrefusal_of_is_a_file_error_that_names_the_file(category, verdicts):
    allowed = {"load": {"FileError"}, "load_weights": {"FileError"}, "resume": {"FileError", "ResumeError"}}
    failures = [
        row
        for row in rows_of(verdicts, category)
        if row["kind"] and not (row["kind"] in allowed.get(row["way"], {"FileError"}) and row["named"])
    ]
    assert not failures, describe(failures, "kind", "message", "location")


@pytest.mark.parametrize("category", CATEGORIES)
def test_accepted_file_gives_correct_weights_and_a_usable_model(category, verdicts):
    failures = [row for row in rows_of(verdicts, category) if not row["kind"] and not row["right"]]
    assert not failures, describe(failures, "right")
    failures = [row for row in rows_of(verdicts, category) if row["problem"]]
    assert not failures, describe(failures, "problem")


@pytest.mark.parametrize("category", CATEGORIES)
def test_refused_file_does_not_change_the_model(category, verdicts):
    failures = [row for row in rows_of(verdicts, category) if row["kind"] and not row["untouched"]]
    assert not failures, describe(failures, "kind", "message")


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_file_needs_more_memory_than_twice_its_size(category, verdicts):
    failures = [row for row in rows_of(verdicts, category) if row["memory"] > 2 * row["size"] + 64 * MB]
    assert not failures, describe(failures, "memory", "size")


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_file_takes_long(category, verdicts):
    # Processor time. The honest files and all refusals take about a second. Attacks on a naive reader take hours.
    failures = [row for row in rows_of(verdicts, category) if row["seconds"] > 20]
    assert not failures, describe(failures, "seconds")


def test_battery_detects_attacks_on_an_unsafe_reader(malicious):
    folder, _ = malicious
    rows = [json.loads(line) for line in run_module("tests.security.malice", folder, ": GLOBAL os.system").splitlines()]
    # The file exists only if code ran.
    (folder / "canary").unlink()
    assert all(any(act.startswith("os.system") for act in row["acts"]) for row in rows if "kind" in row)
    rows = [
        json.loads(line) for line in run_module("tests.security.malice", folder, "pickle: bytearray.pt").splitlines()
    ]
    assert any(row["memory"] > 200 * MB for row in rows if "kind" in row)


def test_large_file_needs_at_most_twice_its_size(verdicts):
    large = [row for row in verdicts if "large" in row]
    assert large
    assert all(row["size"] > 60 * MB for row in large)
    assert all(row["size"] / 2 < row["memory"] <= 2.2 * row["size"] for row in large), large


def test_checkpoint_cannot_delete_files_of_the_user(tmp_path):
    def fit(callback, **options):
        trained = Model(mlp(), device="cpu").compile("sgd", "cross_entropy")
        trained.fit(X, Y, epochs=2, batch_size=25, callbacks=[callback], verbose=0, **options)

    fit(ModelCheckpoint(tmp_path / "models" / "{epoch}.pt", keep=1), resume=tmp_path / "run")
    victim = tmp_path / "thesis.tex"
    victim.write_text("months of work")
    path = rotation.list_checkpoints(tmp_path / "run")[-1]
    content = files.read(path)
    state = next(state for name, state in content["callbacks"] if name == "ModelCheckpoint")
    state["written"] = [[str(victim), None]]
    files.write(tmp_path / "evil.pt", content)
    again = ModelCheckpoint(tmp_path / "models" / "{epoch}.pt", keep=1)
    refusal = refusal_of(lambda: fit(again, resume=tmp_path / "evil.pt"))
    assert victim.exists()
    # To refuse the file is correct, too.
    assert refusal is None or "evil.pt" in str(refusal)


class Two(nn.Module):
    """The same layers, defined in the order of ``order``."""

    def __init__(self, order):
        super().__init__()
        for name in order:
            setattr(self, name, nn.Linear(8, 5, bias=False) if name == "a" else nn.Linear(5, 3, bias=False))

    def forward(self, x):
        return self.b(self.a(x))


def test_optimizer_state_never_goes_to_another_shape(tmp_path):
    first = Model(Two("ab"), device="cpu").compile("adam", "cross_entropy")
    first.fit(X, Y, verbose=0)
    first.save(tmp_path / "model.pt")
    second = Model(Two("ba"), device="cpu").compile("adam", "cross_entropy")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            second.load(tmp_path / "model.pt")
        except FileError:
            return
    state = {name: second.optimizer.state.get(value) for name, value in second.module.named_parameters()}
    moments = {name: found["exp_avg"] for name, found in state.items() if found}
    assert all(moments[name].shape == second.module.get_parameter(name).shape for name in moments)
    # The state is matched by name, or empty with a warning.
    assert moments or caught
