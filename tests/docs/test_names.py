"""Page of names: it lists every name that compile accepts."""

import re
from pathlib import Path

import pytest

from easytorch import optimizers
from easytorch.callbacks import Schedule
from easytorch.losses import names as losses
from easytorch.metrics import names as metrics

PAGE = Path(__file__).parents[2] / "docs/api/names.md"
SECTIONS = dict(re.findall(r"^## (.+?)\n(.+?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S))
SUFFIXES = tuple(f"_{average}" for average in metrics.AVERAGES)


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("Optimizers", optimizers.TABLE),
        ("Losses", losses.TABLE),
        ("Metrics", [name for name in metrics.NAMES if not name.endswith(SUFFIXES)]),
        ("Learning rate schedules", Schedule.NAMES),
    ],
)
def test_page_lists_all_names(section, names):
    rows = "\n".join(line for line in SECTIONS[section].splitlines() if line.startswith("| `"))
    listed = {name for cell in re.findall(r"^\| (.+?) \|", rows, re.M) for name in re.findall(r'`"(\w+)"`', cell)}
    assert set(names) <= listed
    later = {"adafactor", "muon"}  # which older releases of torch do not have
    assert listed - set(names) <= later


def test_page_lists_the_metrics_with_averages():
    rows = [line for line in SECTIONS["Metrics"].splitlines() if "`_macro`" in line]
    listed = {name for row in rows for name in re.findall(r'`"(\w+)"`', row.split(" | ")[0])}
    assert listed == set(metrics.AVERAGED)
