# SPDX-License-Identifier: GPL-2.0-only
"""Comparisons that have nothing to find: what they are, and that planted false alarms are counted."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from testbed.analysis import selfcheck as analysis
from testbed.analysis.decision import Decision
from testbed.analysis.parse import Measurement
from testbed.analysis.selfcheck import Outcome
from testbed.experiment import MOST_SEEDS, Experiment, load
from testbed.experiment import selfcheck as placebo
from testbed.host.errors import HostError, SpecError
from testbed.kernel import series
from testbed.ledger.ledger import Ledger
from testbed.terminal.arguments import parser
from testbed.trials import pool, prepare
from testbed.trials.prepare import Campaign
from testbed.trials.trial import Trial
from tests.unit import test_cli
from tests.unit.recorded import REPOSITORY, counted, planned, record
from tests.unit.test_guest_faults import make_trial

Testbed = test_cli.Testbed
# Fixtures.
testbed, signals = test_cli.testbed, test_cli.signals

SELFCHECK = REPOSITORY / "experiments" / "selfcheck.yaml"


# --- what is compared ----------------------------------------------------------------------------


def test_the_kinds_take_turns_and_differ_in_nothing_else() -> None:
    base = load(SELFCHECK)
    made = placebo.comparisons(base, 5)
    assert [cell.name for cell in made] == ["01", "02", "03", "04", "05"]
    assert [cell.at["kind"] for cell in made] == [placebo.KINDS[n % 2] for n in range(5)]
    first = base.arms["unpatched"]
    for cell in made:
        plain, other = cell.experiment.arms.values()
        assert plain.patches == first.patches and (plain.sysctl, plain.sysfs) == (other.sysctl, other.sysfs)
        if cell.at["kind"] == placebo.PATCH:
            assert other.patches == (*plain.patches, "placebo")
            assert other.command_line == plain.command_line
        else:
            assert other.patches == plain.patches
            assert other.command_line == (*plain.command_line, placebo.ARGUMENT)
        unchanged = cell.experiment.model_copy(update={"arms": base.arms, "first_seed": 1})
        assert unchanged == base


def test_no_two_comparisons_share_a_seed_or_a_boot_and_more_go_on_from_fewer() -> None:
    base = load(SELFCHECK, {"first_seed": 7})
    made = placebo.comparisons(base, 12)
    assert made[:4] == placebo.comparisons(base, 4)
    starts = [cell.experiment.first_seed for cell in made]
    assert starts[0] == 7 and {b - a for a, b in itertools.pairwise(starts)} == {MOST_SEEDS}
    # Every seed has a boot of its own.
    assert {cell.experiment.boots for cell in made} == {None}


def test_what_cannot_be_judged_is_refused() -> None:
    base = load(SELFCHECK)
    with pytest.raises(SpecError, match="primary: is missing"):
        placebo.comparisons(base.model_copy(update={"primary": {}}), 1)
    with pytest.raises(SpecError, match="there are seeds for 2 comparisons"):
        placebo.comparisons(base.model_copy(update={"first_seed": 2**31 - MOST_SEEDS}), 3)


@pytest.mark.parametrize("line", series.lines(), ids=lambda line: line.directory)
def test_every_line_has_the_patch_and_it_adds_one_function(line: series.Line) -> None:
    (patch,) = series.load([placebo.SERIES], line.first)
    assert patch.diffstat == {"mm/filemap.c": (9, 0)}


# --- how the alarms are counted ------------------------------------------------------------------


def outcome(kind: str, *verdicts: Any) -> Outcome:
    """An outcome with so many primary metrics; True is an alarm, None no verdict."""
    found = {True: ("different but small", "improved"), False: ("equivalent", None), None: ("none", None)}
    decisions = {
        str(n): Decision(found[v][0], 0.025, 6, 0, direction=found[v][1], estimate=0.01)  # type: ignore[arg-type]
        for n, v in enumerate(verdicts)
    }
    return Outcome("x", kind, 6, decisions, {})


def test_a_comparison_raises_one_alarm_however_many_metrics_do() -> None:
    made = [outcome("a", True, True), outcome("a", False, True), outcome("b", False, False)]
    found = analysis.check(made, 0.05)
    assert (found.total.comparisons, found.total.alarms) == (3, 2)
    assert {kind: (r.comparisons, r.alarms) for kind, r in found.kinds.items()} == {"a": (2, 2), "b": (1, 0)}


def test_what_could_raise_no_alarm_does_not_count() -> None:
    found = analysis.check([outcome("a", None, True), outcome("a", False, False)], 0.05)
    assert (found.total.comparisons, found.total.alarms) == (1, 0)
    nothing = analysis.check([outcome("a", None)], 0.05)
    assert (nothing.total.comparisons, nothing.total.bound, nothing.alarm) == (0, 1.0, False)


@pytest.mark.parametrize("count", [1, 20, 40])
def test_the_bound_without_an_alarm_is_the_textbooks(count: int) -> None:
    found = analysis.rate([outcome("a", False)] * count, 0.05)
    assert found.bound == pytest.approx(1 - 0.05 ** (1 / count))


@pytest.mark.parametrize(("count", "least"), [(0, None), (1, None), (2, 2), (20, 4), (40, 5), (400, 28)])
def test_so_many_are_too_many_and_one_less_is_not(count: int, least: int | None) -> None:
    assert analysis.too_many(count, 0.05) == least
    for alarms in (least - 1, least) if least else ():
        made = [outcome("a", n < alarms) for n in range(count)]
        assert analysis.check(made, 0.05).alarm is (alarms == least)


# --- the verb, with guests whose counts are drawn ------------------------------------------------


@pytest.fixture
def guests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Guests that count direct reclaims with a noise of one percent; those that ran, as (arm, seed).

    In comparisons of an experiment that says so in its description, the arm that should not differ does.
    """
    ran: list[tuple[str, int]] = []

    def replaced(experiment: Experiment, *_: object) -> Campaign:
        planted = json.loads(experiment.description or "{}")
        effect = planted.get(str(experiment.first_seed // MOST_SEEDS + 1), 1.0)
        one = make_trial("qemu")
        trials = [
            replace(one, arm=arm, seed=seed, memory=round(1000 * (effect if arm != placebo.PLAIN else 1)))
            for arm in experiment.arms
            for seed in range(experiment.first_seed, experiment.first_seed + experiment.seeds)
        ]
        made = planned(experiment, trials)
        return Campaign(tuple(trials), made)

    def run(
        wanted: Sequence[Trial], ledger: Ledger, _jobs: int | None, _progress: object, **_: object
    ) -> dict[str, Measurement]:
        done = {found.trial for found in ledger.records()}
        for trial in wanted:
            if trial.id not in done:
                reclaims, scans = np.random.default_rng([trial.seed, len(trial.arm)]).normal(1, 0.01, 2)
                log = counted(
                    allocstall_movable=round(trial.memory * reclaims), pgscan_direct=round(10_000 * scans)
                )
                ledger.add(record(trial.arm, trial.seed, trial=trial.id), log)
                ran.append((trial.arm, trial.seed))
        return {}

    monkeypatch.setattr(prepare, "prepare", replaced)
    monkeypatch.setattr(pool, "run", run)
    return ran


Written = Callable[..., Path]


@pytest.fixture
def experiment(tmp_path: Path) -> Written:
    """An experiment file; `planted` has comparison -> the factor by which the other arm differs."""

    def write(planted: Mapping[int, float] | None = None, **changes: Any) -> Path:
        said = yaml.safe_load(SELFCHECK.read_text())
        said |= {"primary": {"direct_reclaims": {"margin": 0.05}}, "description": json.dumps(planted or {})}
        path = tmp_path / "x.yaml"
        path.write_text(yaml.safe_dump({**said, **changes}, sort_keys=False))
        return path

    return write


def document(home: Path = Path("results/selfcheck")) -> Any:
    return json.loads((home / "selfcheck.json").read_text())


def test_where_nothing_differs_there_is_no_alarm(testbed: Testbed, guests: Any, experiment: Written) -> None:
    ran = testbed("selfcheck", experiment(), "--comparisons", 6)
    assert ran.status == 0
    said = document()
    assert (said["alarm"], said["total"]["comparisons"], said["total"]["alarms"]) == (False, 6, 0)
    assert {kind: rate["comparisons"] for kind, rate in said["kinds"].items()} == {
        "placebo patch": 3,
        "padded command line": 3,
    }
    assert "no alarm: 2 would be too many for the declared 5%" in ran.out
    assert "direct reclaims: 6 equivalent" in ran.out and "pairs of seeds: 6 to 6, median 6" in ran.out
    # One test each of a metric that nobody declared, in which the arms differ.
    found = said["exploratory"]
    assert found["pairs"] == 6 and all(len(values) >= 3 for values in found["kinds"].values())
    assert all(0 < p <= 1 for values in found["kinds"].values() for p in values)
    # It is a matrix, too, of which there is a table.
    table = testbed("report", "results/selfcheck")
    assert table.status == 0 and "comparison=6, kind=padded command line" in table.out
    for suffix in ("svg", "png"):
        assert Path(f"results/selfcheck/pictures/selfcheck.{suffix}").stat().st_size > 1000


def test_alarms_that_are_planted_are_found_and_too_many_are_told(
    testbed: Testbed, guests: Any, experiment: Written
) -> None:
    # One far beyond the margin, one within it, one in each kind.
    ran = testbed("selfcheck", experiment({2: 1.3, 5: 1.03}), "--comparisons", 6)
    assert ran.status == 1
    said = document()
    assert said["alarm"] and (said["total"]["comparisons"], said["total"]["alarms"]) == (6, 2)
    assert [c["name"] for c in said["comparisons"] if c["alarms"]] == ["02", "05"]
    verdicts = [c["verdicts"]["direct_reclaims"] for c in said["comparisons"] if c["alarms"]]
    assert verdicts == ["regressed", "different but small"]
    assert [rate["alarms"] for rate in said["kinds"].values()] == [1, 1]
    assert (
        "ALARM: " in ran.out and "false alarm in 02 (padded command line): direct reclaims: regr" in ran.out
    )
    assert "false alarm in 05 (placebo patch): direct reclaims: regressed, but little" in ran.out


def test_one_alarm_of_many_is_none(testbed: Testbed, guests: Any, experiment: Written) -> None:
    ran = testbed("selfcheck", experiment({2: 1.3}), "--comparisons", 6)
    assert (ran.status, document()["total"]["alarms"], document()["alarm"]) == (0, 1, False)


def test_it_goes_on_from_what_is_there_and_fresh_starts_over(
    testbed: Testbed, guests: list[tuple[str, int]], experiment: Written
) -> None:
    path = experiment()
    first = testbed("selfcheck", path, "--comparisons", 2)
    assert len(guests) == 2 * 2 * 6 and len(set(guests)) == len(guests)
    before = document()
    guests.clear()
    assert testbed("selfcheck", path, "--comparisons", 2).out == first.out
    assert guests == [] and document() == before
    testbed("selfcheck", path, "--comparisons", 4)
    assert {seed // MOST_SEEDS for _, seed in guests} == {2, 3}
    assert document()["comparisons"][:2] == before["comparisons"]
    guests.clear()
    ran = testbed("selfcheck", path, "--comparisons", 2, "--fresh")
    assert "the old result is now results/selfcheck.1" in ran.err and len(guests) == 2 * 2 * 6
    assert document() == before


def test_options_of_the_verb(testbed: Testbed, guests: Any, experiment: Written, tmp_path: Path) -> None:
    ran = testbed(
        "selfcheck", experiment(), "--comparisons", 1, "--mode", "realtime", "--jobs", 1, "--results", "there"
    )
    assert ran.status == 0 and document(Path("there"))["total"]["comparisons"] == 1
    assert "no alarm, and so few comparisons cannot raise one" in ran.out
    assert not Path("results").exists()
    stored = json.loads((Path("there") / "matrix.json").read_text())
    assert stored["cells"][0]["at"] == {"comparison": 1, "kind": "placebo patch"}


def test_a_comparison_that_fails_is_named_and_gives_its_status(
    testbed: Testbed, guests: Any, experiment: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = prepare.prepare

    def replaced(experiment: Experiment, *rest: Any, **more: Any) -> Campaign:
        if placebo.ARGUMENT in experiment.arms[placebo.OTHER].command_line:
            raise HostError("no QEMU")
        return good(experiment, *rest, **more)

    monkeypatch.setattr(prepare, "prepare", replaced)
    ran = testbed("selfcheck", experiment(), "--comparisons", 2)
    assert ran.status == 3 and "failed: 02: no QEMU" in ran.out
    assert document()["total"]["comparisons"] == 1


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"primary": {}}, (), "x.yaml: primary: is missing"),
        ({"matrix": {"guest.vcpus": [2, 4]}}, (), "x.yaml: `matrix`: a check of the tool has none"),
        ({"seedz": 1}, (), "`seedz`: unknown key"),
        ({"first_seed": 2**31}, (), "x.yaml: first_seed: with 2147483648 there are seeds for 1 comparisons"),
        ({}, ("--comparisons", "0"), "is not a whole number from 1"),
        ({}, ("--comparisons", "x"), "is not a whole number from 1"),
        ({}, ("--mode", "fast"), "invalid choice"),
    ],
)
def test_bad_input_is_status_2(
    testbed: Testbed,
    guests: list[Any],
    experiment: Written,
    changes: dict[str, Any],
    words: tuple[str, ...],
    message: str,
) -> None:
    ran = testbed("selfcheck", experiment(**changes), *words)
    assert (ran.status, ran.out) == (2, "") and message in ran.err and "Traceback" not in ran.err
    assert guests == [] and not Path("results").exists()


def test_without_a_file_it_is_the_repositorys_own() -> None:
    arguments = parser().parse_args(["selfcheck"])
    assert (arguments.experiment, arguments.comparisons) == (SELFCHECK, 40)
