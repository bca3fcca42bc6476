"""Measures the price of mixing, side by side with its peers: ``make bench`` and ``make bench-gpu``.

Trials are interleaved, and a row's number is the median of what they gave, with a bootstrap interval. The
section of docs/performance.md for this kind of machine is written anew, and so is its plot.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DOCS = Path(__file__).parent
PAGE = DOCS / "performance.md"
PLOTS = {kind: DOCS / "images" / f"performance-{kind}.png" for kind in ("cpu", "gpu")}
TITLES = {"cpu": "## On a CPU", "gpu": "## On a GPU"}
INTRODUCTION = """\
# Performance

The raw output of `make bench` and `make bench-gpu`: medians of interleaved trials in one run, with 95 %
bootstrap intervals. A ratio is our time by the other's. A target that was missed stays red here.
"""
NOT_MEASURED = "Not measured yet.\n"
PACKAGES = ("lightning_msda", "torch", "lightning", "torchvision", "kornia", "timm", "numpy")

Work = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, against what, and what it may be at most.

    Attributes:
        what: What is measured.
        against: What it is held against.
        target: The largest value that is fine.
        measured: What was measured, a median.
        interval: Where that lies with 95 % confidence.
        unit: ``x`` for a ratio, or a unit of time.
        notes: The times behind a ratio, and whatever else is to be said.
    """

    what: str
    against: str
    target: float
    measured: float
    interval: tuple[float, float]
    unit: str = "x"
    notes: str = ""

    @property
    def met(self) -> bool:
        """Whether the target was met."""
        return self.measured <= self.target


# --- bookkeeping --------------------------------------------------------------------------------------------


def interleaved(works: Mapping[str, Work], trials: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Return the seconds that each work took in each trial, one after the other in every one of them.

    They change places in every trial, and each is called once before it is timed: what the one before left
    in caches, and threads that went to sleep during it, are no part of a work.

    Args:
        works: What is timed, by name.
        trials: How often.
        clock: Tells the time in seconds, when everything before is done.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    order = list(works)
    for trial in range(trials):
        for name in order[trial % len(order) :] + order[: trial % len(order)]:
            works[name]()
            begin = clock()
            works[name]()
            times[name].append(clock() - begin)
    return times


def bootstrap(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a median.

    Args:
        values: What was measured.
        draws: How many samples are drawn from it, with replacement.
    """
    sample = torch.tensor(values, dtype=torch.float64)
    chosen = torch.randint(len(sample), (draws, len(sample)), generator=torch.Generator().manual_seed(0))
    medians = sample[chosen].quantile(0.5, 1)
    low, high = medians.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def ratio_row(
    what: str, ours: str, others: Mapping[str, str], target: float, times: Mapping[str, Sequence[float]]
) -> Row:
    """Return the row of our time by that of the fastest of others.

    Args:
        what: What is measured.
        ours: The name of our work.
        others: The works that it is held against by name, and what each is called.
        target: The largest ratio that is fine.
        times: What `interleaved` returned.
    """
    fastest = min(others, key=lambda name: statistics.median(times[name]))
    ratios = [mine / other for mine, other in zip(times[ours], times[fastest], strict=True)]
    notes = ", ".join(
        f"{'ours' if name == ours else others[name]} {_in_ms(times[name])}" for name in (ours, *others)
    )
    measured = statistics.median(ratios)
    return Row(what, others[fastest], target, measured, bootstrap(ratios), notes=notes)


def _in_ms(times: Sequence[float]) -> str:
    return f"{1000 * statistics.median(times):.3g} ms"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table."""
    lines = ["| what | against | target | measured | 95 % interval | met | medians |", "| --- " * 7 + "|"]
    for row in rows:
        target, value, low, high = (
            _spell(number, row.unit) for number in (row.target, row.measured, *row.interval)
        )
        lines.append(
            f"| {row.what} | {row.against} | ≤ {target} | {value} | {low} – {high}"
            f" | {'🟢 yes' if row.met else '🔴 no'} | {row.notes} |"
        )
    return "\n".join(lines)


def _spell(value: float, unit: str) -> str:
    return f"{value:.3f}x" if unit == "x" else f"{value:.3f} {unit}"


def section(kind: str, rows: Sequence[Row], facts: Sequence[str]) -> str:
    """Return the section of the page for a kind of machine.

    Args:
        kind: ``cpu`` or ``gpu``.
        rows: What was measured.
        facts: When, on what and with what.
    """
    listed = "\n".join(f"- {fact}" for fact in facts)
    missed = sum(not row.met for row in rows)
    verdict = f"{len(rows) - missed} of {len(rows)} targets were met."
    picture = f"![Measured, as a share of each target](images/{PLOTS[kind].name})"
    return f"{TITLES[kind]}\n\n{listed}\n\n{verdict}\n\n{picture}\n\n{table(rows)}\n"


def page(before: str | None, kind: str, text: str) -> str:
    """Return the page with one section written anew and the other one as it was.

    Args:
        before: The page as it is; None if there is none.
        kind: ``cpu`` or ``gpu``.
        text: The new section.
    """
    parts = {other: f"{title}\n\n{NOT_MEASURED}" for other, title in TITLES.items()}
    for other, title in TITLES.items():
        if before is not None and title in before:
            rest = before[before.index(title) + len(title) :]
            parts[other] = title + rest.split("\n## ")[0].rstrip() + "\n"
    return "\n".join([INTRODUCTION, *({**parts, kind: text}[other] for other in TITLES)])


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw what was measured, as a share of each target.

    Args:
        rows: What was measured.
        path: Where the picture is written.
    """
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.target > 0]  # of 0 nothing is a share
    figure = Figure(figsize=(9.5, 0.3 * len(rows) + 1.1), layout="constrained")
    axes = figure.subplots()
    for at, row in enumerate(rows):
        share, *bounds = (value / row.target for value in (row.measured, *row.interval))
        colour = "#2e7d32" if row.met else "#c62828"
        axes.plot(bounds, [at, at], color=colour, linewidth=2, alpha=0.5, solid_capstyle="round")
        axes.plot(share, at, "o", color=colour, markersize=5)
    axes.axvline(1, color="0.4", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), [f"{row.what}  vs  {row.against}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=min(0.0, *(row.interval[0] / row.target for row in rows)))
    axes.set_xlabel("measured, as a share of its target (left of the line: met)", fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)


def facts(device: torch.device) -> list[str]:
    """Return when, on what and with what the table was measured."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        models = [
            line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = models[0] if models else cpu
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    gpu = [f"GPU: {torch.cuda.get_device_name(device)}"] if device.type == "cuda" else []
    return [
        f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, Python {platform.python_version()}",
        versions,
        f"CPU: {cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch,"
        f" load average {load:.1f} when the run began",
        *gpu,
    ]


# --- mixing by itself ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Where and how thoroughly it is measured.

    Attributes:
        device: The device of the batches.
        effort: How many trials are made, as a multiple of the usual.
    """

    device: torch.device
    effort: float = 1.0

    def trials(self, usual: int) -> int:
        """Return how many trials to make."""
        return max(3, round(usual * self.effort))

    def clock(self) -> float:
        """Return the time in seconds, when the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def forbidden_to_wait(self) -> Iterator[None]:
        """Let whatever waits for a GPU be an error."""
        if self.device.type != "cuda":
            yield
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def batch(self, *shape: int) -> Tensor:
        """Return a batch of images as they are trained on: on a GPU bfloat16, channels last."""
        x = torch.rand(shape, device=self.device)
        return x.bfloat16().to(memory_format=torch.channels_last) if self.device.type == "cuda" else x


def mixing_rows(bench: Bench, shape: tuple[int, ...]) -> Iterator[Row]:
    """Yield the rows of MixUp, CutMix and ResizeMix for batches of a shape."""
    from kornia.augmentation import RandomCutMixV2, RandomMixUpV2
    from timm.data.mixup import Mixup
    from torchvision.transforms import v2

    from lightning_msda import CutMix, MixUp, ResizeMix, Step

    n, _, *spatial = shape
    x, y = bench.batch(*shape), torch.randint(10, (n,), device=bench.device)
    partner = torch.randperm(n, device=bench.device)
    options: dict[str, Any] = {"num_classes": 10, "label_smoothing": 0.0}
    ordinal = 0

    def ours(method: Any) -> Work:
        def mix() -> None:
            nonlocal ordinal
            ordinal += 1
            with torch.no_grad(), bench.forbidden_to_wait():
                method.mix(x, Step(seed=0, ordinal=ordinal))

        return mix

    def timm(mode: str, **alphas: float) -> Work:
        mixup = Mixup(**{"mixup_alpha": 0.0, "cutmix_alpha": 0.0, **alphas}, mode=mode, **options)
        return lambda: mixup(x.clone(), y)  # it writes into its batch

    def place() -> tuple[list[int], tuple[slice, ...]]:
        ratio = float(torch.empty(()).uniform_(0.1, 0.8))
        sides = [max(1, int(ratio * size)) for size in spatial]
        starts = [int(torch.randint(size - side + 1, ())) for size, side in zip(spatial, sides, strict=True)]
        return sides, tuple(slice(at, at + side) for at, side in zip(starts, sides, strict=True))

    def resized() -> None:
        sides, box = place()
        x.clone()[(..., *box)] = F.interpolate(x[partner], sides)

    def resized_by_sample() -> None:
        mixed = x.clone()
        for i, other in enumerate(partners):
            sides, box = place()
            mixed[(i, ..., *box)] = F.interpolate(x[other : other + 1], sides)[0]

    partners = partner.tolist()
    lam = torch.tensor(0.3, device=bench.device, dtype=x.dtype)
    kinds = {"MixUp": (MixUp, RandomMixUpV2), "CutMix": (CutMix, RandomCutMixV2)}
    alphas = {"MixUp": {"mixup_alpha": 1.0}, "CutMix": {"cutmix_alpha": 1.0}}
    size = "×".join(map(str, shape))
    trials = bench.trials(25 if x.numel() > 2**21 else 150)
    for name, (kind, kornia) in kinds.items():
        peers: dict[str, Work] = {
            "torchvision": partial(getattr(v2, name)(num_classes=10), x, y),
            "kornia": partial(kornia(p=1.0), x, y),
            "timm": timm("batch", **alphas[name]),
            "timm elem": timm("elem", **alphas[name]),
        }
        peers = {peer: work for peer, work in peers.items() if _runs(work)}
        works = {
            "ours": ours(kind()),
            "by sample": ours(kind(per_sample=True)),
            "lerp": lambda: torch.lerp(x[partner], x, lam),
            **peers,
        }
        times = interleaved(works, trials, bench.clock)
        by_batch = {peer: peer for peer in peers if peer != "timm elem"}
        by_sample = {peer: peer for peer in peers if peer in ("timm elem", "kornia")}
        yield ratio_row(f"{name}, {size}", "ours", by_batch, 1.0, times)
        yield ratio_row(f"{name}, {size}", "ours", {"lerp": "torch.lerp(x[perm], x, lam)"}, 1.2, times)
        yield ratio_row(f"{name} per_sample, {size}", "by sample", by_sample, 1.0, times)
    works = {
        "ours": ours(ResizeMix()),
        "by sample": ours(ResizeMix(per_sample=True)),
        "parts": resized,
        "loop": resized_by_sample,
    }
    times = interleaved(works, trials, bench.clock)
    yield ratio_row(f"ResizeMix, {size}", "ours", {"parts": "clone + interpolate + paste"}, 1.2, times)
    yield ratio_row(f"ResizeMix per_sample, {size}", "by sample", {"loop": "the same, in a loop"}, 1.0, times)


def _runs(work: Work) -> bool:
    """Tell whether a peer takes such batches at all."""
    try:
        work()
    except (RuntimeError, TypeError, ValueError) as error:
        print(f"a peer is left out: {error}", file=sys.stderr)
        return False
    return True


def mask_rows(bench: Bench, side: int = 224, n: int = 64) -> Iterator[Row]:
    """Yield the rows of FMix's masks against a transform and a sort in numpy."""
    import numpy as np

    from lightning_msda.functional import fmix_mask

    noise = np.random.default_rng(0).standard_normal((2, side, side // 2 + 1))
    spectrum = noise[0] + 1j * noise[1]
    lams = torch.rand(n, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)

    def ours(lam: float | Tensor) -> Work:
        def draw() -> None:
            with bench.forbidden_to_wait():
                fmix_mask(lam, (side, side), device=bench.device, generator=generator)

        return draw

    def numpy_mask() -> Any:
        return np.fft.irfft2(spectrum, (side, side)).ravel().argsort()

    def numpy_masks() -> None:
        for _ in range(n):
            numpy_mask()

    one = interleaved({"ours": ours(0.4), "numpy": numpy_mask}, bench.trials(100), bench.clock)
    yield ratio_row(f"FMix, one mask {side}²", "ours", {"numpy": "numpy irfft2 + argsort"}, 1.0, one)
    many = interleaved({"ours": ours(lams), "numpy": numpy_masks}, bench.trials(12), bench.clock)
    yield ratio_row(f"FMix, {n} masks {side}²", "ours", {"numpy": f"{n} times that"}, 0.25, many)


# --- a whole training ---------------------------------------------------------------------------------------


def fit_seconds(
    bench: Bench, net: nn.Module, batches: list[Any], callbacks: Sequence[Any], skip: int
) -> float:
    """Return how long a fit takes for its batches, the first ones left out."""
    import lightning as L
    from torch.utils.data import DataLoader

    from lightning_msda.quiet import quiet

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.begin = 0.0

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.net(x)
            return scores

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            return F.cross_entropy(self(x).float(), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    class Watch(L.Callback):
        begin = end = 0.0

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == skip:
                self.begin = bench.clock()

        def on_train_end(self, trainer: Any, module: Any) -> None:
            self.end = bench.clock()

    watch = Watch()
    with quiet():
        trainer = L.Trainer(
            accelerator="gpu" if bench.device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-true" if bench.device.type == "cuda" else "32-true",
            max_epochs=1,
            callbacks=[watch, *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return watch.end - watch.begin


def fit_rows(bench: Bench) -> Iterator[Row]:
    """Yield the rows of a fit with us by a fit without us."""
    from torchvision.models import resnet18, resnet50

    from lightning_msda import MixUp, RandomMix

    on_gpu = bench.device.type == "cuda"
    shape = (256, 3, 224, 224) if on_gpu else (64, 3, 64, 64)
    net = (resnet50 if on_gpu else resnet18)(num_classes=10)
    net = net.to(memory_format=torch.channels_last) if on_gpu else net
    x = bench.batch(*shape)
    batches = [[x, torch.randint(10, shape[:1], device=bench.device)] for _ in range(13 if on_gpu else 5)]
    mixing, plain = _fits(bench, net, batches, lambda: RandomMix(seed=0), 1, bench.trials(15))
    ratios = [ours / without for ours, without in zip(mixing, plain, strict=True)]
    what = f"RandomMix over a fit, ResNet-{50 if on_gpu else 18} on {'×'.join(map(str, shape))}"
    notes = f"a batch without us {_in_ms(plain)}"
    yield Row(what, "fit without us", 1.01, statistics.median(ratios), bootstrap(ratios), notes=notes)

    tiny = nn.Linear(16, 4, dtype=torch.bfloat16 if on_gpu else None)
    x = torch.rand(8, 16, device=bench.device, dtype=tiny.weight.dtype)
    batches = [[x, torch.randint(4, (8,), device=bench.device)] for _ in range(320)]
    mixing, plain = _fits(bench, tiny, batches, lambda: MixUp(seed=0), 20, bench.trials(15))
    extra = [1000 * (ours - without) for ours, without in zip(mixing, plain, strict=True)]
    notes = f"a batch without us {_in_ms(plain)}"
    what = "Fixed cost of a batch, tiny model, MixUp"
    yield Row(what, "fit without us", 0.4, statistics.median(extra), bootstrap(extra), "ms", notes)


def puzzle_rows(bench: Bench) -> Iterator[Row]:
    """Yield the rows of a whole step of Puzzle Mix by a plain step."""
    from torchvision.models import resnet18

    from lightning_msda import PuzzleMix

    x = bench.batch(64, 3, 32, 32)
    batches = [[x, torch.randint(10, (64,), device=bench.device)] for _ in range(9)]
    net = resnet18(num_classes=10)
    for stride, target in ((1, 2.0), (2, 1.5)):
        method = partial(PuzzleMix, t_size=4, saliency_stride=stride, seed=0)
        mixing, plain = _fits(bench, net, batches, method, 1, bench.trials(15))
        ratios = [ours / without for ours, without in zip(mixing, plain, strict=True)]
        what = f"Puzzle Mix, ResNet-18 on 64×3×32×32, saliency_stride={stride}"
        notes = f"a batch without us {_in_ms(plain)}"
        yield Row(what, "plain step", target, statistics.median(ratios), bootstrap(ratios), notes=notes)


def _fits(
    bench: Bench, net: nn.Module, batches: list[Any], method: Work, skip: int, trials: int
) -> tuple[list[float], list[float]]:
    """Return the seconds of a batch in fits with a method and without one, in turns that change places."""
    mixing: list[float] = []
    plain: list[float] = []
    for trial in range(trials):
        for mixed in (True, False) if trial % 2 else (False, True):
            seconds = fit_seconds(bench, net, batches, [method()] if mixed else [], skip)
            (mixing if mixed else plain).append(seconds / (len(batches) - skip))
    return mixing, plain


def import_rows(bench: Bench) -> Iterator[Row]:
    """Yield the row of the import, and that of packages which it should not load."""

    def run(code: str) -> list[str]:
        return subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True).split()

    # Both in one process: what starting it takes differs by more from time to time.
    first, second = "lightning.pytorch", "lightning_msda"
    code = f"from time import perf_counter as t; a = t(); import {first}; b = t(); import {second}"
    code += "; print(b - a, t() - b)"
    run(code)
    theirs, extra = zip(*([float(part) for part in run(code)] for _ in range(bench.trials(7))), strict=True)
    notes = f"{first} {statistics.median(theirs):.2f} s, {second} after it"
    what = "import lightning_msda"
    yield Row(what, "import lightning.pytorch", 0.1, statistics.median(extra), bootstrap(extra), "s", notes)
    modules = [set(run(f"import sys, {name}; print(*sys.modules)")) for name in (first, second)]
    loaded = sorted({"wandb", "torchvision", "matplotlib"} & (modules[1] - modules[0]))
    count = float(len(loaded))
    what = "wandb, torchvision, matplotlib imported by it"
    yield Row(what, "none", 0.0, count, (count, count), "packages", ", ".join(loaded))


# --- the run ------------------------------------------------------------------------------------------------


def measured(bench: Bench) -> Iterator[Row]:
    """Yield every row of the table."""
    shapes = [(256, 3, 224, 224)] if bench.device.type == "cuda" else [(64, 3, 224, 224), (256, 3, 32, 32)]
    for shape in shapes:
        yield from mixing_rows(bench, shape)
    yield from mask_rows(bench)
    yield from puzzle_rows(bench)
    yield from fit_rows(bench)
    yield from import_rows(bench)


def main() -> int:
    """Measure, write page and plot, and return 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="measure on the GPU")
    parser.add_argument("--effort", type=float, default=1.0, help="trials, as a multiple of the usual")
    arguments = parser.parse_args()
    if arguments.gpu and not torch.cuda.is_available():
        print("There is no CUDA device: make bench-gpu measures on one. make bench measures the CPU.")
        return 2
    kind = "gpu" if arguments.gpu else "cpu"
    bench = Bench(torch.device("cuda" if arguments.gpu else "cpu"), arguments.effort)
    about, rows = facts(bench.device), []
    for row in measured(bench):
        rows.append(row)
        print(table([row]).splitlines()[-1], flush=True)
    PAGE.write_text(page(PAGE.read_text() if PAGE.exists() else None, kind, section(kind, rows, about)))
    plot(rows, PLOTS[kind])
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
