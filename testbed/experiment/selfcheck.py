# SPDX-License-Identifier: GPL-2.0-only
"""Comparisons that have nothing to find: an arm against one that only looks different. Pure."""

from __future__ import annotations

from testbed.experiment import MOST_FIRST_SEED, MOST_SEEDS, Cell, Experiment, Json
from testbed.host.errors import SpecError

PLAIN, OTHER = "plain", "placebo"
PATCH, PADDING = "placebo patch", "padded command line"
KINDS = (PATCH, PADDING)
SERIES = "placebo"
# With a dot it is an option of a module that is not there; of others, the kernel hands some to init. It moves
# what is allocated at boot, and what the kernel's own random numbers begin with.
ARGUMENT = "testbed.padding=" + "0123456789" * 10


def comparisons(experiment: Experiment, count: int) -> list[Cell]:
    """So many comparisons, the kinds by turns, each with seeds that no other one has.

    The nth one is the same whatever `count`, so that more of them go on from fewer.
    Raises SpecError for an experiment that cannot be judged.
    """
    if not experiment.primary:
        raise SpecError("primary: is missing; without a primary metric nothing is judged")
    if count > (most := (MOST_FIRST_SEED - experiment.first_seed) // MOST_SEEDS + 1):
        raise SpecError(f"first_seed: with {experiment.first_seed} there are seeds for {most} comparisons")
    return [_comparison(experiment, number) for number in range(1, count + 1)]


def _comparison(experiment: Experiment, number: int) -> Cell:
    plain = next(iter(experiment.arms.values()))
    kind = KINDS[(number - 1) % len(KINDS)]
    if kind == PATCH:
        other = plain.model_copy(update={"patches": (*plain.patches, SERIES)})
    else:
        other = plain.model_copy(update={"command_line": (*plain.command_line, ARGUMENT)})
    changes = {
        "arms": {PLAIN: plain, OTHER: other},
        "first_seed": experiment.first_seed + (number - 1) * MOST_SEEDS,
    }
    at: dict[str, Json] = {"comparison": number, "kind": kind}
    return Cell(at, f"{number:02}", experiment.model_copy(update=changes))
