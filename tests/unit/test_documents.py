# SPDX-License-Identifier: GPL-2.0-only
"""Documents: what is written is read back as it was; what is damaged is refused in a line, with its file."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from testbed.analysis.bisect import search as bisect
from testbed.experiment import Experiment
from testbed.host.errors import HostError, SpecError, StoreError
from testbed.ledger.document import Document, parsed
from testbed.ledger.ledger import LEDGER, Ledger
from testbed.ledger.manifest import BundledManifest, Manifest
from testbed.ledger.plan import BisectionPlan, BisectionQuestion, Candidate, Plan, SearchRules
from testbed.report import text
from testbed.report.document import ComparisonReport
from testbed.trials import prepare
from testbed.verbs import reproduce, results
from tests.unit.recorded import (
    DATA,
    REPOSITORY,
    documented,
    guest_facts,
    manifest_of,
    pair,
    plan,
    planned,
    record,
)

PUBLISHED = REPOSITORY / "experiments" / "reclaim-capture.manifest.json"


# --- experiments -----------------------------------------------------------------------------------

name = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
word = st.from_regex(r"[!-~]{1,20}", fullmatch=True)
line = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
setting = st.integers() | word
sysctl = st.dictionaries(st.from_regex(r"[a-z0-9_]+(\.[A-Za-z0-9_-]+)+", fullmatch=True), setting, max_size=2)
sysfs = st.dictionaries(st.from_regex(r"[a-z_]+(/[a-z_]+)+", fullmatch=True), setting, max_size=2)


def mebibytes(low: int, high: int) -> st.SearchStrategy[str]:
    return st.integers(low, high).map(lambda size: f"{size}M")


kernels = st.one_of(
    st.just({"debian": "linux-source-6.1"}),
    st.fixed_dictionaries({"tree": line.filter(lambda path: "\0" not in path)}),
    st.fixed_dictionaries({"git": st.fixed_dictionaries({"repository": line, "revision": line})}),
    st.just({"tarball": {"url": "x.tar.xz", "sha256": "0" * 64}}),
)
arms = st.fixed_dictionaries(
    {},
    optional={
        "patches": st.lists(line, max_size=3),
        "sysctl": sysctl,
        "sysfs": sysfs,
        "command_line": st.lists(word, max_size=3),
        "kernel": kernels,
        "config": st.lists(line, max_size=2),
    },
)
metrics = st.one_of(
    st.fixed_dictionaries({"json": line.filter(bool)}),
    st.fixed_dictionaries({"pattern": st.just("x=([0-9]+)")}, optional={"file": st.just("/run/x")}),
)
# No memory is less than that.
balloons = st.one_of(
    st.fixed_dictionaries({"step": st.fixed_dictionaries({"to": st.just("48M")})}),
    st.fixed_dictionaries(
        {"ramp": st.fixed_dictionaries({"to": st.just("48M"), "over": st.floats(0.001, 1e9)})}
    ),
)
guests = st.fixed_dictionaries(
    {"swap": st.just("0M") | mebibytes(1, 4096), "memory": mebibytes(48, 512)},
    optional={
        "balloon": balloons,
        "mglru": st.booleans(),
        "min_free_kbytes": st.integers(1, 10**9),
        "sysctl": sysctl,
        "sysfs": sysfs,
    },
)
workloads: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"memcg": st.fixed_dictionaries({"limit": st.just("0K") | mebibytes(1, 64)})}),
    st.fixed_dictionaries({"stutter": st.fixed_dictionaries({"period": st.floats(0.0001, 10)})}),
    st.fixed_dictionaries(
        {"command": st.lists(word, min_size=1, max_size=4), "files": st.lists(word, max_size=2)},
        optional={
            "seconds": st.floats(1e-6, 9.5, exclude_min=True),
            "disk": st.booleans(),
            "root": st.booleans(),
        },
    ),
)
written = st.fixed_dictionaries(
    {"name": name, "kernel": kernels, "arms": st.dictionaries(name, arms, min_size=1, max_size=3)},
    optional={
        "description": line,
        "guest": guests,
        "workload": workloads,
        "primary": st.dictionaries(name, st.just({"margin": 0.05}), max_size=3),
        "phases": st.just({"b": 0, "a": 1.5}),
        "sample": st.floats(0, 1e6),
        "seeds": st.integers(1, 100_000),
        "boots": st.integers(1, 100),
        "minutes": st.floats(1e-9, 1e9),
        "sequential": st.booleans(),
        "mode": st.sampled_from(["deterministic", "realtime"]),
        "tracepoints": st.booleans(),
        "metrics": st.dictionaries(st.from_regex("own[a-z]{1,9}", fullmatch=True), metrics, max_size=2),
    },
)


def of_a_file(data: dict[str, Any]) -> Experiment:
    if "command" not in data.get("workload", {}):
        data = {**data, "metrics": {}}
    return Experiment.model_validate(data)


experiments = written.map(of_a_file)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(experiments)
@example(Experiment.model_validate({"name": "x", "kernel": {"tree": "t"}, "arms": {"z": {}, "a": {}}}))
def test_an_experiment_is_read_back_as_it_was(experiment: Experiment) -> None:
    stored = json.dumps(experiment.model_dump(mode="json", by_alias=True))
    again = Experiment.model_validate_json(stored)
    assert again == experiment
    # Equal dictionaries may have another order, and the first arm is what the others are compared with.
    assert json.dumps(again.model_dump(mode="json", by_alias=True)) == stored
    assert list(again.arms) == list(experiment.arms) and list(again.phases) == list(experiment.phases)
    in_a_ledger = planned(experiment, ())
    assert parsed(Plan, in_a_ledger.text()) == in_a_ledger
    first, kernel = next(iter(experiment.arms)), parsed(Manifest, PUBLISHED.read_bytes()).kernels["unpatched"]
    facts = {
        "experiment": experiment,
        "kernels": dict.fromkeys(experiment.arms, kernel),
        "trials": manifest_of(first, record(first, experiment.first_seed)).trials,
    }
    manifest = manifest_of("a", record("a", 1)).model_copy(update=facts)
    assert parsed(Manifest, manifest.text()) == manifest
    bundled = manifest.bundled({"initramfs": "0" * 64})
    assert parsed(BundledManifest, bundled.text()) == bundled


# --- what is published -----------------------------------------------------------------------------


def test_the_published_manifest_is_written_as_it_is() -> None:
    published = PUBLISHED.read_text()
    manifest = parsed(Manifest, published)
    assert manifest.text(indent=1) + "\n" == published
    bundled = manifest.bundled({"initramfs": "0" * 64})
    assert parsed(BundledManifest, bundled.text()) == bundled
    assert json.loads(bundled.text()) == {**json.loads(published), "files": {"initramfs": "0" * 64}}


def test_the_stored_report_is_written_as_it_is() -> None:
    stored = (DATA / "golden" / "document.json").read_text()
    assert parsed(ComparisonReport, stored).text(indent=1) + "\n" == stored


@pytest.mark.parametrize(
    ("stored", "used"), [(Candidate, bisect.Commit), (SearchRules, bisect.Rules)], ids=["commit", "rules"]
)
def test_what_is_stored_of_a_bisection_is_what_it_goes_by(stored: Any, used: Any) -> None:
    assert list(stored.model_fields) == [field.name for field in dataclasses.fields(used)]


# --- damage ----------------------------------------------------------------------------------------


def bisection_plan() -> BisectionPlan:
    candidate = Candidate(id="c", links=(), parents=("g",), weight=1.0, kind="mm", subject="x")
    question = BisectionQuestion(
        repository="/r",
        good="g",
        bad="c",
        paths=(),
        metric="direct_reclaims",
        kind="count",
        title="direct reclaims",
        unit="count",
        commits=(candidate,),
    )
    return BisectionPlan(
        schema=1,
        experiment=plan(["unpatched"]).experiment,
        bisect=question,
        rules=SearchRules(**dataclasses.asdict(bisect.Rules())),
        provenance=guest_facts(["unpatched"]),
    )


WHOLE: list[tuple[type[Document], str]] = [
    (Plan, plan().text()),
    (BisectionPlan, bisection_plan().text()),
    (Manifest, PUBLISHED.read_text()),
    (ComparisonReport, (DATA / "golden" / "document.json").read_text()),
]
NONSENSE: list[Any] = [None, True, -1, 5, 1.5, 10**30, "x", "", [], {}, [[]], [{}], {"x": 1}]


def places(data: Any, so_far: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something is in JSON."""
    yield so_far
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        if isinstance(value, dict | list):
            yield from places(value, (*so_far, key))
        else:
            yield (*so_far, key)


def refused(kind: type[Document], damaged: str | bytes) -> bool:
    """Whether a document is refused; if so, in a line."""
    try:
        parsed(kind, damaged)
    except ValueError as bad:
        assert str(bad) and len(str(bad).splitlines()) == 1
        return True
    return False


whole = pytest.mark.parametrize(("kind", "content"), WHOLE, ids=[kind.__name__ for kind, _ in WHOLE])


@whole
@settings(max_examples=60)
@given(data=st.data())
def test_what_is_cut_short_is_refused(kind: type[Document], content: str, data: st.DataObject) -> None:
    end = len(content.rstrip()) - 1
    assert refused(kind, content[: data.draw(st.integers(0, end))])


@whole
@settings(max_examples=60)
@given(data=st.data())
def test_a_flipped_bit_is_refused_or_is_another_value(
    kind: type[Document], content: str, data: st.DataObject
) -> None:
    damaged = bytearray(content.encode())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    refused(kind, bytes(damaged))


@whole
@settings(max_examples=100)
@given(data=st.data())
def test_what_is_of_another_type_is_refused_or_is_another_value(
    kind: type[Document], content: str, data: st.DataObject
) -> None:
    made = json.loads(content)
    *above, last = data.draw(st.sampled_from([*places(made)][1:]))
    inner = made
    for key in above:
        inner = inner[key]
    if data.draw(st.booleans()):
        inner[last] = data.draw(st.sampled_from(NONSENSE))
    else:
        del inner[last]
    refused(kind, json.dumps(made))


@pytest.mark.parametrize(
    "damaged", ["", "{}", "[]", "null", "[" * 100_000, '{"a":' * 100_000, '{"schema": 9}']
)
@whole
def test_what_is_nothing_like_it_is_refused(kind: type[Document], content: str, damaged: str) -> None:
    assert refused(kind, damaged)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([place for place in places(json.loads(WHOLE[0][1])) if place]), st.sampled_from(NONSENSE)
)
def test_a_plan_that_can_be_read_can_be_reported(place: tuple[Any, ...], value: Any) -> None:
    made = json.loads(WHOLE[0][1])
    *above, last = place
    inner = made
    for key in above:
        inner = inner[key]
    inner[last] = value
    try:
        read = parsed(Plan, json.dumps(made))
    except ValueError:
        return
    report = documented(read, [])
    assert text.markdown(report) and list(text.provenance(report))


def rewritten(directory: Path, table: str, content: str) -> None:
    """Put something else into the ledger of a result."""
    with sqlite3.connect(directory / LEDGER) as db:
        db.execute(f"UPDATE {table} SET document = ?", (content,))


DAMAGED = [
    "",
    "{}",
    "[]",
    "null",
    "[" * 5000,
    WHOLE[0][1][:-10],
    WHOLE[0][1].replace("unpatched", "un patched"),
]


@pytest.mark.parametrize("table", ["plans", "trials"])
@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_ledger_is_named(tmp_path: Path, table: str, content: str) -> None:
    directory = pair(tmp_path / "r")
    rewritten(directory, table, content)
    with pytest.raises(StoreError) as caught:
        results.load(directory)
    assert str(caught.value).startswith(f"{directory / LEDGER}: ")
    assert len(str(caught.value).splitlines()) == 1
    with Ledger.open(directory) as ledger, pytest.raises((StoreError, SpecError)):
        ledger.bisection()


def test_a_record_of_another_arm_than_the_plans_is_told(tmp_path: Path) -> None:
    directory = pair(tmp_path / "r")
    with sqlite3.connect(directory / LEDGER) as db:
        db.execute("""UPDATE trials SET document = replace(document, '"arm": "patched"', '"arm": "x"')""")
    with pytest.raises(StoreError, match="record of trial patched-1 is not what was planned"):
        results.load(directory)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Load a manifest as `verify` does, up to where kernels would be built."""

    def built(*_: object, **__: object) -> None:
        raise HostError("whole")

    def load(content: str) -> None:
        (tmp_path / "m.json").write_text(content)
        reproduce.load(tmp_path / "m.json", tmp_path, tmp_path, print)

    monkeypatch.setattr(prepare, "prepare", built)
    return load


def test_a_whole_manifest_is_taken(load: Callable[[str], None]) -> None:
    with pytest.raises(HostError, match="whole"):
        load(PUBLISHED.read_text())


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["trials"][0].update(seed=10**9),
        lambda data: data["trials"][0].update(seed=0),
        lambda data: data["trials"][0].update(arm="nobody"),
        lambda data: data.update(trials=[]),
        lambda data: data["kernels"].pop("patched"),
        lambda data: data["experiment"]["guest"].update(swap=-1024),
        lambda data: data["experiment"]["guest"].update(memory=1),
        lambda data: data.update(more=1),
    ],
    ids=["far seed", "no seed", "arm", "no trials", "kernel", "less than nothing", "a byte", "more"],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    load: Callable[[str], None], change: Callable[[Any], object]
) -> None:
    data = json.loads(PUBLISHED.read_text())
    change(data)
    with pytest.raises(SpecError, match=r"m\.json: not a manifest: .") as caught:
        load(json.dumps(data))
    assert len(str(caught.value).splitlines()) == 1
