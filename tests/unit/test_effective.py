# SPDX-License-Identifier: GPL-2.0-only
"""What is in effect in the guests, where it is not what all arms have, or not what was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from testbed.experiment import ArmSpec
from testbed.ledger.ledger import Ledger
from testbed.report import text
from testbed.report.document import ComparisonReport
from testbed.trials import effective
from testbed.verbs import results
from testbed.verbs.run import _known_settings
from tests.unit.recorded import documented, edited, pair, plan, record, write_result
from tests.unit.test_guest_faults import make_trial

SAID = """\
/proc/sys/vm/swappiness:20
/proc/sys/vm/lowmem_reserve_ratio:256\t256\t32\t0\t0
/proc/sys/vm/stat_refresh:
/sys/kernel/mm/transparent_hugepage/enabled:always [madvise] never
/sys/kernel/mm/transparent_hugepage/khugepaged/full_scans:12
/sys/kernel/mm/lru_gen/enabled:0x0000
grep: /proc/sys/vm/compact_memory: Permission denied
/sys/block/zram0/comp_algorithm:lzo [lzo-rle]
"""


def test_settings_have_the_names_of_an_experiment() -> None:
    assert effective.parse(SAID) == {
        "block/zram0/comp_algorithm": "lzo-rle",
        "kernel/mm/lru_gen/enabled": "0x0000",
        "kernel/mm/transparent_hugepage/enabled": "madvise",
        "vm.lowmem_reserve_ratio": "256 256 32 0 0",
        "vm.swappiness": "20",
    }


def reported(**facts: object) -> ComparisonReport:
    arms = {"before": ArmSpec(), "after": ArmSpec(sysctl={"vm.page-cluster": 1})}
    made = edited(plan(arms), lambda data: data["provenance"].update(facts))
    experiment = made.experiment.model_copy(update={"arms": arms})
    return documented(made.model_copy(update={"experiment": experiment}), [])


def test_what_is_not_the_same_in_all_arms_is_told() -> None:
    report = reported(
        effective={
            "before": {"vm.swappiness": "60", "vm.page-cluster": "3", "vm.same": "1"},
            "after": {"vm.swappiness": "20", "vm.page-cluster": "2", "vm.same": "1"},
        },
        config_differences={"CONFIG_EXAMPLE_NOTE": {"before": "n", "after": "y"}},
    )
    assert list(text.differences(report)) == [
        "  configuration: CONFIG_EXAMPLE_NOTE is n in before, y in after",
        "  in effect: vm.swappiness is 60 in before, 20 in after",
        "  in effect: vm.page-cluster is 3 in before, 2 in after",
        "  in effect: vm.page-cluster is 2 in after, and not 1 as asked for",
    ]
    assert "in effect: vm.swappiness is 60 in before, 20 in after" in text.markdown(report)
    assert list(text.differences(reported())) == []


def test_of_a_list_the_kernel_may_know_the_beginning() -> None:
    arms = {"a": ArmSpec(sysctl={"vm.lowmem_reserve_ratio": "256 256 32 0 0"})}
    known = {"a": {"vm.lowmem_reserve_ratio": "256 256 32"}}
    made = edited(plan(arms), lambda data: data["provenance"].update(effective=known))
    experiment = made.experiment.model_copy(update={"arms": arms})
    report = documented(made.model_copy(update={"experiment": experiment}), [])
    assert list(text.differences(report)) == []


def test_the_kernel_of_each_arm_is_told_where_they_are_not_of_one_source() -> None:
    arms = {"old": ArmSpec(), "new": ArmSpec()}
    made = edited(plan(arms), lambda data: data["provenance"]["kernels"]["new"].update(source="linux 7"))
    told = text.setting(documented(made, []))
    assert [line for line in told if line.startswith("  old: ") or line.startswith("  new: ")] == [
        f"  old: {made.provenance.kernels['old'].source}; old",
        "  new: linux 7; new",
    ]


def test_of_many_the_first_are_told() -> None:
    options = {f"CONFIG_{n}": {"before": "n", "after": "y"} for n in range(text.MOST_DIFFERENCES + 3)}
    *_, last = text.differences(reported(config_differences=options))
    assert last == "  configuration: 3 more are not the same; report.json has them"


def test_a_spokesman_is_one_whose_kernel_has_shown_that_it_boots() -> None:
    one = make_trial("qemu")
    trials = [replace(one, arm=arm, seed=seed) for arm in "abc" for seed in (1, 2)]
    outcomes = ["panic", "measured", "oom", "measured", "hang", "lost"]
    records = {t.id: record(t.arm, t.seed, outcome) for t, outcome in zip(trials, outcomes, strict=True)}
    assert [(t.arm, t.seed) for t in effective.spokesmen(trials, records)] == [("a", 2), ("b", 1)]


def test_what_is_known_of_an_arm_is_kept_while_its_trials_are_the_same(tmp_path: Path) -> None:
    known = {"unpatched": {"vm.swappiness": "60"}, "patched": {"vm.swappiness": "20"}}
    old = edited(plan(), lambda data: data["provenance"].update(effective=known))
    write_result(tmp_path / "r", old, [])
    changed = edited(plan(), lambda data: data["trials"].update({"other-1": data["trials"].pop("patched-1")}))
    with Ledger.open(tmp_path / "r") as ledger:
        assert _known_settings(ledger, plan()) == known
        assert _known_settings(ledger, changed) == {"unpatched": known["unpatched"]}


def test_a_result_has_links_by_arm_and_seed(tmp_path: Path) -> None:
    directory = pair(tmp_path / "r")
    for observation in results.load(directory).observations:
        link = directory / "logs" / observation.record.arm / "1.log.gz"
        assert link.resolve() == (directory / "logs" / observation.record.log_name).resolve()
