# SPDX-License-Identifier: GPL-2.0-only
"""From an experiment to its trials, with kernels, image and machine that are only named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.experiment import ArmSpec, Experiment, KernelSpec
from testbed.guest.accel import Accel
from testbed.guest.image import Image
from testbed.guest.qemu import Qemu
from testbed.kernel import build
from testbed.ledger.document import parsed
from testbed.ledger.plan import Plan
from testbed.trials import prepare
from testbed.trials.prepare import Campaign, Machine

Prepare = Callable[..., Campaign]


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """prepare.prepare() of an experiment with these keys; one kernel for all arms."""
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
    plan = SimpleNamespace(source=SimpleNamespace(identity="s"), patches=(), patches_sha256={})
    monkeypatch.setattr(prepare, "plans", lambda e, *_: dict.fromkeys(e.arms, plan))
    monkeypatch.setattr(build, "build", lambda *_, **__: kernel)
    monkeypatch.setattr(prepare, "initramfs", lambda *_: Image(Path("/initramfs"), "i"))
    monkeypatch.setattr(
        prepare,
        "machine",
        lambda e, *_, **__: Machine(prepare.shape_of(e), Qemu("q", "QEMU 1"), Accel("icount", ""), ()),
    )

    def go(**keys: Any) -> Campaign:
        experiment = Experiment(name="x", kernel=KernelSpec(debian="linux-source-6.1"), **keys)
        return prepare.prepare(experiment, tmp_path, lambda _text: None)

    return go


def test_the_seeds_follow_the_first_one(ready: Prepare) -> None:
    arms = {"a": ArmSpec(), "b": ArmSpec()}
    made = ready(arms=arms, seeds=3)
    later = ready(arms=arms, seeds=3, first_seed=1001)
    assert [(t.arm, t.seed) for t in made.trials] == [(a, s) for a in "ab" for s in (1, 2, 3)]
    assert [(t.arm, t.seed) for t in later.trials] == [(a, s) for a in "ab" for s in (1001, 1002, 1003)]
    assert not {t.id for t in made.trials} & {t.id for t in later.trials}
    assert all(f"seed={t.seed}" in t.script.run for t in later.trials)


@pytest.mark.parametrize(("boots", "starts"), [(None, 6), (6, 6), (3, 3), (1, 1)])
def test_seeds_start_from_as_many_boots_as_are_asked_for(
    ready: Prepare, boots: int | None, starts: int
) -> None:
    arms = {"a": ArmSpec(), "b": ArmSpec(command_line=("quiet",))}
    made = ready(arms=arms, seeds=6, boots=boots)
    keys = {arm: [t.start.key for t in made.trials if t.arm == arm] for arm in "ab"}
    for found in keys.values():
        assert len(set(found)) == starts and found == found[:starts] * (6 // starts)
    assert not set(keys["a"]) & set(keys["b"])
    words = [t.shape.cmdline for t in made.trials if t.arm == "b"]
    assert words[:2] == (
        ["quiet testbed.boot=0"] * 2 if boots == 1 else ["quiet testbed.boot=1", "quiet testbed.boot=2"]
    )


def test_in_real_time_every_trial_boots_anyway(ready: Prepare) -> None:
    (trial,) = ready(arms={"a": ArmSpec()}, seeds=1).trials
    experiment = Experiment(name="x", kernel=KernelSpec(debian="linux-source-6.1"), arms={"a": ArmSpec()})
    words = {accel: replace(trial.shape, accel=accel) for accel in ("icount", "tcg")}
    found = {a: prepare.with_arguments(shape, experiment, "a", 5).cmdline for a, shape in words.items()}
    assert found == {"icount": "testbed.boot=5", "tcg": ""}


def test_what_an_arms_kernel_is_told_is_part_of_its_trials_and_of_no_others(ready: Prepare) -> None:
    words = ("transparent_hugepage=always", "quiet")
    plain = ready(arms={"a": ArmSpec(), "b": ArmSpec()}, boots=1)
    told = ready(arms={"a": ArmSpec(), "b": ArmSpec(command_line=words)}, boots=1)
    ids = [{t.id for t in made.trials if t.arm == "b"} for made in (plain, told)]
    starts = [{t.start.key for t in made.trials if t.arm == "b"} for made in (plain, told)]
    assert not ids[0] & ids[1] and len(starts[0] | starts[1]) == 2
    assert [t.id for t in plain.trials if t.arm == "a"] == [t.id for t in told.trials if t.arm == "a"]
    lines = told.plan.provenance.kernel_command_lines
    assert lines["b"] == f"{lines['a']} transparent_hugepage=always quiet"
    # The last one counts, so it comes after testbed's own.
    assert lines["a"].startswith("console=ttyS0 ") and "transparent_hugepage" not in lines["a"]
    assert {t.shape.kernel_cmdline for t in told.trials if t.arm == "b"} == {f"{lines['b']} testbed.boot=0"}
    assert told.plan.experiment.arms["b"].command_line == words
    assert parsed(Plan, told.plan.text()) == told.plan
