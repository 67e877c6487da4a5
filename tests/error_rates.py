# SPDX-License-Identifier: GPL-2.0-only
"""How often verdicts are wrong, measured: synthetic experiments through `judge`, as a scheduler uses it.

    python -m tests.error_rates [EXPERIMENTS [alarms|coverage|assumptions|power|pairs] ...]

prints the tables of docs/statistics.md: of 10,000 experiments a row unless another number is given, of
coverage and pairs a quarter. tests/unit/test_false_alarms.py holds the same with fewer.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from testbed.analysis.decision import Decision, Judgement
from testbed.analysis.metrics import Better, Kind
from testbed.analysis.statistics import LEAST_PAIRS
from testbed.analysis.verdict import Question, decide, judge

ALPHA = 0.05
CAP = 30
Rng = np.random.Generator
Values = NDArray[np.float64]
# The values of one arm, one a pair. Called twice with the same `common`, what a seed has in both arms.
Draw = Callable[[Rng, Values, float], Values]


def _lognormal(spread: float) -> Draw:
    return lambda rng, common, ratio: (
        100 * ratio * np.exp(0.1 * common + spread * rng.normal(size=len(common)))
    )


def _normal(rng: Rng, common: Values, ratio: float) -> Values:
    return ratio * (100 + 5 * common + 5 * rng.normal(size=len(common)))


def _heavy(rng: Rng, common: Values, ratio: float) -> Values:
    return 100 * ratio * np.exp(0.05 * rng.standard_t(3, len(common)))


def _counts(mean: float, dispersion: float) -> Draw:
    """Poisson with a gamma mean: its variance is mean + mean^2 / dispersion."""

    def draw(rng: Rng, common: Values, ratio: float) -> Values:
        return rng.poisson(rng.gamma(dispersion, ratio * mean / dispersion, len(common))).astype(float)

    return draw


def _buckets(rng: Rng, common: Values, ratio: float) -> Values:
    """A tail as a histogram gives it: in steps of 1/128, and most seeds in the same two or three of them."""
    return np.exp2(np.round(np.log2(_lognormal(0.004)(rng, 0 * common, ratio)) * 128) / 128)


def _fairness(rng: Rng, common: Values, ratio: float) -> Values:
    return 1 / (1 + 0.03 * ratio * np.exp(0.3 * rng.normal(size=len(common))))


def _two_values(rng: Rng, common: Values, ratio: float) -> Values:
    return 100 * ratio * np.exp(0.05 * rng.choice([0.0, 1.0], len(common)))


def _outcomes(rng: Rng, common: Values, ratio: float) -> Values:
    return (rng.random(len(common)) < 0.3 * ratio).astype(float)


@dataclass(frozen=True)
class World:
    """A way in which values come about, and what kind of metric they are."""

    kind: Kind
    draw: Draw
    better: Better = "lower"

    def pairs(self, rng: Rng, n: int, ratio: float = 1.0) -> tuple[Values, Values]:
        """Values of n pairs whose arms differ by `ratio`."""
        common = rng.normal(size=n)
        return self.draw(rng, common, 1.0), self.draw(rng, common, ratio)


@dataclass(frozen=True)
class Differences(World):
    """A world in which `draw` gives the pairs' differences of logarithms, in units of 5 %."""

    def pairs(self, rng: Rng, n: int, ratio: float = 1.0) -> tuple[Values, Values]:
        return np.full(n, 100.0), 100 * ratio * np.exp(0.05 * self.draw(rng, np.empty(n), ratio))


# What the t tests assume, and what they do not. All have the mean 0.
ASSUMPTIONS: Mapping[str, World] = {
    "normal": Differences("rate", lambda rng, like, _: rng.normal(size=len(like))),
    "two values": Differences("rate", lambda rng, like, _: rng.choice([-1.0, 1.0], len(like))),
    "skewed: lognormal, 50 %": Differences(
        "rate", lambda rng, like, _: np.exp(rng.normal(0, 0.5, len(like))) - math.exp(0.125)
    ),
    "skewed: exponential": Differences("rate", lambda rng, like, _: rng.exponential(size=len(like)) - 1),
}

WORLDS: Mapping[str, World] = {
    "normal": World("rate", _normal, "higher"),
    "lognormal, 20 %": World("rate", _lognormal(0.2), "higher"),
    "t with 3 degrees, on logarithms": World("rate", _heavy, "higher"),
    "counts of 700, overdispersed": World("count", _counts(700, 50)),
    "counts of 10, overdispersed": World("count", _counts(10, 5)),
    "counts of 3, overdispersed": World("count", _counts(3, 3)),
    "counts of 0.3": World("count", _counts(0.3, 1e6)),
    "tails in buckets of 1/128": World("tail", _buckets),
    "fairness": World("fairness", _fairness, "higher"),
    "outcomes, 30 % bad": World("outcome", _outcomes),
    "values of two kinds": World("rate", _two_values),
}


def by_seed(values: Values) -> dict[int, float]:
    """What the ledger gives: a value for each seed, from 1 on."""
    return dict(enumerate(values.tolist(), 1))


def watch(questions: Sequence[Question], cap: int, alpha: float = ALPHA) -> Iterator[Judgement]:
    """What a scheduler does: look after every pair until all is decided or the cap is reached."""
    for n in range(LEAST_PAIRS[True], cap + 1):
        seen = [replace(q, before=_first(q.before, n), after=_first(q.after, n)) for q in questions]
        judgement = judge(seen, [], alpha=alpha, sequential=True, full=False)
        yield judgement
        if judgement.decided:
            return


def _first(values: Mapping[int, float], n: int) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if seed <= n}


def question(
    world: World, rng: Rng, n: int, ratio: float = 1.0, margin: float = 0.001, name: str = ""
) -> Question:
    """A metric of n pairs in that world."""
    before, after = (by_seed(values) for values in world.pairs(rng, n, ratio))
    return Question(name, before, after, world.kind, world.better, margin)


def false_alarm(judgement: Judgement) -> bool:
    """Whether a change was claimed, where there is none."""
    return any(decision.direction is not None for decision in judgement.primaries.values())


def sequential_alarms(
    world: World, experiments: int, cap: int = CAP, primaries: int = 1, seed: int = 1
) -> float:
    """The share of experiments without an effect in which any of the looks after every pair claims one."""
    rng = np.random.default_rng(seed)
    alarms = 0
    for _ in range(experiments):
        questions = [question(world, rng, cap, name=str(i)) for i in range(primaries)]
        alarms += any(false_alarm(judgement) for judgement in watch(questions, cap))
    return alarms / experiments


def naive_alarms(world: World, experiments: int, cap: int = CAP, seed: int = 6) -> float:
    """What `sequential_alarms` would be, were the t test for fixed n looked at after every pair."""
    rng = np.random.default_rng(seed)
    looks = np.arange(LEAST_PAIRS[True], cap + 1)
    alarms = 0
    for _ in range(experiments):
        before, after = world.pairs(rng, cap)
        d = np.log(after / before)
        t = np.array([d[:n].mean() / d[:n].std(ddof=1) * math.sqrt(n) for n in looks])
        alarms += bool((abs(t) > stats.t.ppf(1 - ALPHA / 2, looks - 1)).any())
    return alarms / experiments


def fixed_alarms(world: World, experiments: int, n: int = 12, primaries: int = 1, seed: int = 2) -> float:
    """The same for one look at n pairs, by Holm's procedure if there are several primaries."""
    rng = np.random.default_rng(seed)
    alarms = 0
    for _ in range(experiments):
        questions = [question(world, rng, n, name=str(i)) for i in range(primaries)]
        alarms += false_alarm(judge(questions, [], alpha=ALPHA, sequential=False, full=False))
    return alarms / experiments


def decisions(
    world: World, ratio: float, n: int, experiments: int, sequential: bool, margin: float = 0.0, seed: int = 3
) -> Iterator[Decision]:
    """The decisions on n pairs whose arms differ by `ratio`, of so many experiments."""
    rng = np.random.default_rng(seed)
    for _ in range(experiments):
        before, after = (by_seed(values) for values in world.pairs(rng, n, ratio))
        yield decide(
            before,
            after,
            kind=world.kind,
            better=world.better,
            alpha=ALPHA,
            margin=margin,
            sequential=sequential,
            full=False,
        )


def power(spread: float, change: float, n: int, experiments: int) -> float:
    """The share of experiments that find a change, for independent arms whose logarithm has the spread."""
    world = World("rate", lambda rng, common, ratio: ratio * np.exp(spread * rng.normal(size=len(common))))
    found = decisions(world, 1 + change, n, experiments, sequential=False)
    return sum(decision.direction is not None for decision in found) / experiments


# Pairs for a power of 90 % at alpha 5 %: (spread of one arm, change) -> pairs.
PAIRS_NEEDED: Mapping[tuple[float, float], int] = {
    (0.02, 0.05): 6,
    (0.05, 0.05): 25,
    (0.05, 0.1): 8,
    (0.05, 0.2): 4,
    (0.1, 0.05): 91,
    (0.1, 0.1): 26,
    (0.1, 0.2): 9,
    (0.2, 0.05): 356,
    (0.2, 0.1): 95,
    (0.2, 0.2): 28,
}


def covered(decision: Decision, truth: float) -> bool:
    """Whether the interval holds the true change; what is not given holds everything."""
    return decision.interval is None or decision.interval[0] <= truth <= decision.interval[1]


def uniform_coverage(world: World, ratio: float, experiments: int, cap: int = CAP, seed: int = 4) -> float:
    """The share of experiments in which the intervals after every pair hold the truth, all of them."""
    rng = np.random.default_rng(seed)
    truth = _truth(world, ratio)
    held = 0
    for _ in range(experiments):
        asked = question(world, rng, cap, ratio)
        decide_first = functools.partial(
            decide,
            kind=world.kind,
            better=world.better,
            alpha=ALPHA,
            margin=0.0,
            sequential=True,
            full=False,
        )
        held += all(
            covered(found, truth) or (not found.relative and world.kind != "outcome")
            for n in range(LEAST_PAIRS[True], cap + 1)
            for found in [decide_first(_first(asked.before, n), _first(asked.after, n))]
        )
    return held / experiments


def fixed_coverage(world: World, ratio: float, experiments: int, n: int = 12) -> float:
    """The share of intervals at n pairs that hold the truth."""
    truth = _truth(world, ratio)
    found = decisions(world, ratio, n, experiments, sequential=False)
    return sum(covered(d, truth) or (not d.relative and world.kind != "outcome") for d in found) / experiments


def _truth(world: World, ratio: float) -> float:
    return 0.3 * (ratio - 1) if world.kind == "outcome" else ratio - 1


def pairs_taken(size: float, experiments: int, cap: int = 200, seed: int = 5) -> list[int]:
    """After how many pairs looking after each one finds a change of `size` standard deviations of a pair."""
    rng = np.random.default_rng(seed)
    world = World("rate", _lognormal(0.05))
    taken = []
    for _ in range(experiments):
        *_, last = watch([question(world, rng, cap, math.exp(size * 0.05 * math.sqrt(2)), margin=0.0)], cap)
        taken.append(last.primaries[""].pairs)
    return taken


def print_alarms(experiments: int) -> None:
    """Looks at all pairs from the least on, and one look at 12 pairs."""
    for name, world in WORLDS.items():
        row = sequential_alarms(world, experiments), fixed_alarms(world, experiments)
        print(f"| {name} | {row[0]:.1%} | {row[1]:.1%} |", flush=True)
    three = WORLDS["normal"]
    row = sequential_alarms(three, experiments, primaries=3), fixed_alarms(three, experiments, primaries=3)
    print(f"| three primaries, normal | {row[0]:.1%} | {row[1]:.1%} |", flush=True)


def print_coverage(experiments: int) -> None:
    """All looks together, and one at 12 pairs."""
    for name, world in WORLDS.items():
        row = [
            f(world, ratio, experiments // 4)
            for ratio in (0.5, 0.9)
            for f in (uniform_coverage, fixed_coverage)
        ]
        print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in row) + " |", flush=True)


def print_assumptions(experiments: int) -> None:
    """Intervals that miss the truth, at any look and at one of 12 pairs; then what peeking would do."""
    for name, world in ASSUMPTIONS.items():
        row = uniform_coverage(world, 1.0, experiments), fixed_coverage(world, 1.0, experiments)
        print(f"| {name} | " + " | ".join(f"{1 - share:.1%}" for share in row) + " |", flush=True)
    print(f"looks at a test for fixed n: {naive_alarms(WORLDS['normal'], experiments):.1%}", flush=True)


def print_power(experiments: int) -> None:
    """The table of pairs needed, tried out."""
    for (spread, change), n in PAIRS_NEEDED.items():
        print(
            f"| {spread:.0%}, {change:.0%} | {n} | {power(spread, change, n, experiments):.1%} |", flush=True
        )


def print_pairs(experiments: int) -> None:
    """What a change costs that is looked for after every pair: the median, and what nine of ten need."""
    for size in (0.5, 0.7, 1.0, 1.5, 2.0, 3.0):
        taken = pairs_taken(size, experiments // 4)
        print(f"| {size} | {np.median(taken):.0f} | {np.quantile(taken, 0.9):.0f} |", flush=True)


TABLES = {
    "alarms": print_alarms,
    "coverage": print_coverage,
    "assumptions": print_assumptions,
    "power": print_power,
    "pairs": print_pairs,
}


def main(experiments: str = "10000", *tables: str) -> None:
    """Print some tables, or all."""
    for table in tables or TABLES:
        print(f"{table}, {experiments} experiments", flush=True)
        TABLES[table](int(experiments))


if __name__ == "__main__":
    main(*sys.argv[1:])
