# SPDX-License-Identifier: GPL-2.0-only
"""Every kernel line's patches against its own tree. `make lines` boots them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed import process
from testbed.errors import HostError
from testbed.kernel import kconfig, series, source
from testbed.kernel.series import Line
from testbed.paths import cache_directory
from testbed.spec import KernelSpec

NAMES = ("instrumentation", "reclaim-capture")


def tree(line: Line) -> source.Source:
    try:
        return source.resolve(KernelSpec(debian=line.source), cache_directory())
    except HostError as lacking:
        pytest.skip(f"left out: {lacking.message}")


@pytest.mark.parametrize("line", series.lines(), ids=lambda line: line.directory)
def test_the_series_applies_and_is_in_kernel_style(line: Line, tmp_path: Path) -> None:
    there = tree(line)
    assert there.version in line
    patches = series.load(NAMES, there.version)
    assert [patch.path.parent.name for patch in patches] == [line.directory] * len(NAMES)
    assert series.apply(patches, there.read)
    assert kconfig.merge(kconfig.load(("guest", "reclaim"), there.version))
    for name in ("checkpatch.pl", "spelling.txt", "const_structs.checkpatch"):
        data = there.read(f"scripts/{name}")
        assert data is not None
        (tmp_path / name).write_bytes(data)
    for patch in patches:
        words = ["perl", str(tmp_path / "checkpatch.pl"), "--strict", "--no-tree", str(patch.path)]
        done = process.run(words, cwd=tmp_path, timeout=60, check=False)
        assert "total: 0 errors, 0 warnings, 0 checks" in done.stdout.decode(), done.stdout.decode()
