# SPDX-License-Identifier: GPL-2.0-only
"""Set-up, from a machine with git, Python and make to one that runs testbed. Standard library only.

    python3 -m testbed.setup.bootstrap [--dev]

Installs missing system packages (as root or with passwordless sudo; else prints the line to run and
ends with status 3) and makes .venv with the pinned packages of requirements.txt. Quick when there is
nothing to do. Never asks anything.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from testbed.host import process
from testbed.host.errors import HostError, Interrupted, TestbedError
from testbed.host.paths import REPOSITORY, cache_directory
from testbed.setup import doctor
from testbed.setup.doctor import Need

INSTALL_SECONDS = 1800.0
VENV = REPOSITORY / ".venv"


def main(arguments: Sequence[str]) -> int:
    """Bring the machine up to what is needed; return the exit status."""
    lock = "requirements-dev.txt" if "--dev" in arguments else "requirements.txt"
    try:
        with process.unguarded():
            _system_packages()
            _virtual_environment(REPOSITORY / lock)
    except TestbedError as failed:
        print(f"set-up: {failed}", file=sys.stderr)
        return failed.exit_status
    except KeyboardInterrupt:
        _say("stopped")
        return Interrupted.exit_status
    return 0


def _system_packages() -> None:
    needs = _missing()
    if not needs:
        return
    _say("missing: " + ", ".join(f"{need.name} ({need.problem})" for need in needs))
    distribution = doctor.family()
    command = doctor.install_command(needs, distribution) if distribution else []
    if distribution and command:
        _install(command, distribution)
        needs = _missing()
    if needs:
        lines = ["; ".join(filter(None, [f"{need.name}: {need.problem}", need.remedy])) for need in needs]
        raise HostError("this machine lacks what cannot be installed:\n  " + "\n  ".join(lines))


def _missing() -> list[Need]:
    return [need for need in doctor.examine(cache_directory()) if need.problem and not need.optional]


def _install(command: list[str], distribution: str) -> None:
    prefix = _become_root()
    if prefix is None:
        raise HostError("system packages are missing and only root may install them; run:", _sudo(command))
    prefix += ["env", "DEBIAN_FRONTEND=noninteractive"]
    if distribution == "debian":
        # On a fresh machine the lists of packages are empty or old.
        process.run([*prefix, "apt-get", "update", "-qq"], timeout=INSTALL_SECONDS, error=HostError)
    _say("installing: " + process.pasteable(command))
    # A fresh machine may still be upgrading itself: wait for it.
    patience = ["-o", "DPkg::Lock::Timeout=600"] if distribution == "debian" else []
    process.run([*prefix, *command, *patience], timeout=INSTALL_SECONDS, error=HostError)


def _become_root() -> list[str] | None:
    """What to put in front of a command to run it as root; None when that would need a password."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") and process.run(["sudo", "-n", "true"], timeout=20, check=False).returncode == 0:
        return ["sudo", "-n"]
    return None


def _sudo(command: list[str]) -> str:
    line = process.pasteable(command)
    return f"sudo sh -c 'apt-get update && {line}'" if command[0] == "apt-get" else f"sudo {line}"


def _virtual_environment(lock: Path) -> None:
    """Make .venv hold what the lock says, unless it does already.

    An environment with the development packages serves both purposes.
    """
    wanted = {name: _stamp(REPOSITORY / name) for name in ("requirements.txt", "requirements-dev.txt")}
    python = VENV / "bin" / "python"
    stamp = VENV / "stamp"
    ours = python.exists() and _version_line() in _lines(VENV / "pyvenv.cfg")
    have = "".join(_lines(stamp)) if ours else ""
    if have in (wanted[lock.name], wanted["requirements-dev.txt"]):
        return
    _say(f"installing the Python packages of {lock.name} into .venv")
    # Without a stamp somebody stopped us, perhaps before there was pip in it.
    if not have:
        shutil.rmtree(VENV, ignore_errors=True)
        process.run([sys.executable, "-m", "venv", VENV], timeout=INSTALL_SECONDS, error=HostError)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    process.run([*pip, "--require-hashes", "-r", str(lock)], timeout=INSTALL_SECONDS, error=HostError)
    # The package itself, as it is in this checkout; what it is built with is in the lock, too.
    process.run(
        [*pip, "--no-deps", "--no-build-isolation", "--editable", str(REPOSITORY)],
        timeout=INSTALL_SECONDS,
        error=HostError,
    )
    stamp.write_text(wanted[lock.name])


def _stamp(lock: Path) -> str:
    parts = [lock.read_bytes(), (REPOSITORY / "pyproject.toml").read_bytes(), sys.version.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _version_line() -> str:
    # After the system's Python was upgraded, an environment of the old one has no packages, not even pip.
    return "version = " + ".".join(map(str, sys.version_info[:3]))


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _say(text: str) -> None:
    print(f"set-up: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
