# SPDX-License-Identifier: GPL-2.0-only
"""`testbed parse`: what console logs say, again."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from testbed.analysis.metrics import METRICS, Metric
from testbed.analysis.parse import Measurement
from testbed.analysis.parse import parse as parse_log
from testbed.host import files
from testbed.host.errors import SpecError
from testbed.ledger.ledger import MOST_LOG
from testbed.verbs import results


def parse(path: Path) -> Iterator[Mapping[str, object]]:
    """The facts of every trial of a result, or of one log. Raises SpecError for what cannot be read."""
    if path.is_dir():
        result = results.load(path)
        for observation in result.observations:
            record, facts = observation.record, _facts(observation.measurement, result.comparison.metrics)
            yield {"arm": record.arm, "seed": record.seed, "outcome": record.outcome, **facts}
        return
    try:
        data = files.read(path, MOST_LOG)
        data = files.unpacked(data, MOST_LOG, path) if data.startswith(b"\x1f\x8b") else data
    except (OSError, EOFError, zlib.error) as bad:
        raise SpecError(f"{path}: cannot be read: {files.reason(bad)}") from bad
    yield _facts(parse_log(data), METRICS)


def _facts(measurement: Measurement, metrics: Sequence[Metric]) -> dict[str, object]:
    values = {metric.name: metric.value(measurement) for metric in metrics}
    return {
        "complete": measurement.complete,
        "metrics": {name: value for name, value in values.items() if value is not None},
        "misses": [str(request) for request in measurement.misses],
        "problems": list(measurement.problems),
    }
