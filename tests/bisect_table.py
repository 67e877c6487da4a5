# SPDX-License-Identifier: GPL-2.0-only
"""How often a bisection names the right commit, measured: synthetic histories through analysis/bisect/.

    python -m tests.bisect_table [HISTORIES]

prints the tables of docs/bisect.md, of 1,000 histories a row unless another number is given;
tests/unit/test_bisect.py holds the same with fewer commits.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from testbed.analysis.bisect.posterior import Array, Flags, Rows, ancestry, believe, indistinct, probe
from testbed.analysis.bisect.search import Rules
from testbed.analysis.statistics import LEAST_PAIRS, PRIOR

RULES = Rules()
Rng = np.random.Generator
# Noise of a standard deviation of 1, of a shape.
Noise = Callable[[Rng, tuple[int, ...]], Array]


def normal(rng: Rng, shape: tuple[int, ...]) -> Array:
    return rng.normal(size=shape)


def heavy(rng: Rng, shape: tuple[int, ...]) -> Array:
    """Student's t with 3 degrees, which has a variance of 3."""
    return rng.standard_t(3, shape) / math.sqrt(3)


def skewed(rng: Rng, shape: tuple[int, ...]) -> Array:
    return rng.exponential(size=shape) - 1


# --- histories -------------------------------------------------------------------------------------


def line(commits: int) -> list[list[int]]:
    """One after the other."""
    return [[n - 1] if n else [] for n in range(commits)]


def merges(commits: int) -> list[list[int]]:
    """Side branches of 5 commits that fork off the main line, and one that forks off before the good end."""
    links: list[list[int]] = []
    tip = -1
    while len(links) < commits:
        fork, first = tip, len(links)
        side = min(5, commits - first)
        for n in range(side):
            links.append([first + n - 1] if n else ([fork] if fork >= 0 and first % 3 else []))
        branch = len(links) - 1
        for _ in range(4):
            if len(links) < commits:
                links.append([tip] if tip >= 0 else [])
                tip = len(links) - 1
        if len(links) < commits:
            links.append(sorted({tip, branch}))
            tip = len(links) - 1
    # All has to be in the history of the last.
    joined = ancestry(links)[commits - 1]
    links[-1] = sorted({*links[-1], *(n for n in range(commits - 1) if not joined[n])})
    return links


# --- this ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """One row: flags and numbers by history. `right` is that the culprit is among those that are named,
    `named` how many are (0: nobody). `gate` are the trials of both ends that it took to see a difference,
    `trials` those of the search after that, of the ends as well; builds are of commits between them.
    `confirmed` is on fresh pairs, which cost `more` trials.
    """

    right: Flags
    named: Rows
    gate: Rows
    trials: Rows
    builds: Rows
    confirmed: Flags
    more: Rows


def first_decided(d: Array, alpha: float) -> Rows:
    """The number of pairs at which the t e-process of differences (histories, pairs) decides; 0 if never."""
    n = np.arange(1, d.shape[1] + 1)
    sums, squares = d.cumsum(axis=1), (d**2).cumsum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (squares - sums**2 / n) / (n - 1)
        x = (sums / n) ** 2 * n / variance / (n - 1)
        shrunk = 1 + n * PRIOR
        log_e = -0.5 * np.log(shrunk) + n / 2 * (np.log1p(x) - np.log1p(x / shrunk))
    log_e = np.minimum(log_e, (n - 1) * math.log(2))
    found = (log_e >= -math.log(alpha)) & (n >= LEAST_PAIRS[True])
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1, 0)


def this(
    links: Sequence[Sequence[int]],
    histories: int,
    d: float,
    rng: Rng,
    *,
    rules: Rules = RULES,
    noise: Noise = normal,
    broken: float = 0.0,
    trace: list[tuple[Rows, Array]] | None = None,
) -> Ran:
    """Bisect so many histories side by side. A share of the commits is `broken`, which building them shows;
    `trace` is given rows and values of all samples."""
    r = ancestry(links)
    count = len(links)
    good, bad = count, count + 1
    truth = rng.integers(count, size=histories)
    cannot = np.zeros((histories, count + 2), dtype=np.bool_)
    cannot[:, : count - 1] = rng.random((histories, count - 1)) < broken
    untestable = np.zeros_like(cannot)
    built = np.zeros_like(cannot)
    built[:, [good, bad]] = True

    ends = noise(rng, (histories, rules.gate_pairs, 2))
    ends[:, :, 1] += d
    passed = first_decided(ends[:, :, 1] - ends[:, :, 0], rules.gate_alpha)
    gate = np.where(passed > 0, 2 * passed, 2 * rules.gate_pairs)
    used = gate.copy()
    rows = np.full((histories, rules.trials), -1, dtype=np.intp)
    values = np.zeros((histories, rules.trials))
    # As assess() asks for them: the first seed good, bad, the next bad, good.
    order = np.where(np.arange(rules.gate_pairs) % 2 == 0, 0, 1)
    for pair in range(rules.gate_pairs):
        has = passed > pair
        for place, end in enumerate((order[pair], 1 - order[pair])):
            rows[has, 2 * pair + place] = (good, bad)[end]
            values[has, 2 * pair + place] = ends[has, pair, end]
    shocks = noise(rng, (histories, rules.trials))
    labels = np.tile(np.arange(count), (histories, 1))
    prior = np.zeros(count)
    named = np.zeros(histories, dtype=np.intp)
    right = np.zeros(histories, dtype=np.bool_)
    active = np.flatnonzero(passed)
    while len(active):
        width = int(used[active].max())
        belief = believe(r, rows[active, :width], values[active, :width], prior)
        flat = (labels[active] + count * np.arange(len(active))[:, None]).ravel()
        masses = np.bincount(flat, belief.posterior.ravel(), len(active) * count).reshape(-1, count)
        best, sure = masses.argmax(axis=1), masses.max(axis=1) >= rules.confidence
        for at in np.flatnonzero(sure):
            found = labels[active[at]] == best[at]
            named[active[at]] = found.sum()
            right[active[at]] = found[truth[active[at]]]
        going = ~sure & (used[active] < rules.trials)
        chosen = probe(r, belief, built[active], ~untestable[active], rules.rho)[going]
        active = active[going]
        fails = cannot[active, chosen]
        built[active, chosen] = True
        for at in np.flatnonzero(fails):
            untestable[active[at], chosen[at]] = True
            labels[active[at]] = indistinct(r, ~untestable[active[at]])
        works, row = active[~fails], chosen[~fails]
        is_bad = r[row, truth[works]]
        rows[works, used[works]] = row
        values[works, used[works]] = d * is_bad + shocks[works, used[works]]
        used[works] += 1
    if trace is not None:
        trace.append((rows, values))
    # On fresh seeds: the one that is named against its parent, which differs if it is the right one.
    fresh = noise(rng, (histories, rules.confirm_pairs, 2))
    agreed = first_decided(fresh[:, :, 1] - fresh[:, :, 0] + d * right[:, None], rules.confirm_alpha)
    upward = fresh[:, :, 1].mean(axis=1) - fresh[:, :, 0].mean(axis=1) + d * right > 0
    return Ran(
        right,
        named,
        gate,
        used - gate,
        built[:, :count].sum(axis=1),
        (named > 0) & (agreed > 0) & upward,
        np.where(named > 0, np.where(agreed > 0, 2 * agreed, 2 * rules.confirm_pairs), 0),
    )


# --- other rules -----------------------------------------------------------------------------------

# Says of the trials (histories, trials) of a commit that it is bad; the middle of the ends is at d/2.
Rule = Callable[[Array, float, Array], Flags]


def middle(values: Array, d: float, _good: Array) -> Flags:
    """The mean beyond the middle of the ends, which it is told."""
    return np.asarray(values.mean(axis=1) > d / 2, dtype=np.bool_)


def syzkaller(trials: int) -> Rule:
    """Bad if any trial of so many crashes (pkg/bisect: `if bad != 0`). A crash is a value beyond what suits
    this rule best: where it is wrong as often of good commits as of bad ones."""

    def rule(values: Array, d: float, _good: Array) -> Flags:
        grid = np.linspace(-1, 6, 7001)
        wrong = np.maximum(1 - stats.norm.cdf(grid) ** trials, stats.norm.cdf(grid - d) ** trials)
        return np.asarray((values > grid[wrong.argmin()]).any(axis=1), dtype=np.bool_)

    return rule


def lkp(values: Array, _d: float, good: Array) -> Flags:
    """lkp-tests, lib/changed_stat.rb: changed if the least of b is above the median of a, and the median of b
    above the most of a."""
    middle_of = [np.sort(side, axis=1)[:, side.shape[1] // 2] for side in (good, values)]
    changed = (values.min(axis=1) > middle_of[0]) & (middle_of[1] > good.max(axis=1))
    return np.asarray(changed, dtype=np.bool_)


def halving(rule: Rule, commits: int, histories: int, trials: int, d: float, rng: Rng) -> Ran:
    """`git bisect` on a line with so many trials a commit and a rule for them."""
    truth = rng.integers(commits, size=histories)
    good = rng.normal(size=(histories, trials))
    last_good = np.full(histories, -1)
    first_bad = np.full(histories, commits - 1)
    built = np.zeros(histories, dtype=np.intp)
    while (open_ := first_bad - last_good > 1).any():
        at = (first_bad + last_good) // 2
        values = rng.normal(size=(histories, trials)) + d * (at >= truth)[:, None]
        says = rule(values, d, good)
        built += open_
        first_bad = np.where(open_ & says, at, first_bad)
        last_good = np.where(open_ & ~says, at, last_good)
    ones = np.ones(histories, dtype=np.intp)
    return Ran(first_bad == truth, ones, 0 * ones, built * trials, built, ones == 0, 0 * ones)


# --- the tables ------------------------------------------------------------------------------------

COMMITS = 1000


def _share(flags: Flags) -> str:
    p = float(flags.mean())
    return f"{100 * p:.1f} % +- {100 * math.sqrt(p * (1 - p) / len(flags)):.1f}"


def strategies(histories: int) -> Iterator[str]:
    """Every rule of the notes, on a line, at both sizes."""
    yield "| strategy | d = 2: right | trials | builds | d = 0.8: right | trials | builds |"
    yield "|---|---|---|---|---|---|---|"
    others: list[tuple[str, Rule, tuple[int, int]]] = [
        ("`git bisect run`, one trial each", middle, (1, 1)),
        ("`git bisect run`, 7 (42) trials a commit", middle, (7, 42)),
        ("syzkaller's rule, 20 runs", syzkaller(20), (20, 20)),
        ("LKP's rule, 5 runs", lkp, (5, 5)),
    ]
    for name, rule, trials in others:
        ran = [
            halving(rule, COMMITS, histories, n, d, np.random.default_rng(7))
            for n, d in zip(trials, (2.0, 0.8), strict=True)
        ]
        yield _row(name, ran)
    notes = []
    for confidence in (0.95, 0.99):
        rules = Rules(confidence=confidence)
        ran = [this(line(COMMITS), histories, d, np.random.default_rng(7), rules=rules) for d in (2.0, 0.8)]
        yield _row(f"this, at {confidence:g}", ran)
        for d, one in zip((2.0, 0.8), ran, strict=True):
            sure, wrong = one.confirmed & one.right, one.confirmed & ~one.right
            notes.append(
                f"at {confidence:g}, d = {d:g}: first {one.gate.mean():.1f} trials to see a difference; "
                f"nobody named {_share(one.named == 0)}; then {one.more.mean():.1f} trials to confirm: "
                f"right {_share(sure)}, wrong {_share(wrong)}"
            )
    yield from ("", *notes)


def _row(name: str, ran: Sequence[Ran]) -> str:
    cells = [(_share(one.right), f"{one.trials.mean():.1f}", f"{one.builds.mean():.1f}") for one in ran]
    return f"| {name} | " + " | ".join(cell for three in cells for cell in three) + " |"


def worlds(histories: int) -> Iterator[str]:
    """What real histories have: 128 commits, at 0.95."""
    yield "| history of 128 commits | d | named | right | commits named | gate | trials | builds |"
    yield "|---|---|---|---|---|---|---|---|"
    rows: list[tuple[str, list[list[int]], Noise, float]] = [
        ("a line", line(128), normal, 0.0),
        ("a fifth does not build", line(128), normal, 0.2),
        ("with merges", merges(128), normal, 0.0),
        ("heavy tails (t with 3 degrees)", line(128), heavy, 0.0),
        ("skewed (exponential)", line(128), skewed, 0.0),
        ("merges, a fifth does not build, heavy tails", merges(128), heavy, 0.2),
    ]
    for name, links, noise, broken in rows:
        for d in (2.0, 0.8, 0.0):
            ran = this(links, histories, d, np.random.default_rng(7), noise=noise, broken=broken)
            some = ran.named > 0
            size = f"{ran.named[some].mean():.2f}" if some.any() else "-"
            right = _share(ran.right) if d else "-"
            costs = f"{ran.gate.mean():.0f} | {ran.trials.mean():.1f} | {ran.builds.mean():.1f}"
            yield f"| {name} | {d:g} | {_share(some)} | {right} | {size} | {costs} |"


def main(words: Sequence[str]) -> None:
    """Print both tables."""
    histories = int(words[0]) if words else 1000
    for table in (strategies, worlds):
        for text in table(histories):
            print(text, flush=True)
        print()


if __name__ == "__main__":
    main(sys.argv[1:])
