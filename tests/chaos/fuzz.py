# SPDX-License-Identifier: GPL-2.0-only
"""Inputs that grow towards code that none has reached yet: `make chaos ARGS="--fuzz 60"`, with atheris."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import dataclass

from tests.chaos.disturb import Verdict
from tests.chaos.hostile import corpus
from tests.chaos.scenes import Scene, Stage
from tests.unit.recorded import REPOSITORY

# Beside the time that it is given.
GRACE_SECONDS = 120.0
# Parser -> the inputs that it begins with.
PARSERS = {"logs": "logs", "frames": "logs", "patches": "patches", "experiments": "experiments"}


@dataclass(frozen=True)
class Fuzz:
    """A row of the table: a parser that is fuzzed for a while."""

    parser: str
    seconds: int
    wanted: int = 1
    batch: int = 1
    scenes: tuple[Scene, ...] = ()

    @property
    def name(self) -> str:
        return f"fuzzed {self.parser}"

    def impossible(self) -> str:
        """Why it cannot be done here; empty if it can."""
        return "" if importlib.util.find_spec("atheris") else "atheris is not installed"

    def run(self, stage: Stage, _number: int, seed: int) -> Verdict:
        """Fuzz it in a process of its own. The input at which it ends stays, and what it has learnt."""
        home = stage.top / "fuzz" / self.parser
        learnt = home / "corpus"
        learnt.mkdir(parents=True, exist_ok=True)
        for index, data in enumerate(corpus(PARSERS[self.parser])):
            (learnt / f"ours.{index}").write_bytes(data)
        words = [sys.executable, "-m", "tests.chaos.fuzzed", self.parser, str(home / "input")]
        words += [f"-max_total_time={self.seconds}", f"-seed={seed + 1}", "-print_final_stats=1"]
        words += [f"-artifact_prefix={home}/", str(learnt)]
        done = subprocess.run(
            words,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=self.seconds + GRACE_SECONDS,
        )
        executed = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
        lost = []
        if done.returncode != 0:
            said = re.findall(r"(?m)^\w*(?:Error|Exception|ERROR)\b.*$", done.stderr)
            lost.append(f"exit status {done.returncode}: {said[0] if said else done.stderr[-300:]} ({home})")
        return Verdict(int(executed[1]) if executed else len(lost), lost, [])
