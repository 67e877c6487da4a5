# SPDX-License-Identifier: GPL-2.0-only
"""Testbed under attack for an hour: `make chaos`, or `python -m tests.chaos [--minutes 10] [--seed 7]`.

Prints the table of docs/reliability.md. Ends with status 1 if anything was lost or left behind; what that was
is told on standard error, and what is there of such a case is kept.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from testbed.trials.prepare import own_version
from tests.chaos.campaign import Campaign, Row
from tests.chaos.disturb import KINDS
from tests.chaos.fuzz import PARSERS, Fuzz
from tests.chaos.hostile import HOSTILE


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--minutes", type=float, default=60.0, help="to begin cases in; default: 60")
    parser.add_argument("--seed", type=int, default=0, help="what decides what is done when; default: 0")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="default: a core each")
    parser.add_argument("--share", type=float, default=1.0, help="of what is wanted of each kind; default: 1")
    only = "the kinds that have these in their name; may be repeated"
    parser.add_argument("--only", action="append", metavar="WORDS", help=only)
    parser.add_argument("--fuzz", type=float, default=0.0, metavar="MINUTES", help="fuzz the parsers as well")
    parser.add_argument("--into", type=Path, default=Path("results/chaos"), help="default: results/chaos")
    wanted = parser.parse_args()
    fuzz = [Fuzz(parser, round(wanted.fuzz * 60 / len(PARSERS))) for parser in PARSERS if wanted.fuzz]
    all_kinds: tuple[Row, ...] = (*KINDS, *HOSTILE, *fuzz)
    kinds = [kind for kind in all_kinds if any(words in kind.name for words in wanted.only or [""])]
    campaign = Campaign(wanted.into.resolve(), kinds, own_version(), wanted.seed, wanted.share)
    try:
        campaign.run(wanted.minutes, wanted.jobs)
    except ValueError as other:
        print(other, file=sys.stderr)
        return 2
    print(campaign.table(), end="")
    return 1 if any(case.lost or case.left for case in campaign.done()) else 0


if __name__ == "__main__":
    sys.exit(main())
