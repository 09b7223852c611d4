"""Resumed runs equal uninterrupted runs, wherever data keeps its state."""

from __future__ import annotations

import pytest

from tests import common_sources
from tests.cases import slow_after_first
from tests.common_resume import LOADERS, program, stop_and_resume
from tests.common_sources import DATASETS, SAMPLERS, STREAMS, StandIn, StandInWithLength
from tests.test_resume import assert_same_run
from torch.utils.data import DataLoader

# The last update before the crash, and how often checkpoints are written: in an epoch, at its last update, and between epochs.
STOPS = [(2, 1), (7, 1), (8, "epoch"), (10, 1), (14, 1), (15, "epoch"), (19, 1)]


def check_stops(make_loader, folder, stops=STOPS, **options):
    """Check that the run equals an undisturbed one after each stop; return the warnings."""

    def start(*args, **more):
        common_sources.restart()
        return program(*args, epochs=3, **options, **more)

    def make_fresh():
        common_sources.restart()
        return make_loader()

    undisturbed = start(folder / "undisturbed", make_fresh)
    messages = []
    for step, save_freq in stops:
        run = stop_and_resume(folder / f"{step}-{save_freq}", make_fresh, step, epochs=3, save_freq=save_freq, **options)
        assert_same_run(undisturbed, run)
        messages += run[2]
    return messages


@pytest.mark.parametrize("place", DATASETS)
def test_generators_of_samples_are_resumed_in_any_place(place, tmp_path):
    assert not check_stops(lambda: DataLoader(DATASETS[place](), 8, shuffle=True), tmp_path)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_state_of_samplers_and_collation_is_resumed(kind, tmp_path):
    assert not check_stops(SAMPLERS[kind], tmp_path)


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_with_a_state_of_their_own_are_resumed(kind, tmp_path):
    messages = check_stops(STREAMS[kind], tmp_path)
    assert all("loaded again and discarded" in m or "workers load" in m for m in messages)


@pytest.mark.parametrize("kind", [StandIn, StandInWithLength])
def test_a_loader_that_saves_itself_is_resumed(kind, tmp_path):
    assert not check_stops(kind, tmp_path)
