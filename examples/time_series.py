"""A network that forecasts the next day of an hourly series.

    python examples/time_series.py [--quick] [--seed N] [--plot forecast.png]

The series is synthetic, so the program needs no download: a demand with a daily and a weekly pattern, a trend, and noise
in which a deviation lasts for hours. The network sees the last week, and predicts all 24 hours of the next day at once,
as differences to the same hours of the last week. The parts for training, validation and test follow each other in time.
Mean and deviation are those of the training part. The baseline is the same day of the last week.
"""

import argparse
import math

import torch
from torch import nn

import easytorch
from easytorch.callbacks import EarlyStopping

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--quick", action="store_true", help="a third of the series")
options.add_argument("--seed", type=int, default=0, help="random seed of the weights and the order of the windows")
options.add_argument("--plot", metavar="FILE", help="write a figure of the forecast of the last day")
args = options.parse_args()
DAY, WEEK = 24, 7 * 24


def make_series(hours: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    hour = torch.arange(hours, dtype=torch.float64)
    daily = torch.sin(2 * math.pi * hour / DAY) + 0.3 * torch.sin(4 * math.pi * hour / DAY)
    is_weekend = (hour // DAY) % 7 >= 5
    noise, state = torch.randn(hours, generator=generator, dtype=torch.float64), 0.0
    deviations = []
    for value in noise.tolist():
        state = 0.97 * state + 0.15 * value
        deviations.append(state)
    return 100 + 20 * (daily * (1 - 0.5 * is_weekend.double()) + torch.tensor(deviations)) + 0.002 * hour


def make_windows(series: torch.Tensor, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return windows of one week, and the next 24 hours of each, which lie between ``first`` and ``last``."""
    rows = series[max(first - WEEK, 0) : last].unfold(0, WEEK + DAY, 1)
    return rows[:, :WEEK].float(), rows[:, WEEK:].float()


class Forecaster(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(WEEK, width),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, DAY),
        )

    def forward(self, week: torch.Tensor) -> torch.Tensor:
        # The forecast starts from the same day of the last week.
        level = week.mean(1, keepdim=True)
        return week[:, :DAY] + self.layers(week - level)


torch.manual_seed(args.seed)
series = make_series(24 * (240 if args.quick else 730))
train_end, val_end = len(series) * 7 // 10, len(series) * 85 // 100
mean, std = series[:train_end].mean(), series[:train_end].std()
scaled = (series - mean) / std
train, val, test = (
    make_windows(scaled, *part) for part in ((0, train_end), (train_end, val_end), (val_end, len(series)))
)

model = easytorch.Model(Forecaster()).compile("adamw", "mae", lr=1e-3, scheduler="cosine")
model.fit(
    train, epochs=10, batch_size=128, validation_data=val, verbose=2,
    callbacks=[EarlyStopping(patience=4, restore_best_weights=True)],
)  # fmt: skip
week, actual = test
error = model.evaluate(week, actual, verbose=0).loss * std
baseline = (week[:, :DAY] - actual).abs().mean() * std
forecast = torch.from_numpy(model.predict(week[-1:]))[0] * std + mean
print(f"The next hours: {', '.join(f'{value:.0f}' for value in forecast[:6])}")
print(f"Result: test mae = {error:.3f}")
print(f"Result: test mae of the last week = {baseline:.3f}")
print(f"Result: parameters = {sum(p.numel() for p in model.module.parameters())}")

if args.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axis = figure.subplots()
    axis.plot(range(-2 * DAY, 0), week[-1, -2 * DAY :] * std + mean, color="gray", label="known")
    axis.plot(range(DAY), actual[-1] * std + mean, label="actual")
    axis.plot(range(DAY), forecast, label="forecast")
    axis.plot(range(DAY), week[-1, :DAY] * std + mean, ":", label="last week")
    axis.set(xlabel="hours from now", ylabel="demand")
    axis.legend()
    figure.savefig(args.plot, dpi=150)
