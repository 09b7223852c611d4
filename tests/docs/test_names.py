"""Page of names: it lists every name that compile accepts."""

import re
from pathlib import Path

import pytest

from easytorch import optimizers
from easytorch.callbacks import Schedule
from easytorch.losses import names as losses
from easytorch.metrics import names as metrics
from easytorch.metrics.torchmetrics import TORCHMETRICS

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


def rows(section):
    """Yield the names and the other cells of each row with names."""
    for line in SECTIONS[section].splitlines():
        if line.startswith('| `"'):
            first, *others = line.strip("| ").split(" | ")
            yield re.findall(r'`"(\w+)"`', first), others


def test_page_has_class_and_learning_rate_of_each_optimizer():
    table = {names[0]: cells for names, cells in rows("Optimizers") if names[0] in optimizers.TABLE}
    for name in set(table) - {"sam"}:
        link, rate = table[name]
        assert f"`torch.optim.{optimizers.TABLE[name].__name__}`" in link
        assert float(rate) == optimizers.option_defaults(optimizers.TABLE[name])["lr"], name


def test_page_has_the_class_of_each_loss_of_torch():
    listed = {name: cells[0] for names, cells in rows("Losses") for name in names if cells[0].startswith("[`")}
    assert set(listed) == {name for name in losses.TABLE if isinstance(losses.TABLE[name], type)}
    assert all(cell.startswith(f"[`{losses.TABLE[name].__name__}`]") for name, cell in listed.items())


def test_page_has_the_class_of_each_metric_of_torchmetrics():
    listed = {name: cells[0].strip("`") for names, cells in rows("Metrics") for name in names if name in TORCHMETRICS}
    assert set(listed) == set(TORCHMETRICS)
    assert all(TORCHMETRICS[name].endswith(cls) for name, cls in listed.items())
