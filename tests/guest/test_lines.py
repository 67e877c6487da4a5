# SPDX-License-Identifier: GPL-2.0-only
"""Every kernel line's patches against its own tree. `make lines` and `make fire` boot them all."""

from __future__ import annotations

from pathlib import Path

from testbed import process
from testbed.kernel import kconfig, series
from testbed.kernel.series import Line
from testbed.kernel.source import Source
from tests.guest import subject


def test_the_series_applies_and_is_in_kernel_style(line: Line, pristine: Source, tmp_path: Path) -> None:
    assert pristine.version in line
    names = series.names(pristine.version)
    assert names[: len(subject.AS_POSTED)] == subject.AS_POSTED
    patches = series.load(names, pristine.version)
    assert [patch.path.parent.name for patch in patches] == [line.directory] * len(names)
    assert series.apply(patches, pristine.read)
    assert kconfig.merge(kconfig.load(subject.DEBUG, pristine.version))
    for name in ("checkpatch.pl", "spelling.txt", "const_structs.checkpatch"):
        data = pristine.read(f"scripts/{name}")
        assert data is not None
        (tmp_path / name).write_bytes(data)
    for patch in patches:
        words = ["perl", str(tmp_path / "checkpatch.pl"), "--strict", "--no-tree", str(patch.path)]
        done = process.run(words, cwd=tmp_path, timeout=60, check=False)
        assert "total: 0 errors, 0 warnings, 0 checks" in done.stdout.decode(), done.stdout.decode()
