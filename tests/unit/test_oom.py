# SPDX-License-Identifier: GPL-2.0-only
"""What the OOM killer did, from the console to the table; and remarks that stand before all verdicts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from testbed.analysis.compare import Observation
from testbed.analysis.oom import Kill, kills
from testbed.analysis.parse import parse
from testbed.ledger.document import parsed
from testbed.report import gate, html, interchange, text
from testbed.report.document import ComparisonReport
from tests.unit.recorded import PATCHED, UNPATCHED, counted, documented, edited, frame, plan, record
from tests.unit.test_report import shown

# Of Linux 6.1, but for what stands between.
CONSOLE = (
    b"[    3.513201] tail invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0\r\n"
    b"[    3.520011] Free swap  = 60kB\r\n"
    b"[    3.520014] Total swap = 65532kB\r\n"
    b"[    3.520044] [  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name\r\n"
    b"[    3.520051] [      1]     0     1     1090      310    45056       12         -1000 init\r\n"
    b"[    3.520058] [     91]     0    91    40000    20000   335872    16000             0 tail\r\n"
    b"[    3.530127] Out of memory: Killed process 91 (tail) total-vm:160000kB, anon-rss:79000kB, "
    b"file-rss:1000kB, shmem-rss:0kB, UID:0 pgtables:328kB oom_score_adj:0\r\n"
)
HAD = (80000 << 10) + 16000 * 4096
KILL = Kill("tail", 91, 3.530127, HAD, 65532 << 10, 60 << 10)


def test_a_kill_is_read_with_all_that_the_kernel_says() -> None:
    assert kills(CONSOLE) == (KILL,)
    assert parse(PATCHED + CONSOLE).kills == (KILL,)
    assert parse(PATCHED + CONSOLE).oom_victims == ("tail",)


def test_newer_kernels_have_more_columns() -> None:
    # Linux 6.8 splits rss.
    wider = CONSOLE.replace(b"   20000   335872", b"   20000    19750      250        0   335872")
    assert kills(wider) == (KILL,)


def test_each_kill_has_what_was_said_of_it() -> None:
    second = CONSOLE.replace(b"(tail)", b"(head)").replace(b"91", b"92").replace(b"= 60kB", b"= 0kB")
    first, other = kills(CONSOLE + second + CONSOLE)
    assert first == KILL
    assert (other.victim, other.pid, other.swap_free_bytes, other.had_bytes) == ("head", 92, 0, HAD)


def test_what_is_not_told_is_not_known() -> None:
    line = b"Memory cgroup out of memory: Killed process 91 (memcg) total-vm:14372kB"
    assert kills(line) == (Kill("memcg", 91, None, None, None, None),)


# As the repository's kernels say it, without the time.
REAL = b"""tail invoked oom-killer: gfp_mask=0x140dca(GFP_HIGHUSER_MOVABLE|__GFP_COMP|__GFP_ZERO), order=0
Free swap  = 0kB
Total swap = 65532kB
Tasks state (memory values in pages):
[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name
[     51]     0    51      870      546    40960        0         -1000 observe
[     52]     0    52    35897    21143   331776    14540             0 tail
oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),global_oom,task_memcg=/,task=tail,pid=52,uid=0
Out of memory: Killed process 52 (tail) total-vm:143588kB, anon-rss:83224kB, file-rss:4kB, shmem-rss:1344kB
"""


def test_where_messages_have_no_time_it_is_that_of_the_first_sample_with_it() -> None:
    assert [kill.seconds for kill in kills(REAL)] == [None]
    sampled = b"ns phase oom_kill\n1000000000 0 0\n2000000000 0 0\n2100000000 0 1\n3000000000 0 1\n"
    log = PATCHED + REAL + frame("samples", sampled) + frame("sampling", b"samples 4\nlost 0\n")
    (kill,) = parse(log).kills
    assert (kill.seconds, kill.had_bytes) == (2.1, (84572 << 10) + 14540 * 4096)


# --- in the report --------------------------------------------------------------------------------


def oom(arm: str, seed: int) -> Observation:
    return Observation(record(arm, seed, "oom", "the OOM killer took tail"), parse(PATCHED + CONSOLE))


def fine(arm: str, seed: int, log: bytes = PATCHED) -> Observation:
    return Observation(record(arm, seed), parse(log))


def everywhere() -> ComparisonReport:
    arms = ("classic", "mglru")
    return documented(plan(arms, 3), [oom(arm, seed) for seed in (1, 2, 3) for arm in arms])


FORMS: dict[str, Callable[[ComparisonReport], str]] = {
    "text": shown,
    "Markdown": text.markdown,
    "HTML": lambda report: re.sub("<[^>]*>", " ", html.page(report, [])),
}
every_form = pytest.mark.parametrize("form", FORMS)


def plainly(form: str, report: ComparisonReport) -> str:
    return re.sub(r"[\s|\\]+", " ", FORMS[form](report))


@every_form
def test_kills_have_a_table_although_no_seed_was_measured(form: str) -> None:
    found = plainly(form, everywhere())
    for arm in ("classic", "mglru"):
        assert f"{arm} 3 of 3 1 tail 3.53 141 99.9 %" in found
    # Said once: not again trial by trial.
    assert "the OOM killer took" not in found and "not in the numbers" not in found
    assert "MemTotal" not in found and "0 in every arm" not in found


def test_the_document_has_every_kill() -> None:
    made = everywhere()
    assert parsed(ComparisonReport, made.text()) == made
    assert made.arms["mglru"].kills == {str(seed): (KILL,) for seed in (1, 2, 3)}
    # All arms do the same: no difference to remark upon.
    assert made.remarks == ()


@every_form
def test_that_one_arm_runs_out_of_memory_is_a_finding(form: str) -> None:
    seen = [one for seed in (1, 2, 3) for one in (oom("classic", seed), fine("mglru", seed))]
    made = documented(plan(("classic", "mglru"), 3), seen)
    assert [remark.kind for remark in made.remarks] == ["outcomes differ"]
    assert "oom: 3 of 3 trials of classic, none of 3 trials of mglru" in plainly(form, made)
    # What else is said of these seeds is one line.
    assert plainly(form, made).count("no measurement of arm classic") == 1
    assert "mglru 3 seeds (1, 2, 3): refused: no measurement of arm classic" in plainly(form, made)


# --- remarks --------------------------------------------------------------------------------------

NOTHING = counted(
    allocstall_movable=0,
    allocstall_normal=0,
    allocstall_dma32=0,
    pgscan_direct=0,
    pgscan_kswapd=0,
    pgsteal_direct=0,
    pgsteal_kswapd=0,
)


def idle(*logs: bytes) -> ComparisonReport:
    seen = [fine(arm, 1, log) for arm, log in zip(("unpatched", "patched"), logs, strict=True)]
    return documented(plan(seeds=1), seen)


@every_form
def test_a_run_that_reclaimed_nothing_says_so(form: str) -> None:
    assert plainly(form, idle(NOTHING, NOTHING)).count("nothing was reclaimed in any trial") == 1
    assert "nothing was reclaimed" not in plainly(form, idle(NOTHING, UNPATCHED))


def with_hashes(hashes: list[str], change: Any = lambda data: None) -> ComparisonReport:
    """Arms a, b, ... of one seed, with kernels of these hashes; patches differ unless `change` says else."""
    arms = "abc"[: len(hashes)]

    def hashed(data: Any) -> None:
        for arm, sha256 in zip(arms, hashes, strict=True):
            data["provenance"]["kernels"][arm]["vmlinux_sha256"] = sha256
        change(data)

    return documented(edited(plan(arms), hashed), [fine(arm, 1) for arm in arms])


def unpatched(data: Any) -> None:
    for kernel_of in data["provenance"]["kernels"].values():
        kernel_of |= {"patches": [], "patches_sha256": {}}


@every_form
def test_arms_that_are_one_kernel_are_named(form: str) -> None:
    one = with_hashes(["x", "y", "x"])
    assert "a and c are the same kernel, bit for bit, with the same settings" in plainly(form, one)
    assert "same kernel" not in plainly(form, with_hashes(["x", "y"]))


def test_what_else_an_arm_is_told_makes_it_another() -> None:
    def told(data: Any) -> None:
        unpatched(data)
        data["experiment"]["arms"]["b"]["sysctl"] = {"vm.swappiness": 1}

    assert with_hashes(["x", "x"], told).remarks == ()


def test_patches_that_change_nothing_compiled_are_said_even_so() -> None:
    def told(data: Any) -> None:
        data["experiment"]["arms"]["b"]["sysctl"] = {"vm.swappiness": 1}

    (remark,) = with_hashes(["x", "x"], told).remarks
    assert remark.text == "a and b are the same kernel, bit for bit, although their patches differ"


def test_the_gate_takes_remarks_as_conditions() -> None:
    wanted = [gate.condition(words) for words in ("nothing reclaimed", " same  kernel", "outcomes differ")]
    assert [str(one) for one in wanted] == ["nothing reclaimed", "same kernel", "outcomes differ"]
    (met,) = gate.failures(idle(NOTHING, NOTHING), wanted)
    assert met == "nothing reclaimed: nothing was reclaimed in any trial: this compares nothing"
    assert list(gate.failures(idle(UNPATCHED, UNPATCHED), wanted)) == []
    (met,) = gate.failures(with_hashes(["x", "x"]), wanted)
    assert met.startswith("same kernel: a and b are")


def test_machines_are_told_remarks() -> None:
    assert "# nothing was reclaimed in any trial" in interchange.ktap(idle(NOTHING, NOTHING))


# --- trials that failed ---------------------------------------------------------------------------


def failed(detail: str) -> ComparisonReport:
    seen = [Observation(record("a", seed, "failed", detail), parse(b"")) for seed in (1, 2)]
    return documented(plan(["a"], 2), seen)


@every_form
def test_a_failure_has_its_reason_first_then_five_lines(form: str) -> None:
    output = "\n".join(f"line {n}" for n in range(1, 8))
    made = failed(
        f"the workload failed: status=1\n  {output}\n  the console's last lines:\n[ 1.0] x\n"
        "  to run it by hand: qemu-system-x86_64"
    )
    found = plainly(form, made)
    assert "a 2 seeds (1, 2): failed: the workload failed: status=1" in found
    assert found.count("line 7") == 1 and "line 3" in found and "line 2" not in found
    assert "[ 1.0]" not in found and "by hand" not in found
    assert "testbed log RESULT a:1" in found


def test_without_output_the_console_has_the_last_word() -> None:
    made = failed("boot: no ready\n  the console's last lines:\none\ntwo\n  to run it by hand: qemu")
    assert [e.said for e in made.excluded] == [("one", "two")] * 2
    assert [e.said for e in failed("boot: no ready").excluded] == [()] * 2
