# SPDX-License-Identifier: GPL-2.0-only
"""Whether numbers of two results may be put side by side. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from testbed.ledger.plan import GuestFacts, Plan

# Of an experiment, what decides what its guests do beside the kernel under test.
_SAME = ("guest", "workload", "phases", "sample", "tracepoints", "mode")


def unlike(one: Plan, other: Plan) -> Iterator[str]:
    """What differs between two plans but must not, a line each; nothing if they may be compared."""
    first, second = (plan.experiment.model_dump(mode="json", include=set(_SAME)) for plan in (one, other))
    for key in _SAME:
        yield from _differences(key, first[key], second[key])
    ours, theirs = one.provenance, other.provenance
    yield from _differences("accelerator", ours.accelerator.name, theirs.accelerator.name)
    yield from _differences("initramfs", ours.initramfs.sha256[:12], theirs.initramfs.sha256[:12])
    yield from _differences("QEMU", _emulator(ours), _emulator(theirs))
    yield from _differences("host", _host(ours), _host(theirs))


def _emulator(facts: GuestFacts) -> str:
    # Of one family all give the same from the same snapshot; in real time, versions may differ in speed.
    return facts.qemu_family if facts.deterministic else facts.qemu


def _host(facts: GuestFacts) -> str:
    return "any" if facts.deterministic else f"{facts.host.cores} x {facts.host.cpu}"


def _differences(key: str, one: object, other: object) -> Iterator[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in {**one, **other}:
            yield from _differences(f"{key}.{name}", one.get(name), other.get(name))
    elif one != other:
        yield f"{key}: {one} and {other}"
