# SPDX-License-Identifier: GPL-2.0-only
"""Every kernel line's patches against its own tree. `make lines` and `make fire` boot them all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from testbed.host import process
from testbed.kernel import build, kconfig, series
from testbed.kernel.series import Line
from testbed.kernel.source import Source
from tests.guest import subject


def test_the_series_applies_and_is_in_kernel_style(line: Line, pristine: Source, tmp_path: Path) -> None:
    assert pristine.version in line
    port, *alternatives, mutants = stacks = subject.stacks(pristine.version)
    assert port[: len(subject.AS_POSTED)] == subject.AS_POSTED
    assert tuple(name for _, name in alternatives) == subject.ALTERNATIVES
    assert mutants == subject.MUTANTS
    for names in stacks:
        assert series.apply(series.load(names, pristine.version), pristine.read)
    patches = series.load(series.names(pristine.version), pristine.version)
    assert {patch.path.parent.name for patch in patches} == {line.directory}
    assert kconfig.merge(kconfig.load(subject.DEBUG, pristine.version))
    for name in ("checkpatch.pl", "spelling.txt", "const_structs.checkpatch"):
        data = pristine.read(f"scripts/{name}")
        assert data is not None
        (tmp_path / name).write_bytes(data)
    for patch in patches:
        words = ["perl", str(tmp_path / "checkpatch.pl"), "--strict", "--no-tree", str(patch.path)]
        done = process.run(words, cwd=tmp_path, timeout=60, check=False)
        assert "total: 0 errors, 0 warnings, 0 checks" in done.stdout.decode(), done.stdout.decode()


@pytest.mark.fire
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("config", [subject.FAST, subject.DEBUG], ids=["fast", "debug"])
def test_every_patch_compiles_without_a_new_warning(
    line: Line, pristine: Source, config: tuple[str, ...], tmp_path: Path
) -> None:
    """With W=1, each on top of those before it in its stack."""
    pristine.checkout(tmp_path / "src")
    config_file = subject.kernel(pristine, subject.PORT, config).config
    build.put(tmp_path / "obj" / ".config", config_file.read_bytes())
    stacks = [subject.AS_POSTED, *subject.stacks(pristine.version)[1:]]
    loaded = [series.load(names, pristine.version) for names in stacks]
    touched = {path for patches in loaded for patch in patches for path in patch.files}
    objects = [path.removesuffix(".c") + ".o" for path in sorted(touched) if path.endswith(".c")]
    known = warnings(tmp_path, objects)
    for patches in loaded:
        for count in range(1, len(patches) + 1):
            made = series.apply(patches[:count], pristine.read)
            for path in touched:
                build.put(tmp_path / "src" / path, made.get(path, pristine.read(path)))
            assert not warnings(tmp_path, objects) - known, patches[count - 1].name
    victim = tmp_path / "src" / "mm/vmscan.c"
    build.put(victim, victim.read_bytes() + b"int unheard_of(void) { return 0; }\n")
    (new,) = warnings(tmp_path, objects) - known
    assert "no previous prototype for 'unheard_of'" in new


def warnings(work: Path, objects: Sequence[str]) -> Counter[str]:
    """What the compiler warns of, wherever in a file. Nothing of objects that are up to date."""
    done = process.run(build.kbuild(work, "obj", ["W=1", *objects]), timeout=1800)
    lines = [line for line in done.stderr.decode().splitlines() if " warning: " in line]
    return Counter(re.sub(r":\d+:\d+:", ":", line) for line in lines)
