"""Promise 4 in seconds: one fast test for each subject of the security tests."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from easytorch import FileError
from easytorch.checkpoint import files
from tests.security.common_damage import FOLDERS_SYNC
from tests.security.damage import good_files, model, numbers_in, run_variants
from tests.security.malicious_archives import Member, archive, changed, members_of
from tests.security.malicious_contents import headers
from tests.security.malicious_pickles import bombs, calls, insert
from tests.security.test_power_loss import cut_while_replacing


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return good_files(tmp_path_factory.mktemp("good"))


def test_damaged_files_are_refused(tmp_path):
    tally = run_variants(60, tmp_path, seed=2)
    assert tally.refused > 50
    assert not tally.silent
    assert not tally.other


ATTACKS = ["GLOBAL os.system", "STACK_GLOBAL os.system", "bytearray", "OrderedDicts from one list", "lists in lists"]


@pytest.mark.parametrize("kind", ATTACKS)
def test_malicious_pickles_are_refused_and_run_no_code(kind, good, tmp_path):
    payload = (calls(str(tmp_path / "canary")) | bombs())[kind]
    path = tmp_path / "model.pt"
    path.write_bytes(changed(good["model"].read_bytes(), "data.pkl", insert(payload)))
    with pytest.raises(FileError, match=r"model\.pt"):
        files.read(path)
    assert not (tmp_path / "canary").exists()


ARCHIVES = {
    "compressed member": lambda members: archive([*members, Member(b"archive/data/999", bytes(1000), method=8)]),
    "duplicate member": lambda members: archive([*members, members[-1]]),
    "data before the archive": lambda members: archive(members, prefix=b"#!/bin/sh"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_of_unusual_layout_are_refused(kind, good, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(ARCHIVES[kind](members_of(good["model"].read_bytes())))
    with pytest.raises(FileError, match=r"model\.pt' is refused"):
        files.read(path)


@pytest.mark.parametrize("kind", ["length huge", "offsets overlapping", "another checksum"])
def test_malicious_safetensors_headers_are_refused(kind, good, tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is optional")
    path = tmp_path / "weights.safetensors"
    path.write_bytes(headers(good["safetensors"].read_bytes())[kind])
    with pytest.raises(FileError, match=r"weights\.safetensors"):
        files.read(path)


@FOLDERS_SYNC
def test_power_loss_never_destroys_or_loses_a_file(tmp_path):
    assert cut_while_replacing(tmp_path / "run", states=200) == (0, 0)


def test_known_full_disk_raises_before_the_write(tmp_path, monkeypatch):
    path = model().save(tmp_path / "model.pt")
    size = path.stat().st_size
    full = type("Full", (), {"f_bavail": 1, "f_bfree": 1, "f_blocks": 10**6, "f_frsize": 1000, "f_bsize": 1000})()
    monkeypatch.setattr(os, "statvfs", lambda path: full, raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    replaced = []
    monkeypatch.setattr(os, "replace", lambda *args: replaced.append(args))
    with pytest.raises(OSError, match="1,000 bytes are free") as caught:
        model().save(path)
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)
    assert any(0.5 * size <= n <= 1.3 * size + 4096 for n in numbers_in(str(caught.value).replace(str(path), "")))
    assert not replaced
