# SPDX-License-Identifier: GPL-2.0-only
"""The same trial again and again, every other time beside programs that take all cores: `make repeat`.

Prints how many different console logs came of it, for one trial 30 times, and for numbers of vCPUs and
kinds of memory 5 times each. Each runs twice more beside a profiler, which has to count every instruction.
Ends with status 1 if a trial gave more than one log.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import sys
import threading

from testbed.experiment import MmapTest, WorkloadSpec, load
from testbed.host.errors import GuestError
from testbed.host.paths import cache_directory
from testbed.kernel import build
from testbed.ledger.record import MEASURED
from testbed.trials import prepare, profile
from testbed.trials import trial as trials
from testbed.trials.profile import Wanted
from testbed.trials.trial import Trial
from tests.bench import EXPERIMENT, other_work

SECONDS = 1.0
CELLS = ((8, "anon", 30), *((vcpus, mode, 5) for vcpus in (1, 2, 4, 8, 16) for mode in ("anon", "file")))


def trial(vcpus: int, mode: str) -> tuple[Trial, build.Plan]:
    """The experiment's first arm and seed, on so many vCPUs, and what its kernel is made of."""
    loaded = load(EXPERIMENT).only()
    changes = {
        "guest": loaded.guest.model_copy(update={"vcpus": vcpus}),
        "workload": WorkloadSpec(mmap_test=MmapTest.model_validate({"mode": mode, "seconds": SECONDS})),
    }
    changed = loaded.model_copy(update=changes)
    (plan,) = prepare.plans(changed, cache_directory(), lambda _text: None).values()
    return prepare.prepare(changed, cache_directory(), lambda _text: None).trials[0], plan


def digest(chosen: Trial, busy: bool) -> str:
    """The hash of what its console says. Raises GuestError if nothing was measured."""
    with other_work() if busy else contextlib.nullcontext():
        attempt = trials.run(chosen, 1, threading.Event())
    if attempt.record.outcome != MEASURED:
        raise GuestError(f"{attempt.record.outcome}: {attempt.record.detail}")
    return hashlib.sha256(attempt.log).hexdigest()


def main() -> int:
    same = True
    for vcpus, mode, times in CELLS:
        chosen, plan = trial(vcpus, mode)
        found = {digest(chosen, busy) for busy in itertools.islice(itertools.cycle((False, True)), times)}
        print(f"{vcpus} vCPUs, {mode}: {times} runs, {len(found)} different logs", flush=True)
        same &= len(found) == 1
        wanted = Wanted(chosen, max(found), plan)
        for stacks in (False, True):
            (of,) = profile.profiles([wanted], stacks, lambda _: None)
            print(f"  {of.instructions:,} instructions, all of them counted", flush=True)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
