"""The results of a comparison: a table, a CSV, a plot."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning_msda.cli.messages import UsageError

__all__ = ["Result", "Row", "format_table", "plot", "summarise", "write_csv"]


@dataclass(frozen=True)
class Result:
    """One training.

    Attributes:
        policy: Title of the policy.
        seed: Seed of the training.
        score: The metric that is compared, in [0, 1].
        seconds: How long the training took.
        folder: Folder of the W&B run; empty without one.
    """

    policy: str
    seed: int
    score: float
    seconds: float
    folder: str


@dataclass(frozen=True)
class Row:
    """A policy's results over the seeds.

    Attributes:
        policy: Title of the policy.
        mean: Mean of the metric in percent.
        std: Its standard deviation over the seeds (n - 1); 0 for a single seed.
        gain: Difference to the first policy's mean, in percentage points.
        verdict: That difference beside its own standard deviation over the seeds, in words.
        time: Median time of a training against the first policy's.
    """

    policy: str
    mean: float
    std: float
    gain: float
    verdict: str
    time: float


def summarise(results: Sequence[Result]) -> list[Row]:
    """Return a row for each policy, the first one being what the others are held against.

    Args:
        results: All trainings.
    """
    policies = list(dict.fromkeys(result.policy for result in results))
    scores = {p: [100 * result.score for result in results if result.policy == p] for p in policies}
    times = {p: statistics.median(r.seconds for r in results if r.policy == p) for p in policies}
    first, rows = policies[0], []
    for policy in policies:
        mean = statistics.mean(scores[policy])
        std = statistics.stdev(scores[policy]) if len(scores[policy]) > 1 else 0.0
        gains = [own - other for own, other in zip(scores[policy], scores[first], strict=True)]
        gain, spread = statistics.mean(gains), statistics.stdev(gains) if len(gains) > 1 else 0.0
        if policy == first:
            verdict = ""
        elif len(gains) == 1:
            verdict = "one seed"
        else:
            verdict = "helps" if gain > spread else "within the spread" if gain > 0 else "does not help"
        rows.append(Row(policy, mean, std, gain, verdict, times[policy] / times[first]))
    return rows


def format_table(rows: Sequence[Row], metric: str) -> str:
    """Return the rows as a table in Markdown.

    Args:
        rows: One for each policy.
        metric: What was compared, in words.
    """
    first = rows[0].policy
    header = ("policy", f"{metric} (%)", f"against {first}", "", f"time against {first}")
    lines = [header, tuple("-" * 3 for _ in header)]
    for row in rows:
        gain = "" if row.policy == first else f"{row.gain:+.2f}"
        lines.append((row.policy, f"{row.mean:.2f} ± {row.std:.2f}", gain, row.verdict, f"{row.time:.2f}x"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines[1] = tuple("-" * width for width in widths)
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def write_csv(path: Path, rows: Sequence[Row] | Sequence[Result]) -> None:
    """Write rows to a CSV file.

    Args:
        path: The file.
        rows: One for each policy, or one for each training.
    """
    records = [asdict(row) for row in rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def plot(path: Path, results: Sequence[Result], rows: Sequence[Row], metric: str) -> None:
    """Draw the policies' means with their standard deviations and every single training.

    Args:
        path: The PNG file.
        results: All trainings.
        rows: One for each policy.
        metric: What was compared, in words.

    Raises:
        UsageError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UsageError("The plot needs matplotlib: pip install 'lightning-msda[viz]'.") from error
    figure = Figure(figsize=(7, 0.5 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    places = {row.policy: len(rows) - i for i, row in enumerate(rows)}
    axes.axvline(rows[0].mean, color="0.8", zorder=0)
    axes.plot(
        [100 * result.score for result in results],
        [places[result.policy] for result in results],
        "o",
        color="tab:blue",
        alpha=0.35,
        markersize=5,
        label="each seed",
    )
    axes.errorbar(
        [row.mean for row in rows],
        [places[row.policy] for row in rows],
        xerr=[row.std for row in rows],
        fmt="o",
        color="tab:blue",
        capsize=3,
        label="mean ± std",
    )
    axes.set_yticks(list(places.values()), list(places))
    axes.set_xlabel(f"{metric} (%)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
