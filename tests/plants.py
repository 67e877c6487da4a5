# SPDX-License-Identifier: GPL-2.0-only
"""Functions made slower on purpose: does a profile name each of them first? `make plants`, or
`python -m tests.plants [N]`.

Each plant is a kernel in which one function executes 1,000 instructions more at every call. A trial of it is
put beside one of the kernel without: the function has to be the largest part of the difference, with 1,000
instructions more a call, to 1 %. Ends with status 1 if it is not so of every one.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import random
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from testbed.analysis.profile import Function, Profiled, functions
from testbed.experiment import Experiment, load
from testbed.host.paths import cache_directory
from testbed.kernel import build
from testbed.report.profile import differing, sample
from testbed.trials import prepare, profile
from testbed.trials import trial as trials
from testbed.trials.profile import Wanted
from tests.bench import EXPERIMENT

PLANTS = 20
# A move, and 333 times: no operation, decrement, jump.
INSTRUCTIONS = 1000
CODE = '\t{ unsigned int n = 333; asm volatile("1: nop\\n\\tdec %0\\n\\tjnz 1b" : "+r" (n)); }\n'
# In a trial. Of fewer calls the plant would be less than what two trials differ in anyway.
CALLS = range(15_000, 150_000)
FILES = (
    *(
        f"mm/{name}.c"
        for name in ("page_alloc", "vmscan", "memory", "rmap", "swap", "swap_state", "swapfile")
    ),
    *("mm/workingset.c", "mm/memcontrol.c", "mm/zsmalloc.c", "mm/madvise.c", "mm/mmap.c", "mm/slub.c"),
    *("drivers/block/zram/zram_drv.c", "lib/xarray.c", "kernel/sched/core.c", "kernel/sched/fair.c"),
)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def profiled(experiment: Experiment) -> tuple[Profiled, build.Plan]:
    """The profile of an experiment's only trial, and what its kernel is made of."""
    cache = cache_directory()
    (trial,) = prepare.prepare(experiment, cache, say).trials
    (plan,) = prepare.plans(experiment, cache, say).values()
    log = trials.run(trial, 1, threading.Event()).log
    wanted = Wanted(trial, hashlib.sha256(log).hexdigest(), plan)
    (found,) = profile.profiles([wanted], True, lambda _: None)
    (names,) = profile.names([trial.vmlinux], {}, [found])
    return Profiled(trial.arm, trial.seed, found, names), plan


def with_plant(text: str, function: str) -> str | None:
    """A source in which a function begins with the code; None if it is not in there, or more than once."""
    head = rf"(?m)^(static )?([a-z][^\n;{{}}=#]*\b{re.escape(function)}\([^;{{}}]*\)\n\{{\n)"
    found = list(re.finditer(head, text))
    # What is inline has no calls; and what the compiler puts into a caller is the caller's.
    if len(found) != 1 or "inline" in found[0][0]:
        return None
    begin, end = found[0].span()
    return f"{text[:begin]}{found[0][1] or ''}noinline {found[0][2]}{CODE}{text[end:]}"


def plants(known: Sequence[Function], plan: build.Plan) -> Iterator[tuple[str, str]]:
    """Functions that are called often enough, each with the patch that plants the code in it."""
    texts = {}
    for path in FILES:
        data = plan.files[path] if path in plan.files else plan.source.read(path)
        texts[path] = data.decode(errors="surrogateescape") if data else ""
    for function in known:
        for path, text in texts.items():
            if function.calls in CALLS and (after := with_plant(text, function.name)):
                old, new = (part.splitlines(keepends=True) for part in (text, after))
                yield function.name, "".join(difflib.unified_diff(old, new, f"a/{path}", f"b/{path}"))
                break


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.plants")
    parser.add_argument("plants", nargs="?", type=int, default=PLANTS)
    wanted = parser.parse_args()
    experiment = load(EXPERIMENT).only().model_copy(update={"seeds": 1, "primary": {}})
    (name,) = experiment.arms
    before, plan = profiled(experiment)
    known = functions(before.calls())
    candidates = list(plants(list(known.values()), plan))
    random.Random(1).shuffle(candidates)
    right = 0
    with tempfile.TemporaryDirectory() as scratch:
        for function, diff in candidates[: wanted.plants]:
            patch = Path(scratch) / f"{function}.patch"
            patch.write_text(diff, errors="surrogateescape")
            arm = experiment.arms[name]
            slower = arm.model_copy(update={"patches": (*arm.patches, str(patch))})
            after, _ = profiled(experiment.model_copy(update={"arms": {"planted": slower}}))
            of = functions(after.calls())[function]
            each = of.instructions / of.calls - known[function].instructions / known[function].calls
            first = differing([sample(before)], [sample(after)]).functions[0].name
            found = first == function and abs(each - INSTRUCTIONS) <= INSTRUCTIONS / 100
            right += found
            print(
                f"{'found' if found else 'NOT found'}: {function}: first is {first}; "
                f"{each:,.1f} instructions a call more, {of.calls:,} calls",
                flush=True,
            )
    total = min(wanted.plants, len(candidates))
    print(f"{right} of {total} plants were named first, with the right number")
    return 0 if right == total >= wanted.plants else 1


if __name__ == "__main__":
    sys.exit(main())
