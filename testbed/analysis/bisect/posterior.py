# SPDX-License-Identifier: GPL-2.0-only
"""How probable it is of each commit that it changed a metric, and which one to measure next. Pure, on arrays.

Commits are *candidates*, in topological order, parents first. That t is the culprit means: what has t in its
history is bad, all else is good. R[c, t] is 1 where t is in the history of c, itself included; with it,
merges need nothing special. Rows of R are the candidates, then the good end (which has no candidate in its
history), then the bad one (which has them all). All functions on arrays take many histories of one shape at
once, along the first axis; tests/bisect_table.py measures with them how often the search is right.

The likelihood of t: all values are normal, of one unknown variance; the mean of all is unknown, and so is the
difference of bad and good, of which the e-process that decides all else expects a size of N(0, g) standard
deviations of a sample, g = 2. With the prior 1/sigma on the rest integrated out, n samples, of which n_G are
good and n_B bad if t is the culprit, have the density

    const * (1 + g m)^(-1/2) * (SSW(t) + m delta^2/(1 + g m))^(-(n - 1)/2),  m = n_G n_B/n

where SSW is the sum of squares within both groups and delta the difference of their means. For a flat prior
on delta (g to infinity) this is (n_G n_B)^(-1/2) SSW(t)^(-(n - 2)/2), with n - 2 degrees in place of n - 1;
that believes a difference, which was let through because it seemed large, to be as large as it seemed:
docs/bisect.md has what that costs. The constant is the same for all t. The formula is that of Zellner's
g-prior, on the scale above (Liang, Paulo, Molina, Clyde, Berger: Mixtures of g priors for Bayesian variable
selection, Journal of the American Statistical Association 103, 2008).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from testbed.analysis.metrics import Kind
from testbed.analysis.statistics import PRIOR

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
Flags = NDArray[np.bool_]

# g: the e-process's prior is on the differences of pairs, which have twice a sample's variance.
EXPECTED = 2 * PRIOR
# What a culprit with the wrong sign loses, as a logarithm: not more, for with few samples a sign is luck.
WRONG_WAY = 3.0
# One sample never tells the ends apart by more standard deviations. Deterministic guests may have none, but
# every commit moves things about a little.
SHARPEST = 8.0
# Residuals of the ends that no normal distribution has (in standard errors of its skewness and kurtosis).
SKEWED, PEAKED = 2.5, 2.5
# From here on, workers are better spread over commits than on one: docs/bisect.md.
CLEAR = 1.25
# Rows of R that are numbers at a time: of 15,000 commits all would take 2 GB.
BLOCK = 1024


def ancestry(links: Sequence[Sequence[int]]) -> Flags:
    """R, of the shape (candidates + 2, candidates), from each candidate's parents among the candidates.

    One pass: parents come first. Raises ValueError when they do not.
    """
    count = len(links)
    r = np.zeros((count + 2, count), dtype=np.bool_)
    for commit, parents in enumerate(links):
        if any(parent >= commit for parent in parents):
            raise ValueError(f"candidate {commit} comes before one of its parents")
        for parent in parents:
            r[commit] |= r[parent]
        r[commit, commit] = True
    r[count + 1] = True
    return r


def indistinct(r: Flags, testable: Flags) -> Rows:
    """A label per candidate: candidates with equal labels are told apart by no commit that can be tested."""
    if testable.all():
        return np.arange(r.shape[1], dtype=np.intp)
    columns = np.packbits(r[testable], axis=0).T
    labels: dict[bytes, int] = {}
    return np.array([labels.setdefault(column.tobytes(), len(labels)) for column in columns], dtype=np.intp)


def _is_line(r: Flags) -> bool:
    """Whether the candidates follow each other, so that products with R are running sums."""
    count = r.shape[1]
    return bool(np.count_nonzero(r[:-2]) == count * (count + 1) // 2)


def _of_bad(r: Flags, x: Array) -> Array:
    """Sums over what is bad by candidate, from values by row: x R."""
    if _is_line(r):
        return np.asarray(x[:, -1:] + x[:, -3::-1].cumsum(axis=1)[:, ::-1], dtype=np.float64)
    # Of one history of many thousand commits, few rows have samples.
    used = x.any(axis=0)
    return np.asarray(x[:, used] @ r[used].astype(np.float64), dtype=np.float64)


def _sums(rows: Rows, values: Array, count: int) -> Array:
    """Sums of values (histories, samples) by row (histories, count); samples of row -1 are none."""
    histories = len(rows)
    flat = (np.where(rows < 0, count, rows) + (count + 1) * np.arange(histories)[:, None]).ravel()
    summed = np.bincount(flat, values.ravel(), histories * (count + 1))
    return summed.astype(np.float64).reshape(histories, count + 1)[:, :count]


@dataclass(frozen=True)
class Belief:
    """What samples say of the candidates of each of many histories.

    `posterior` (histories, candidates) has a sum of 1; `counts` (histories, rows) are samples. `gap` is how
    far the bad end lies from the good one on the scale of the analysis, `d` (its size) in standard deviations
    of a sample. `coarse`: values count as above or below the middle of the ends, and no further.
    """

    posterior: Array
    counts: Array
    gap: Array
    d: Array
    coarse: Flags


def believe(r: Flags, rows: Rows, values: Array, log_prior: Array, shares: bool = False) -> Belief:
    """The posterior of the candidates.

    `rows` and `values` have the shape (histories, samples), with -1 for no sample; both ends have samples.
    With `shares`, values are 0 and 1.
    """
    count, good, bad = len(r), len(r) - 2, len(r) - 1
    there = rows >= 0
    counts = _sums(rows, there.astype(np.float64), count)
    sums = _sums(rows, np.where(there, values, 0.0), count)
    centre = (sums[:, good] / counts[:, good] + sums[:, bad] / counts[:, bad]) / 2
    values = np.where(there, values - (0 if shares else centre[:, None]), 0.0)
    squares = values * values
    powers = [_sums(rows, power, count) for power in (values, squares, squares * values, squares * squares)]
    means = powers[0] / np.maximum(counts, 1)
    gap = means[:, bad] - means[:, good]
    ends = [good, bad]
    ss = (powers[1] - counts * means**2)[:, ends].sum(axis=1)
    freedom = np.maximum(counts[:, ends].sum(axis=1) - 2, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        d = np.where(gap != 0, np.abs(gap) / np.sqrt(np.maximum(ss, 0) / freedom), 0.0)
    if shares:
        coarse = np.ones(len(rows), dtype=np.bool_)
        likelihood = _of_shares(r, counts, powers[0], gap)
    else:
        coarse = _not_normal([p[:, ends] for p in powers], counts[:, ends])
        likelihood = _of_values(r, counts, powers[0], powers[1], gap)
        if coarse.any():
            likelihood[coarse] = _of_sides(r, rows[coarse], values[coarse], counts[coarse])
    likelihood = likelihood + log_prior
    posterior = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    return Belief(posterior, counts, gap, d, coarse)


def _of_values(r: Flags, counts: Array, sums: Array, squares: Array, gap: Array) -> Array:
    """The logarithm of the likelihood of each candidate, of normal values."""
    n, total = counts.sum(axis=1, keepdims=True), sums.sum(axis=1, keepdims=True)
    n_bad, sum_bad = _of_bad(r, counts), _of_bad(r, sums)
    n_good = n - n_bad
    delta = sum_bad / n_bad - (total - sum_bad) / n_good
    m = n_good * n_bad / n
    shrunk = 1 + EXPECTED * m
    around = squares.sum(axis=1, keepdims=True) - total**2 / n
    scatter = np.maximum(around - m * delta**2 * (1 - 1 / shrunk), 0.0)
    scatter += (n - 1) * (gap[:, None] / SHARPEST) ** 2
    # A gap of nothing leaves nothing to be told.
    scatter = np.maximum(scatter, np.finfo(np.float64).tiny)
    wrong = delta * gap[:, None] <= 0
    likelihood = -0.5 * np.log(shrunk) - 0.5 * (n - 1) * np.log(scatter) - WRONG_WAY * wrong
    return np.asarray(likelihood, dtype=np.float64)


def _of_shares(r: Flags, counts: Array, ones: Array, gap: Array) -> Array:
    """The same of values 0 and 1, with shares of Beta(1/2, 1/2) for good and for bad."""
    n_bad, k_bad = _of_bad(r, counts), _of_bad(r, ones)
    n_good = counts.sum(axis=1, keepdims=True) - n_bad
    k_good = ones.sum(axis=1, keepdims=True) - k_bad
    wrong = (k_bad / n_bad - k_good / n_good) * gap[:, None] <= 0
    both = special.betaln(k_bad + 0.5, n_bad - k_bad + 0.5) + special.betaln(
        k_good + 0.5, n_good - k_good + 0.5
    )
    return np.asarray(both - WRONG_WAY * wrong, dtype=np.float64)


def _of_sides(r: Flags, rows: Rows, values: Array, counts: Array) -> Array:
    """The same of which side of the middle between the medians of the ends a value lies on."""
    medians = [
        np.nanmedian(np.where(rows == end, values, np.nan), axis=1) for end in (len(r) - 2, len(r) - 1)
    ]
    above = (values > ((medians[0] + medians[1]) / 2)[:, None]).astype(np.float64)
    return _of_shares(r, counts, _sums(rows, above, len(r)), medians[1] - medians[0])


def _not_normal(powers: Sequence[Array], counts: Array) -> Flags:
    """Whether the ends' residuals are skewed or heavy in the tails; `powers` are sums of x^1 to x^4."""
    means = powers[0] / counts
    second = powers[1] - counts * means**2
    third = powers[2] - 3 * means * powers[1] + 2 * counts * means**3
    fourth = powers[3] - 4 * means * powers[2] + 6 * means**2 * powers[1] - 3 * counts * means**4
    n = counts.sum(axis=1)
    variance, m3, m4 = (part.sum(axis=1) / n for part in (second, third, fourth))
    spread = variance > 1e-20 * np.abs(powers[1]).sum(axis=1)
    safe = np.where(spread, variance, 1.0)
    skewness, excess = m3 / safe**1.5, m4 / safe**2 - 3
    found = (np.abs(skewness) > SKEWED * np.sqrt(6 / n)) | (excess > PEAKED * np.sqrt(24 / n))
    return np.asarray(spread & found, dtype=np.bool_)


def innocence(r: Flags, posterior: Array) -> Array:
    """p (histories, rows): how probable it is that a commit is bad."""
    if _is_line(r):
        ends = np.zeros((len(posterior), 1)), posterior.sum(axis=1, keepdims=True)
        return np.concatenate([posterior.cumsum(axis=1), *ends], axis=1)
    likely = (posterior > 0).any(axis=0)
    some = posterior[:, likely]
    parts = (some @ r[n : n + BLOCK, likely].T.astype(np.float64) for n in range(0, len(r), BLOCK))
    return np.concatenate(list(parts), axis=1)


def probe(r: Flags, belief: Belief, built: Flags, testable: Flags, rho: float) -> Rows:
    """The row to take the next sample of, per history.

    The one of the largest p (1 - p) per cost, rho being what a build costs in trials; `built` and `testable`
    have the shape (histories, rows). If that one has as many samples as an end, the end with fewer: what a
    group's mean is must not be known by the commits in doubt.
    """
    good, bad = len(r) - 2, len(r) - 1
    p = innocence(r, belief.posterior)[:, :good]
    worth = p * (1 - p) / (1 + rho * ~built[:, :good])
    best = np.where(testable[:, :good], worth, -1.0).argmax(axis=1)
    n = belief.counts
    thinner = np.where(n[:, good] <= n[:, bad], good, bad)
    crowded = n[np.arange(len(n)), best] >= np.minimum(n[:, good], n[:, bad])
    return np.where(crowded, thinner, best)


def suspicion(good: Sequence[float], bad: Sequence[float], values: Sequence[float], kind: Kind) -> float:
    """How probable it is that a commit with these values is as bad is, and not as good is.

    There have to be values of both ends; without any of the commit it is 1/2.
    """
    # Of two candidates the first is that commit, the second what made bad bad if it was not that one.
    rows = np.array([[2] * len(good) + [3] * len(bad) + [0] * len(values)], dtype=np.intp)
    scale = scaled(np.array([[*good, *bad, *values]], dtype=np.float64), kind)
    belief = believe(ancestry([[], [0]]), rows, scale, np.zeros(2), kind == "outcome")
    return float(belief.posterior[0, 0])


def scaled(values: Array, kind: Kind) -> Array:
    """Values on the scale of the analysis: ratios become differences; of values of which some are 0, the root
    has the most even scatter."""
    if kind == "outcome":
        return values
    return np.log(values) if (values > 0).all() else np.sqrt(values)


@dataclass(frozen=True)
class View:
    """What is believed at some moment, of one history."""

    candidates: Sequence[str]
    r: Flags
    belief: Belief
    testable: Flags
    labels: Rows

    def best(self) -> tuple[tuple[str, ...], float]:
        """The most probable candidates that nothing tells apart, and their probability."""
        masses = np.bincount(self.labels, self.belief.posterior[0])
        label = int(masses.argmax())
        found = [c for c, own in zip(self.candidates, self.labels, strict=True) if own == label]
        # Of these, those that can be it.
        possible = [c for c in found if self.belief.posterior[0, self.candidates.index(c)] > 0]
        return tuple(possible), float(masses[label])

    def credible(self, confidence: float) -> tuple[str, ...]:
        """The fewest candidates that have the culprit among them with that probability."""
        posterior = self.belief.posterior[0]
        order = np.argsort(-posterior, kind="stable")
        enough = int(np.searchsorted(np.cumsum(posterior[order]), confidence)) + 1
        return tuple(self.candidates[i] for i in sorted(order[:enough]))

    def wanted(
        self, built: Flags, rho: float, workers: int, stands: Callable[[int], int]
    ) -> tuple[list[int], list[int]]:
        """Rows to be sampled by so many workers, and rows worth building ahead.

        Ahead of the first are those that would follow if it turned out to be bad, or good: close to the
        quartiles. Where one sample says little, all workers take the first; where it says much, they are
        spread over it and what would follow.
        """
        counts = self.belief.counts.copy()
        tree = self._ahead(built, rho, counts)
        first = next(tree)
        children = [row for _, row in zip(range(2), tree, strict=False)]
        spread = [first, *children, *(row for _, row in zip(range(workers), tree, strict=False))]
        rows: list[int] = []
        for n in range(workers):
            row = spread[n % len(spread)] if self.belief.d[0] > CLEAR else first
            good, bad = len(self.r) - 2, len(self.r) - 1
            if counts[0, stands(row)] >= min(counts[0, good], counts[0, bad]):
                row = good if counts[0, good] <= counts[0, bad] else bad
            counts[0, stands(row)] += 1
            rows.append(row)
        return rows, [first, *children]

    def _ahead(self, built: Flags, rho: float, counts: Array) -> Iterator[int]:
        """The commit to probe, then those that would be next if it were bad or good, most probable first."""
        posterior = self.belief.posterior
        # All that probe() knows of an end that it could fall back to is taken from it.
        free = np.where(np.arange(len(self.r)) < len(self.r) - 2, 0.0, np.inf)[None]
        heap: list[tuple[float, int, Array]] = [(-1.0, 0, posterior)]
        count = 0
        while heap:
            mass, _, part = heapq.heappop(heap)
            belief = Belief(part, free, self.belief.gap, self.belief.d, self.belief.coarse)
            row = int(probe(self.r, belief, built[None], self.testable[None], rho)[0])
            if not 1e-9 < innocence(self.r, part)[0, row] < 1 - 1e-9:
                # What is left of this branch cannot be told apart.
                continue
            yield row
            for branch in (part * self.r[row], part * (1 - self.r[row])):
                share = float(branch.sum())
                if share > 1e-9 and branch.max() < share * (1 - 1e-9):
                    count += 1
                    heapq.heappush(heap, (mass * share, count, branch / share))

    def shown(self) -> dict[str, Any]:
        """What a Standing tells of it."""
        posterior = self.belief.posterior
        return {
            "posterior": tuple(posterior[0].tolist()),
            "bad": tuple(innocence(self.r, posterior)[0, : len(self.candidates)].tolist()),
            "d": float(self.belief.d[0]),
            "coarse": bool(self.belief.coarse[0]),
        }
