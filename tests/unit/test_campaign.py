# SPDX-License-Identifier: GPL-2.0-only
"""From an experiment to its trials, with kernels, image and machine that are only named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed import campaign
from testbed.campaign import Campaign, Machine
from testbed.guest.accel import Accel
from testbed.guest.image import Image
from testbed.guest.qemu import Qemu
from testbed.kernel import build
from testbed.spec import ArmSpec, Experiment, KernelSpec

Prepare = Callable[..., Campaign]


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """campaign.prepare() of an experiment with these keys; one kernel for all arms."""
    config = tmp_path / "config"
    config.write_text("")
    kernel = SimpleNamespace(
        vmlinux=Path("/vmlinux"),
        vmlinux_sha256="k",
        source="linux",
        release="6.1.0",
        patches=(),
        config=config,
        key="key",
        tools=(),
    )
    plan = SimpleNamespace(source=SimpleNamespace(identity="s"), patches=())
    monkeypatch.setattr(campaign, "plans", lambda e, *_: dict.fromkeys(e.arms, plan))
    monkeypatch.setattr(build, "build", lambda *_, **__: kernel)
    monkeypatch.setattr(campaign, "initramfs", lambda *_: Image(Path("/initramfs"), "i"))
    monkeypatch.setattr(
        campaign,
        "machine",
        lambda e, *_, **__: Machine(campaign.shape_of(e), Qemu("q", "QEMU 1"), Accel("icount", ""), ()),
    )

    def go(**keys: Any) -> Campaign:
        experiment = Experiment(name="x", kernel=KernelSpec(debian="linux-source-6.1"), **keys)
        return campaign.prepare(experiment, tmp_path, lambda _text: None)

    return go


def test_the_seeds_follow_the_first_one(prepare: Prepare) -> None:
    arms = {"a": ArmSpec(), "b": ArmSpec()}
    ready = prepare(arms=arms, seeds=3)
    later = prepare(arms=arms, seeds=3, first_seed=1001)
    assert [(t.arm, t.seed) for t in ready.trials] == [(a, s) for a in "ab" for s in (1, 2, 3)]
    assert [(t.arm, t.seed) for t in later.trials] == [(a, s) for a in "ab" for s in (1001, 1002, 1003)]
    assert not {t.id for t in ready.trials} & {t.id for t in later.trials}
    assert all(f"seed={t.seed}" in t.script.run for t in later.trials)


def test_seeds_start_from_as_many_boots_as_are_asked_for(prepare: Prepare) -> None:
    arms = {"a": ArmSpec(), "b": ArmSpec(command_line=("quiet",))}
    ready = prepare(arms=arms, seeds=6, boots=3)
    starts = {arm: [t.start.key for t in ready.trials if t.arm == arm] for arm in "ab"}
    for keys in starts.values():
        assert keys[:3] == keys[3:] and len(set(keys)) == 3
    assert not set(starts["a"]) & set(starts["b"])
    assert next(t.shape.cmdline for t in ready.trials if t.arm == "b") == "quiet testbed.boot=1"
    (alone,) = {t.start.key for t in prepare(arms=arms, seeds=6).trials if t.arm == "a"}
    assert alone not in starts["a"]


def test_what_an_arms_kernel_is_told_is_part_of_its_trials_and_of_no_others(prepare: Prepare) -> None:
    words = ("transparent_hugepage=always", "quiet")
    plain = prepare(arms={"a": ArmSpec(), "b": ArmSpec()})
    told = prepare(arms={"a": ArmSpec(), "b": ArmSpec(command_line=words)})
    ids = [{t.id for t in made.trials if t.arm == "b"} for made in (plain, told)]
    starts = [{t.start.key for t in made.trials if t.arm == "b"} for made in (plain, told)]
    assert not ids[0] & ids[1] and len(starts[0] | starts[1]) == 2
    assert [t.id for t in plain.trials if t.arm == "a"] == [t.id for t in told.trials if t.arm == "a"]
    lines = told.document["provenance"]["kernel_command_lines"]
    assert lines["b"] == f"{lines['a']} transparent_hugepage=always quiet"
    # The last one counts, so it comes after testbed's own.
    assert lines["a"].startswith("console=ttyS0 ") and "transparent_hugepage=never" in lines["a"]
    assert {t.shape.kernel_cmdline for t in told.trials if t.arm == "b"} == {lines["b"]}
    assert told.document["experiment"]["arms"]["b"]["command_line"] == list(words)
