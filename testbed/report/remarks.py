# SPDX-License-Identifier: GPL-2.0-only
"""What a reader has to know before any verdict, as it may say that there is nothing to be read. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from testbed.analysis.compare import Arm
from testbed.experiment import Experiment, Model
from testbed.ledger.plan import KernelFacts, Plan
from testbed.ledger.record import LOST, MEASURED

Kind = Literal["nothing reclaimed", "same kernel", "outcomes differ", "memory missed", "records lost"]
KINDS: tuple[str, ...] = get_args(Kind)
# If all of these are 0, no page was reclaimed.
RECLAIM = ("direct_reclaims", "pgscan_direct", "pgscan_kswapd", "pgsteal_direct", "pgsteal_kswapd")


class Remark(Model):
    """One of them; `--fail-on` takes its kind."""

    kind: Kind
    text: str


def remarks(plan: Plan, arms: Mapping[str, Arm]) -> Iterator[Remark]:
    """All that there are to make of a plan's arms."""
    if _idle(list(arms.values())):
        compared = "the program's own numbers and no more" if plan.experiment.metrics else "nothing"
        text = f"nothing was reclaimed in any trial: this compares {compared}"
        yield Remark(kind="nothing reclaimed", text=text)
    for text in same_kernels(plan.experiment, of_facts(plan.provenance.kernels)):
        yield Remark(kind="same kernel", text=text)
    for text in _unlike(arms):
        yield Remark(kind="outcomes differ", text=text)
    for text in _missed(arms):
        yield Remark(kind="memory missed", text=text)
    for text in _unrecorded(arms):
        yield Remark(kind="records lost", text=text)


def _idle(arms: Sequence[Arm]) -> bool:
    counts = [list(arm.values.get(name, {}).values()) for arm in arms for name in RECLAIM]
    killed = any(arm.kills for arm in arms)
    return any(counts) and not any(map(any, counts)) and not killed


class Identity(NamedTuple):
    """What tells one kernel from another, and what its patches are: their hashes by name."""

    kernel: str
    patches: Mapping[str, str]


def of_facts(kernels: Mapping[str, KernelFacts]) -> dict[str, Identity]:
    """Of kernels that are built: by what they are."""
    return {arm: Identity(one.vmlinux_sha256, one.patches_sha256) for arm, one in kernels.items()}


def same_kernels(experiment: Experiment, kernels: Mapping[str, Identity]) -> Iterator[str]:
    """Arms of one kernel, bit for bit, although their patches differ; and arms that differ in nothing."""
    groups: dict[str, list[str]] = {}
    for arm, identity in kernels.items():
        groups.setdefault(identity.kernel, []).append(arm)
    for arms in groups.values():
        first, *others = arms
        told = {arm: experiment.arms[arm].model_dump(exclude={"patches", "kernel", "config"}) for arm in arms}
        for arm in others:
            alike = [one for one in arms[: arms.index(arm)] if told[one] == told[arm]]
            if alike:
                yield f"{alike[0]} and {arm} are the same kernel, bit for bit, with the same settings"
            elif kernels[arm].patches != kernels[first].patches:
                yield f"{first} and {arm} are the same kernel, bit for bit, although their patches differ"


def _missed(arms: Mapping[str, Arm]) -> Iterator[str]:
    """Where memory was not what its schedule says: then the condition is not the one that is named."""
    for trials, share in _lacking(arms, "memory_missed"):
        yield f"memory did not follow its schedule: {trials} missed up to {share:.0%} of its changes"


def _unrecorded(arms: Mapping[str, Arm]) -> Iterator[str]:
    """Where the guest's buffer was too small: then nothing is known of what direct reclaim cost."""
    for trials, most in _lacking(arms, "records_lost"):
        yield f"direct reclaims without a record: {trials} lost up to {most:,.0f}, and have no costs"


def _lacking(arms: Mapping[str, Arm], metric: str) -> Iterator[tuple[str, float]]:
    """Of each arm with trials in which a metric is not 0: how many these are, in words, and its highest."""
    for name, arm in arms.items():
        values = arm.values.get(metric, {}).values()
        if any(values):
            yield f"{sum(map(bool, values))} of {len(values)} trials of {name}", max(values)


def _unlike(arms: Mapping[str, Arm]) -> Iterator[str]:
    """How trials ended badly, where they did so in some arms and not in others."""
    if not all(arm.outcomes for arm in arms.values()):
        return
    for outcome in dict.fromkeys(name for arm in arms.values() for name in arm.outcomes):
        counts = {name: arm.outcomes.get(outcome, 0) for name, arm in arms.items()}
        if outcome in (MEASURED, LOST) or all(counts.values()):
            continue
        trials = {name: sum(arm.outcomes.values()) for name, arm in arms.items()}
        shares = (f"{count or 'none'} of {trials[name]} trials of {name}" for name, count in counts.items())
        yield f"{outcome}: {', '.join(shares)}"
