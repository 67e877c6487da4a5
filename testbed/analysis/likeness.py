# SPDX-License-Identifier: GPL-2.0-only
"""Whether numbers of two results may be put side by side. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Plan = Mapping[str, Any]
# Of an experiment, what decides what its guests do beside the kernel under test.
_SAME = ("guest", "workload", "phases", "sample", "tracepoints", "mode")


def unlike(one: Plan, other: Plan) -> Iterator[str]:
    """What differs between two plans but must not, a line each; nothing if they may be compared."""
    for key in _SAME:
        yield from _differences(key, one["experiment"].get(key), other["experiment"].get(key))
    for key, values in (
        ("accelerator", [plan["provenance"]["accelerator"]["name"] for plan in (one, other)]),
        ("initramfs", [plan["provenance"]["initramfs"]["sha256"][:12] for plan in (one, other)]),
        ("QEMU", [_emulator(plan) for plan in (one, other)]),
        ("host", [_host(plan) for plan in (one, other)]),
    ):
        yield from _differences(key, *values)


def _emulator(plan: Plan) -> str:
    facts = plan["provenance"]
    # Of one family all give the same from the same snapshot; in real time, versions may differ in speed.
    return str(facts.get("qemu_family") if facts["accelerator"]["name"] == "icount" else facts["qemu"])


def _host(plan: Plan) -> str:
    facts = plan["provenance"]
    if facts["accelerator"]["name"] == "icount":
        return "any"
    return f"{facts['host']['cores']} x {facts['host']['cpu']}"


def _differences(key: str, one: object, other: object) -> Iterator[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in {**one, **other}:
            yield from _differences(f"{key}.{name}", one.get(name), other.get(name))
    elif one != other:
        yield f"{key}: {one} and {other}"
