# SPDX-License-Identifier: GPL-2.0-only
"""The verdicts for machines: JUnit's XML and the kernel's KTAP. Pure.

A case is a primary metric of an arm: a regression fails, what is not decided, or by construction, is
skipped, what cannot be computed is an error.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from testbed.analysis.decision import Verdict
from testbed.report import words
from testbed.report.document import ComparisonReport
from testbed.report.escape import visible

Result = Literal["ok", "failure", "skipped", "error"]
_RESULTS: dict[Verdict, Result] = {
    "regressed": "failure",
    "inconclusive": "skipped",
    "by construction": "skipped",
    "none": "error",
}


@dataclass(frozen=True)
class Case:
    """One primary metric of one arm."""

    arm: str
    metric: str
    result: Result
    message: str


def cases(report: ComparisonReport) -> Iterator[Case]:
    """All of them, in the order of the report."""
    for one in report.decisions("primary"):
        result = _RESULTS.get(one.decision.verdict, "ok")
        yield Case(one.arm, one.metric, result, visible(words.said(one)))


def remarks(report: ComparisonReport) -> list[str]:
    """What has to be known before any of them."""
    return [visible(remark.text) for remark in report.remarks]


def junit(report: ComparisonReport) -> str:
    """JUnit XML, in the form of Apache Ant's that Jenkins, GitLab and GitHub's actions read."""
    found = list(cases(report))
    root = ET.Element("testsuites")
    for arm in dict.fromkeys(case.arm for case in found):
        own = [case for case in found if case.arm == arm]
        counted = {kind: sum(case.result == kind for case in own) for kind in ("failure", "error", "skipped")}
        suite = ET.SubElement(
            root,
            "testsuite",
            name=visible(f"{report.name}.{arm}"),
            tests=str(len(own)),
            failures=str(counted["failure"]),
            errors=str(counted["error"]),
            skipped=str(counted["skipped"]),
            time="0",
            timestamp=(report.provenance.started or "1970-01-01T00:00:00")[:19],
            hostname="localhost",
        )
        for case in own:
            element = ET.SubElement(
                suite, "testcase", classname=visible(f"{report.name}.{arm}"), name=case.metric
            )
            element.set("time", "0")
            if case.result == "ok":
                ET.SubElement(element, "system-out").text = case.message
            else:
                ET.SubElement(element, case.result, message=case.message)
        if lines := remarks(report):
            ET.SubElement(suite, "system-out").text = "\n".join(lines)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def ktap(report: ComparisonReport) -> str:
    """KTAP, version 1 (Linux, Documentation/dev-tools/ktap.rst): a subtest per arm."""
    found = list(cases(report))
    arms = list(dict.fromkeys(case.arm for case in found))
    lines = ["KTAP version 1", f"1..{len(arms)}", *(f"# {line}" for line in remarks(report))]
    for number, arm in enumerate(arms, start=1):
        own = [case for case in found if case.arm == arm]
        lines += ["  KTAP version 1", f"  1..{len(own)}"]
        for index, case in enumerate(own, start=1):
            state = "not ok" if case.result in ("failure", "error") else "ok"
            skip = " # SKIP no verdict" if case.result == "skipped" else ""
            lines += [f"  # {case.message}", f"  {state} {index} {case.metric}{skip}"]
        failed = any(case.result in ("failure", "error") for case in own)
        lines.append(f"{'not ok' if failed else 'ok'} {number} {arm}")
    return "\n".join(lines) + "\n"
