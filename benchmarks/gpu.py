"""Everything that only an accelerator shows: fit compared with a tuned loop, waits for the device, memory, NCCL.

    python -m benchmarks.gpu [--limit 540] [--markdown FILE] [--json FILE]

One command for one card. Measurements that the limit leaves no time for are listed as such. Without an accelerator,
``--device cpu --quick`` runs the same code on small networks, which is how the tests prove that the command works.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import io
import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import easytorch
from benchmarks.report import print_table, quartiles
from benchmarks.workloads import LSTM, mlp

ROOT = Path(__file__).parents[1]
ROUNDS = 5
# Calls of the CUDA runtime that make the host wait, and copies to the host, as the profiler names them
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "hipStreamSynchronize")
COPIES_TO_HOST = "Memcpy DtoH"


@dataclass(frozen=True)
class Setting:
    """Arguments of ``compile``, which the loop gets as the code that they stand for.

    Args:
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        tf32: Whether matrix products in fp32 may use TensorFloat-32.
        compiled: The mode of ``torch.compile``, or None. ``"reduce-overhead"`` records CUDA graphs.
        channels_last: Whether images have the channels-last memory format.
    """

    precision: str = "fp32"
    tf32: bool = False
    compiled: str | None = None
    channels_last: bool = False


SETTINGS = {
    "fp32": Setting(),
    "TF32": Setting(tf32=True),
    "bf16": Setting("bf16"),
    "fp16": Setting("fp16"),
    "bf16, channels last": Setting("bf16", channels_last=True),
    "bf16, compiled": Setting("bf16", compiled="default"),
    "bf16, CUDA graphs": Setting("bf16", compiled="reduce-overhead"),
}


@dataclass(frozen=True)
class Program:
    """A network with its data.

    Args:
        make: A function that returns the network.
        shape: The shape of a sample.
        batch_size: Samples per batch.
        steps: Steps of a measured epoch.
        settings: Names of the settings to measure.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch_size: int
    steps: int
    settings: tuple[str, ...] = ("fp32", "TF32", "bf16", "fp16")

    def batches(self, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Return random batches on ``device``; a few of them, repeated."""
        generator = torch.Generator().manual_seed(0)
        made = [
            (
                torch.randn(self.batch_size, *self.shape, generator=generator).to(device),
                torch.randint(10, (self.batch_size,), generator=generator).to(device),
            )
            for _ in range(min(4, self.steps))
        ]
        return [made[i % len(made)] for i in range(self.steps)]


class Encoder(nn.Module):
    """A transformer encoder that classifies a sequence of vectors."""

    def __init__(self, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x + self.position).mean(1))


def resnet(name: str) -> nn.Module:
    import torchvision

    return getattr(torchvision.models, name)(num_classes=10)


PROGRAMS = {
    "MLP": Program(mlp, (1, 28, 28), 64, 500, (*SETTINGS,)[:4]),
    "ResNet-50": Program(functools.partial(resnet, "resnet50"), (3, 224, 224), 64, 15, (*SETTINGS,)[:6]),
    "LSTM": Program(LSTM, (1, 28, 28), 256, 100),
    "Transformer": Program(functools.partial(Encoder, 768, 12, 512), (512, 768), 16, 15, (*SETTINGS,)),
}
QUICK = {
    "MLP": Program(mlp, (1, 28, 28), 8, 4, ("fp32", "bf16")),
    "Transformer": Program(functools.partial(Encoder, 64, 1, 4), (4, 64), 4, 3, ("fp32",)),
}


class Deadline:
    """The time that is left."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--device", default="auto", help="the device; by default the accelerator")
    options.add_argument("--limit", type=float, default=540, metavar="SECONDS", help="time for all measurements")
    options.add_argument("--quick", action="store_true", help="use small networks and few steps")
    options.add_argument("--skip-tests", action="store_true", help="do not run the tests marked gpu")
    options.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables to this file")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    args = options.parse_args()
    device = find_device(args.device)
    deadline, programs = Deadline(args.limit), QUICK if args.quick else PROGRAMS
    report, results = io.StringIO(), dict[str, Any]()
    print_both = functools.partial(write_to, [sys.stdout, report])
    print_both(describe_machine(device))
    parts: dict[str, Callable[[], list[list[str]]]] = {
        "Tests marked gpu": functools.partial(run_tests, deadline) if not args.skip_tests else list,
        "Same weights as the loop": functools.partial(compare_weights, programs, device),
        "Waits for the device per step": functools.partial(count_waits, device),
        "Peak memory": functools.partial(measure_memory, programs, device),
        "Time of a step": functools.partial(measure_steps, programs, device, deadline, results),
        "Data": functools.partial(measure_data, device, args.quick),
        "One process of a group": functools.partial(run_group, device),
    }
    for title, measure in parts.items():
        print_both(f"\n### {title}\n")
        if deadline.left() < 0:
            print_both("Not measured: the limit of time was reached.")
            continue
        try:
            rows = measure()
        except Exception as error:  # one part must not take the others with it; its error is part of the report
            rows = [["error"], [f"{type(error).__name__}: {error}".splitlines()[0]]]
        results[title] = rows
        with contextlib.redirect_stdout(io.StringIO()) as table:
            print_table(rows or [["not run"]])
        print_both(table.getvalue().rstrip())
        if args.markdown:  # after each part, so that nothing is lost if the command is stopped
            args.markdown.write_text(report.getvalue(), encoding="utf-8")
        if args.json:
            args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def write_to(files: list[Any], text: str) -> None:
    for file in files:
        print(text, file=file, flush=True)


def find_device(name: str) -> torch.device:
    """Return the accelerator, or the device called ``name``."""
    if name != "auto":
        return torch.device(name)
    if not torch.accelerator.is_available():
        raise SystemExit("No accelerator was found. Use --device cpu --quick to try the command without one.")
    return torch.device(torch.accelerator.current_accelerator() or "cpu", 0)


def describe_machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} of {platform.machine()}"
    return f"{name}; torch {torch.__version__}, CUDA {torch.version.cuda}, easytorch {easytorch.__version__}"


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


# The loop and fit


def make_loop(program: Program, setting: Setting, device: torch.device) -> tuple[nn.Module, Callable[[Any], None]]:
    """Return the network and a tuned training loop of one epoch: nothing is read from the device."""
    network = make_network(program, setting, device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(setting.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=setting.precision == "fp16")
    module = torch.compile(network, mode=setting.compiled) if setting.compiled else network
    loss_function = nn.CrossEntropyLoss()

    def run(batches: Any) -> None:
        network.train()
        for x, y in batches:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            if setting.channels_last:
                x = x.to(memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                loss = loss_function(module(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        synchronize(device)

    return network, run


def make_fit(program: Program, setting: Setting, device: torch.device, **options: Any) -> tuple[nn.Module, Any]:
    """Return the network and a function that trains one epoch with ``fit``."""
    network = make_network(program, setting, device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)
    graphs = setting.compiled == "reduce-overhead"
    module = torch.compile(network, mode=setting.compiled) if graphs else network
    model = easytorch.Model(module, device=device).compile(
        optimizer,
        "cross_entropy",
        precision=setting.precision,
        jit_compile=setting.compiled == "default",
        channels_last=setting.channels_last,
        **options,
    )

    def run(batches: Any) -> None:
        model.fit(batches, verbose=0)
        synchronize(device)

    return network, run


def make_network(program: Program, setting: Setting, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    network = program.make().to(device)
    return network.to(memory_format=torch.channels_last) if setting.channels_last else network


@contextlib.contextmanager
def precision_of_products(setting: Setting) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if setting.tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# Measurements. Each returns the rows of a table.


def measure_steps(
    programs: dict[str, Program], device: torch.device, deadline: Deadline, results: dict[str, Any]
) -> list[list[str]]:
    """Compare the time of a step in turns with the loop, and the loop with itself."""
    rows = [["network", "setting", "loop, ms", "fit / loop", "quartiles", "loop / loop"]]
    for name, program in programs.items():
        batches = program.batches(device)
        for title in program.settings:
            if deadline.left() < 0:
                rows.append([name, title, "not measured", "", "", ""])
                continue
            setting = SETTINGS[title]
            with precision_of_products(setting), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch.compile, about the machine
                runs = [make(program, setting, device)[1] for make in (make_loop, make_fit, make_loop)]
                for run in runs:
                    run(batches)  # the first steps load kernels, and compile
                times = [measure_turn(runs, batches, reverse=bool(i % 2)) for i in range(ROUNDS)]
            low, middle, high = quartiles([fit / loop for loop, fit, _ in times])
            control = quartiles([again / loop for loop, _, again in times])[1]
            seconds = quartiles([loop for loop, *_ in times])[1] / program.steps
            rows.append(
                [name, title, f"{1e3 * seconds:.3f}", f"{middle:.2f}", f"{low:.2f} - {high:.2f}", f"{control:.2f}"]
            )
            results.setdefault("times", {})[f"{name}, {title}"] = times
            torch.compiler.reset()
            release(device)
    return rows


def measure_turn(runs: list[Callable[[Any], None]], batches: Any, reverse: bool) -> list[float]:
    """Return the seconds of each of ``runs``, which run in turns."""
    seconds = [0.0] * len(runs)
    for i in reversed(range(len(runs))) if reverse else range(len(runs)):
        start = time.perf_counter()
        runs[i](batches)
        seconds[i] = time.perf_counter() - start
    return seconds


def compare_weights(programs: dict[str, Program], device: torch.device) -> list[list[str]]:
    """Compare the weights after a few steps of fit and of the loop, with deterministic algorithms."""
    rows = [["network", "setting", "largest difference of a weight", "of the loop to itself"]]
    for name, program in programs.items():
        batches = program.batches(device)[:5]
        for title in ("fp32", "bf16", "fp16"):
            if title not in program.settings:
                continue
            weights = []
            for make in (make_loop, make_fit, make_loop):
                network, run = make(program, SETTINGS[title], device)
                run(batches)
                weights.append([parameter.detach().clone() for parameter in network.parameters()])
            differences = [
                max((a - b).abs().max().item() for a, b in zip(weights[0], other, strict=True)) for other in weights[1:]
            ]
            rows.append([name, title, *(f"{difference:.1e}" for difference in differences)])
            release(device)
    return rows


def count_waits(device: torch.device) -> list[list[str]]:
    """Count the calls that wait for the device, by the profiler, for two numbers of steps."""
    program = QUICK["MLP"]
    rows = [["fit", "waits in 20 steps", "waits in 120 steps", "per step"]]
    kinds: dict[str, dict[str, Any]] = {
        "loss": {},
        "accuracy": {"metrics": ["accuracy"]},
        "clipping, accumulation": {"clip_grad_norm": 1.0, "gradient_accumulation_steps": 2},
        "fp16": {},
    }
    batch = program.batches(device)[0]
    for title, options in kinds.items():
        setting = SETTINGS["fp16" if title == "fp16" and device.type != "cpu" else "fp32"]
        _, run = make_fit(program, setting, device, **options)
        run([batch] * 20)
        counts = [count_events(functools.partial(run, [batch] * steps), device) for steps in (20, 120)]
        rows.append([title, *map(str, counts), f"{(counts[1] - counts[0]) / 100:.2f}"])
    return rows


def count_events(run: Callable[[], None], device: torch.device) -> int:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        run()
    return sum(event.name in WAITS or event.name.startswith(COPIES_TO_HOST) for event in profiler.events() or ())


def measure_memory(programs: dict[str, Program], device: torch.device) -> list[list[str]]:
    """Compare the peak of the allocated memory of fit and of the loop."""
    rows = [["network", "setting", "loop, MB", "fit, MB", "ratio"]]
    if device.type != "cuda":
        return [["not measured"], [f"torch counts no memory of the device {device.type!r}"]]
    for name, program in programs.items():
        for title in ("fp32", "bf16"):
            peaks = []
            for make in (make_loop, make_fit):
                release(device)
                batches = program.batches(device)[:4]
                torch.cuda.reset_peak_memory_stats(device)
                _, run = make(program, SETTINGS[title], device)
                run(batches)
                peaks.append(torch.cuda.max_memory_allocated(device) / 2**20)
                del run, batches
            rows.append([name, title, *(f"{peak:.0f}" for peak in peaks), f"{peaks[1] / peaks[0]:.3f}"])
    return rows


def release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure_data(device: torch.device, quick: bool) -> list[list[str]]:
    """Compare ways to bring images in the host's memory to the device, with the MLP."""
    program, count = QUICK["MLP"] if quick else PROGRAMS["MLP"], 200 if quick else 60_000
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(
        torch.randn(count, 1, 28, 28, generator=generator), torch.randint(10, (count,), generator=generator)
    )
    on_device = TensorDataset(*(tensor.to(device) for tensor in data.tensors))
    accelerated = device.type != "cpu"
    workers = {"num_workers": 0 if quick else 4, "pin_memory": accelerated, "persistent_workers": not quick}
    kinds = {
        "DataLoader, 4 workers, pinned memory": DataLoader(data, program.batch_size, shuffle=True, **workers),
        "DataLoader without workers": DataLoader(data, program.batch_size, shuffle=True),
        "TensorDataset on the device": DataLoader(on_device, program.batch_size, shuffle=True),
    }
    rows = [["data", "loop, samples/s", "fit, samples/s", "fit / loop"]]
    for title, loader in kinds.items():
        runs = [make(program, SETTINGS["fp32"], device)[1] for make in (make_loop, make_fit)]
        for run in runs:
            run(loader)
        times = [measure_turn(runs, loader, reverse=bool(i % 2)) for i in range(3)]
        loop, fit = (quartiles([pair[i] for pair in times])[1] for i in range(2))
        rows.append([title, f"{count / loop:,.0f}", f"{count / fit:,.0f}", f"{fit / loop:.2f}"])
    return rows


def run_group(device: torch.device) -> list[list[str]]:
    """Train in one process of a process group: NCCL on a CUDA device."""
    rows = [["strategy", "backend", "difference of the weights to one process"]]
    expected = train_in_group(str(device), "auto")[1]
    for strategy in ("ddp", "fsdp"):
        ((backend, weights),) = easytorch.launch(train_in_group, str(device), strategy, processes=1, timeout=120)
        rows.append([strategy, backend, f"{(weights - expected).abs().max().item():.1e}"])
    return rows


def train_in_group(device: str, strategy: str) -> tuple[str, Tensor]:
    """Return the backend of the process group and the trained weights, shape [parameters]."""
    program, place = QUICK["MLP"], torch.device(device)
    network = make_network(program, SETTINGS["fp32"], place)
    model = easytorch.Model(network, device=place).compile("sgd", "cross_entropy", lr=0.01, strategy=strategy)
    model.fit([(x.cpu(), y.cpu()) for x, y in program.batches(place)], verbose=0)
    backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else "none"
    state = model.state_dict()["module"] if strategy == "fsdp" else network.state_dict()
    return backend, torch.cat([tensor.detach().cpu().float().flatten() for tensor in state.values()])


def run_tests(deadline: Deadline) -> list[list[str]]:
    """Run the tests that need an accelerator."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-q", "--no-header", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, min(180.0, deadline.left() / 2))
        )
    except subprocess.TimeoutExpired:
        return [["result"], ["stopped after the limit of time"]]
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return [["result"], *([line] for line in [*lines, *done.stdout.splitlines()[-1:]])]


if __name__ == "__main__":
    main()
