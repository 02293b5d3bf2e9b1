"""The statistics of the study: one rule for every comparison.

Within a run intervals are 95% bootstraps that draw whole clusters: problems about the same numbers
share their luck (`shares` here, `tasks.ask.interval` for a mean).

Across runs the runs of an arm, whatever their base and seed, scatter about its mean with one
standard deviation that all arms share, pooled over them; intervals are 95%, Student's t.  Of a
difference, "equal" means that its whole interval is within MARGIN of 0, "above" and "below" that it
excludes 0, anything else is "undecided"; fewer than three runs of an arm say nothing.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MARGIN = 0.02  # accuracies closer than this are called equal


def student(df: int) -> float:
    """The 97.5% point of Student's t with `df` degrees of freedom.

    t = sqrt(df) tan(a), where the density of the angle a is proportional to cos(a)^(df - 1)."""
    angle = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angle) ** (df - 1)
    mass = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(df) * math.tan(np.interp(0.95, mass / mass[-1], angle))


def pooled(arms: list[Sequence[float]]) -> tuple[float, int]:
    """A value a run, by arm -> (their standard deviation about their arm's mean, its degrees of
    freedom); (nan, 0) where no arm has two runs."""
    df = sum(len(x) - 1 for x in arms)
    squares = sum(np.var(x) * len(x) for x in arms)
    return (math.sqrt(squares / df), df) if df else (math.nan, 0)


def difference(arm: Sequence[float], other: Sequence[float], sd: float, df: int) -> dict:
    """The values of two arms' runs -> their means' difference, its 95% interval and, from three
    runs of each on, the word for it."""
    d = float(np.mean(arm) - np.mean(other))
    half = student(df) * sd * math.sqrt(1 / len(arm) + 1 / len(other)) if df else math.nan
    if min(len(arm), len(other)) < 3:
        word = "too few runs"
    elif abs(d) + half < MARGIN:
        word = "equal"
    else:
        word = "undecided" if abs(d) <= half else "above" if d > 0 else "below"
    ends = (d - half, d + half) if df else (None, None)
    return dict(mean=d, low=ends[0], high=ends[1], verdict=word)


def shares(
    x: np.ndarray, group: np.ndarray, cluster: np.ndarray, n: int, cumulate: bool = False
) -> np.ndarray:
    """x (N,) of tokens in groups 0..n-1 -> (3, n): each group's share of the sum, and its 95%
    bootstrap interval, drawing whole clusters (problems of the same numbers share their luck).
    `cumulate`: shares of the groups up to each."""
    _, of = np.unique(cluster, return_inverse=True)
    sums = np.zeros((of.max() + 1, n))
    np.add.at(sums, (of, group), x)
    draws = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), 2000)
    drawn = np.concatenate([np.ones((1, len(sums))), draws]) @ sums  # (1 + 2000, n)
    drawn = drawn[drawn.sum(1) != 0]  # few clusters: a draw may hold nothing
    found = drawn / drawn.sum(1, keepdims=True)
    found = found.cumsum(1) if cumulate else found
    return np.concatenate([found[:1], np.percentile(found[1:], (2.5, 97.5), axis=0)])


def deciles(x: Tensor) -> Tensor:
    """x (n,) -> (n,) int64, 0 for the lowest tenth to 9 for the highest, ties by position."""
    x = x.cpu()
    rank = torch.empty(len(x), dtype=torch.long)
    rank[x.argsort(stable=True)] = torch.arange(len(x))
    return rank * 10 // max(len(x), 1)


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation, ties at their mean rank."""

    def ranks(values: Sequence[float]) -> np.ndarray:
        _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (counts.cumsum() - (counts - 1) / 2)[index]

    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])
