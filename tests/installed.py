# SPDX-License-Identifier: GPL-2.0-only
"""The package as its users get it: built, and installed where there is nothing of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from testbed.host.paths import REPOSITORY

BUILD_SECONDS = 120


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the package and what it depends on, and nothing else."""

    directory: Path
    sdist: Path
    wheel: Path

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    def testbed(
        self, *words: object, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run the command in a directory."""
        return self._run(self.directory / "bin" / "testbed", *words, cwd=cwd, env=env, timeout=timeout)

    def evaluate(self, program: str, cwd: Path) -> str:
        """What a Python program prints there."""
        done = self._run(self.python, "-c", program, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _run(
        self, *argv: object, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(word) for word in argv],
            cwd=cwd,
            env={**_environment(), **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )


def _environment() -> dict[str, str]:
    """Ours, without what would lead to the checkout."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }


def build(directory: Path) -> tuple[Path, Path]:
    """The sdist of the checkout, and the wheel that comes of the sdist; by what is installed here."""
    words = ["-m", "build", "--no-isolation", "--outdir", directory, REPOSITORY]
    _check([sys.executable, *words])
    (sdist,), (wheel,) = directory.glob("*.tar.gz"), directory.glob("*.whl")
    return sdist, wheel


def install(directory: Path) -> Installed:
    """Build, and install into a new environment, which borrows our dependencies: no network, and seconds."""
    sdist, wheel = build(directory / "dist")
    environment = directory / "environment"
    venv.create(environment, symlinks=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        environment / "bin" / "python",
    ]
    _check([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel])
    # The .pth files of a directory that is named in one are not read, such as that of the checkout.
    (packages,) = environment.glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(environment, sdist, wheel)


def _check(argv: list[object]) -> None:
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=REPOSITORY.parent,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=BUILD_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
