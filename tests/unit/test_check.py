# SPDX-License-Identifier: GPL-2.0-only
"""`testbed check`: one kernel against a good and a bad result, as `git bisect run` wants it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed import cli
from testbed.analysis.bisect.posterior import suspicion
from testbed.analysis.parse import parse
from testbed.host.errors import BuildError, SpecError
from testbed.ledger.ledger import Ledger
from testbed.ledger.record import LOST, MEASURED
from testbed.trials import prepare
from testbed.trials.prepare import Campaign
from testbed.trials.trial import Attempt, Trial
from tests.unit.recorded import EXPERIMENT, edited, plan, planned, record
from tests.unit.test_bisect_loop import log_of
from tests.unit.test_guest_faults import make_trial

GOOD, BAD = 10_000, 14_000


def drawn(size: int, seed: int, centre: float, spread: float = 0.1) -> int:
    return int(centre * np.exp(spread * np.random.default_rng([seed, size]).normal()))


def result(directory: Path, centre: float, seeds: int = 8, spread: float = 0.1) -> Path:
    made = plan(("unpatched",), seeds)
    with Ledger.create(directory) as ledger:
        ledger.set_plan(made)
        for seed in range(1, seeds + 1):
            ledger.add(record("unpatched", seed), log_of(drawn(int(centre), seed, centre, spread)))
    return directory


@pytest.fixture
def sides(tmp_path: Path) -> list[str]:
    good, bad = result(tmp_path / "good", GOOD), result(tmp_path / "bad", BAD)
    return ["--good", str(good), "--bad", str(bad), "--metric", "pgscan_direct"]


Check = Callable[..., int]


@pytest.fixture
def check(sides: list[str], monkeypatch: pytest.MonkeyPatch) -> Check:
    """`testbed check` of a kernel that scans so much, on a machine that is not there."""

    def run(centre: float, *words: str, outcome: str = MEASURED, fails: Exception | None = None) -> int:
        def replaced(_experiment: Any, _cache: Path, _note: Any, _cancel: threading.Event) -> Campaign:
            if fails:
                raise fails
            trials = [
                replace(make_trial("q"), arm="unpatched", seed=seed, vmlinux_sha256=f"{centre}{outcome}" * 3)
                for seed in range(1, 6)
            ]
            return Campaign(tuple(trials), planned(plan(("unpatched",), 5).experiment, trials))

        def once(trial: Trial, attempt: int, _cancel: threading.Event) -> Attempt:
            ended = record("unpatched", trial.seed, outcome, "as it was told")
            log = log_of(drawn(3, trial.seed + 100, centre))
            return Attempt(replace(ended, trial=trial.id, attempt=attempt), log, parse(log))

        monkeypatch.setattr(prepare, "prepare", replaced)
        monkeypatch.setattr("testbed.trials.trial.run", once)
        return cli.main(["check", str(EXPERIMENT), *sides, *words])

    return run


def test_good_bad_and_neither(check: Check, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(GOOD) == 0
    assert "good:" in capsys.readouterr().err
    assert check(BAD) == 1
    assert "bad:" in capsys.readouterr().err
    assert check((GOOD * BAD) ** 0.5, "--confidence", "0.9999") == 125
    told = capsys.readouterr().err
    assert "1 is not enough" in told and "cannot tell with" in told
    # Not in the tree that is bisected, which would change it.
    assert len(list(tmp_path.glob("check-*"))) == 3


def test_what_cannot_be_built_or_gives_no_value_is_skipped(
    check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(GOOD, fails=BuildError("make: *** Error 1")) == 125
    assert check(GOOD, fails=SpecError("x.patch: does not apply")) == 125
    assert check(GOOD, outcome="panic") == 125
    assert "cannot tell: it panics" in capsys.readouterr().err


def test_what_says_nothing_of_the_kernel_stops_git(
    check: Check, sides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(GOOD, outcome=LOST) == 128 + 3
    assert cli.main(["check", "no.yaml", *sides]) == 128 + 2
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", "no.yaml"])
    assert ended.value.code == 128 + 2
    few = result(tmp_path / "few", GOOD, 3)
    assert cli.main(["check", str(EXPERIMENT), "--good", str(few), *sides[2:]]) == 128 + 2
    assert "3 values of pgscan_direct; at least 6 are needed" in capsys.readouterr().err
    assert cli.main(["check", str(EXPERIMENT), "--good", f"{few}:nobody", *sides[2:]]) == 128 + 2


def test_results_that_were_not_measured_alike_are_refused(
    check: Check, sides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.create(tmp_path / "bad") as ledger:
        ledger.set_plan(edited(ledger.plan(), lambda data: data["experiment"]["guest"].update(vcpus=3)))
    assert check(GOOD) == 128 + 2
    assert "was not measured like this: guest.vcpus: 3" in capsys.readouterr().err


def test_suspicion() -> None:
    good, bad = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95], [2.0, 2.1, 1.9, 2.0, 2.05, 1.95]
    assert suspicion(good, bad, [], "rate") == pytest.approx(0.5)
    assert suspicion(good, bad, [1.98], "rate") > 0.95 > 0.05 > suspicion(good, bad, [1.02], "rate")
    assert suspicion(good, bad, [1.98], "rate") < suspicion(good, bad, [1.98, 2.03], "rate") < 1
    assert suspicion([0] * 8, [1] * 8, [1], "outcome") > 0.9
