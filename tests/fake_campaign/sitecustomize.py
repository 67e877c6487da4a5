# SPDX-License-Identifier: GPL-2.0-only
"""With this directory in PYTHONPATH, testbed compares recorded trials: nothing is built, nothing boots.

Python imports a module of this name by itself when it starts. FAKE is JSON:

    {"counts": {ARM: [direct reclaims of seed 1, 2, ...]}, "kvm": why it does not work or null, "fail": ERROR}
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed.experiment import Experiment
from testbed.experiment.model import PrimarySpec
from testbed.guest import accel
from testbed.host import errors
from testbed.ledger.ledger import Ledger
from testbed.trials import pool, prepare
from testbed.trials.prepare import Campaign
from tests.unit.recorded import counted, edited, plan, record

FAKE = json.loads(os.environ["FAKE"])
COUNTS: dict[str, list[int]] = FAKE["counts"]


def refuse(shape: Any, *_: object) -> str | None:
    refusal: str | None = FAKE.get("kvm")
    return refusal if shape.accel == "kvm" else None


def prepared(
    experiment: Experiment, cache: Path, _progress: Callable[[str], None], *_: object, **__: object
) -> Campaign:
    if FAKE.get("fail"):
        raise getattr(errors, FAKE["fail"], RuntimeError)(f"{FAKE['fail']}, as asked")
    # The kernels of a real one are called so; here it has to be what this experiment says.
    assert list(experiment.arms) == list(COUNTS), experiment.arms
    made = plan(
        COUNTS,
        max(map(len, COUNTS.values())),
        name=experiment.name,
        mode=experiment.mode,
        accel=experiment.accel,
        sequential=False,
        primary={"direct_reclaims": PrimarySpec(margin=0.05)},
    )
    if experiment.mode == "realtime":
        chosen = accel.choose(
            experiment.accel, prepare.shape_of(experiment), Path(__file__), Path(__file__), cache, qemu="env"
        )
        name_and_reason = {"name": chosen.name, "reason": chosen.reason}
        made = edited(made, lambda data: data["provenance"].update(accelerator=name_and_reason))
    return Campaign((), made)


def run(_trials: object, ledger: Ledger, _jobs: object, _progress: object) -> None:
    if not ledger.records():
        for arm, counts in COUNTS.items():
            for seed, count in enumerate(counts, start=1):
                ledger.add(record(arm, seed), counted(allocstall_movable=count))


# They are functions of modules, replaced as a test within the process would do it.
setattr(accel, "_refusal", refuse)  # noqa: B010
setattr(prepare, "prepare", prepared)  # noqa: B010
setattr(pool, "run", run)  # noqa: B010
