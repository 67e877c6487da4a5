# SPDX-License-Identifier: GPL-2.0-only
"""The JSON Schema of the reports that testbed writes, for whoever reads them. Pure; slow to import (scipy).

Each has a version, `schema`: with it what is here may change, and without it nothing that is here goes away.
"""

from __future__ import annotations

from pydantic import JsonValue, TypeAdapter

from testbed.report.bisection import BisectionReport
from testbed.report.document import ComparisonReport
from testbed.report.matrix import MatrixReport
from testbed.report.selfcheck import SelfcheckReport

REPORTS: TypeAdapter[ComparisonReport | BisectionReport | MatrixReport | SelfcheckReport] = TypeAdapter(
    ComparisonReport | BisectionReport | MatrixReport | SelfcheckReport
)


# What is not written where it is empty or false.
LEFT_OUT = {("Experiment", "metrics"), ("WorkloadSpec", "root"), ("ComparisonReport", "why")}


def schema() -> dict[str, JsonValue]:
    """The JSON Schema of all of them."""
    made = REPORTS.json_schema(mode="serialization")
    for name, part in made["$defs"].items():
        # Models say so themselves; of dataclasses, too, every field is there, and there is no other.
        if "properties" in part:
            required = [key for key in part["properties"] if (name, key) not in LEFT_OUT]
            part |= {"additionalProperties": False, "required": required}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}
