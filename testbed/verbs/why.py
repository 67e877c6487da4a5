# SPDX-License-Identifier: GPL-2.0-only
"""`--why`: what the differences of a comparison are made of, from its trials' profiles."""

from __future__ import annotations

from dataclasses import replace

from testbed.host.errors import SpecError
from testbed.trials.lab import Lab, Watch
from testbed.verbs.compare import Compared, ComparedMatrix
from testbed.verbs.profile import ProfileRequest, profile


def explained(compared: Compared | ComparedMatrix, lab: Lab, watch: Watch) -> Compared:
    """A comparison with what its differences are made of. Runs each of its trials again, beside a profiler.

    Raises SpecError for a matrix, for what is stored nowhere and where there is nothing to be compared; else
    as verbs.profile.profile() does.
    """
    from testbed.report.profile import differing, sample  # noqa: PLC0415  (slow, with scipy)

    if isinstance(compared, ComparedMatrix) or compared.directory is None:
        raise SpecError("--why: explains one result; of a matrix each cell is one")
    report = compared.report
    if len(report.arms) < 2 or not report.seeds:
        raise SpecError(f"{compared.directory}: --why: there are no two arms that measured the same seed")
    profiled = profile(ProfileRequest(compared.directory, seeds=len(report.seeds)), lab, watch)
    samples = {arm: [sample(each) for each in profiled if each.arm == arm] for arm in report.arms}
    first, *others = report.arms
    whys = {arm: differing(samples[first], samples[arm]) for arm in others}
    return replace(compared, report=report.model_copy(update={"why": whys}))
