# SPDX-License-Identifier: GPL-2.0-only
"""What a machine lacks, and the set-up that provides it: nothing is installed in these tests."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from testbed.guest import image, qemu
from testbed.host import debian, process
from testbed.host.errors import HostError
from testbed.setup import bootstrap, doctor
from testbed.setup.doctor import INSTALLERS, PROGRAMS, Need

# --- the doctor -----------------------------------------------------------------------------------


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any program; the directory that it would look for them in."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    monkeypatch.setenv("PATH", str(bin_))
    monkeypatch.setattr(image, "BUSYBOX", ())
    return bin_


def test_on_a_bare_machine_every_program_is_missed(no_programs: Path, tmp_path: Path) -> None:
    missing = {need.name: need.problem for need in doctor.examine(tmp_path / "cache") if need.problem}
    for program in PROGRAMS:
        assert missing[program] == "not found"
    assert missing["busybox, static"] == "no statically linked busybox is installed"
    assert missing["static C library"] == missing["libelf headers"] == "cannot be checked without gcc"


def test_a_compiler_that_cannot_be_started_is_no_traceback(no_programs: Path, tmp_path: Path) -> None:
    (no_programs / "gcc").symlink_to(shutil.which("true", path="/bin:/usr/bin") or "/bin/true")
    missing = {need.name: need.problem for need in doctor.examine(tmp_path) if need.problem}
    # Everything is looked at without setpriv, too, and that is missed.
    assert missing["setpriv"] == "not found"
    assert not {"gcc", "static C library"} & missing.keys()


@pytest.mark.parametrize(
    ("distribution", "command"),
    [
        (
            "debian",
            "apt-get install -y --no-install-recommends bc binutils bison busybox-static ccache flex gcc git "
            "libc6-dev libelf-dev make perl qemu-system-x86 tar util-linux xz-utils",
        ),
        (
            "fedora",
            "dnf install -y bc binutils bison busybox ccache elfutils-libelf-devel flex gcc git glibc-static "
            "make perl qemu-system-x86-core tar util-linux xz",
        ),
        (
            "arch",
            "pacman -S --needed --noconfirm bc binutils bison busybox ccache flex gcc git glibc libelf make "
            "perl qemu-system-x86 tar util-linux xz",
        ),
    ],
)
def test_one_command_installs_all_that_a_bare_machine_lacks(
    no_programs: Path, tmp_path: Path, distribution: str, command: str
) -> None:
    # What else this machine may lack is not the matter here.
    needs = [n for n in doctor.examine(tmp_path) if not n.name.startswith(("kernel source", "Python"))]
    assert process.pasteable(doctor.install_command(needs, distribution)) == command


@pytest.mark.parametrize("distribution", INSTALLERS)
def test_without_a_package_that_helps_there_is_no_command(distribution: str) -> None:
    needs = [Need("room", "none", {}), Need("make", None, {distribution: "make"})]
    assert doctor.install_command(needs, distribution) == []


def test_a_package_of_one_distribution_is_not_asked_of_another() -> None:
    need = Need("source", "not there", {"debian": "linux-source-6.1"})
    assert doctor.install_command([need], "debian")[-1] == "linux-source-6.1"
    assert doctor.install_command([need], "fedora") == doctor.install_command([need], "arch") == []


@pytest.mark.parametrize(
    ("release", "family"),
    [
        ({"ID": "debian", "VERSION_CODENAME": "bookworm"}, "debian"),
        ({"ID": "ubuntu", "ID_LIKE": "debian"}, "debian"),
        ({"ID": "ubuntu"}, "debian"),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "debian"),
        ({"ID": "fedora"}, "fedora"),
        ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, "fedora"),
        ({"ID": "rhel"}, "fedora"),
        ({"ID": "arch"}, "arch"),
        ({"ID": "manjaro", "ID_LIKE": "arch"}, "arch"),
        ({"ID": "archlinux"}, "arch"),
        ({"ID": "nixos"}, None),
        # What the library gives where the file does not say.
        ({"ID": "linux"}, None),
    ],
)
def test_the_family_of_a_distribution(
    monkeypatch: pytest.MonkeyPatch, release: dict[str, str], family: str | None
) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)
    assert doctor.family() == family


@pytest.mark.parametrize("missing", ["the file", "the function"])
def test_a_machine_that_does_not_say_what_it_is(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def absent() -> dict[str, str]:
        raise FileNotFoundError("/etc/os-release")

    if missing == "the file":
        monkeypatch.setattr(platform, "freedesktop_os_release", absent)
    else:
        monkeypatch.delattr(platform, "freedesktop_os_release")
    assert doctor.family() is None


@pytest.mark.parametrize(("mirror", "problem"), [(None, True), ("http://mirror/debian", False)])
def test_the_kernel_source_may_come_from_a_mirror(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mirror: str | None, problem: bool
) -> None:
    monkeypatch.setattr(debian, "mirror", lambda: mirror)
    monkeypatch.setattr(doctor, "SOURCES", tmp_path)
    (need,) = [n for n in doctor.examine(tmp_path) if n.name.startswith("kernel source")]
    assert (bool(need.problem), need.optional) == (problem, True)
    assert "tarball" in need.remedy


def needs_by_name(cache: Path) -> dict[str, Need]:
    return {need.name: need for need in doctor.examine(cache)}


def test_an_old_python_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert needs_by_name(tmp_path)["Python 3.11 or newer"].problem is None
    monkeypatch.setattr(doctor, "OLDEST_PYTHON", (99, 1))
    need = needs_by_name(tmp_path)["Python 99.1 or newer"]
    assert need.problem == f"this is {sys.version.split()[0]}" and "PYTHON=" in need.remedy


def test_a_full_disk_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = tmp_path / "not" / "yet"
    monkeypatch.setattr(doctor, "DISK_BYTES", 1 << 60)
    need = needs_by_name(cache)[f"room in {cache}"]
    assert need.problem and need.problem.endswith(f" MiB free, {1 << 40} needed")
    assert "XDG_CACHE_HOME" in need.remedy
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert needs_by_name(tmp_path)[f"room in {tmp_path}"].problem == f"{tmp_path} is not writable"


@pytest.mark.parametrize(
    ("meminfo", "problem"),
    [
        ("MemTotal: 8000000 kB\nMemAvailable: 4000000 kB", None),
        ("MemTotal: 8000000 kB\nMemAvailable: 1048575 kB", "1023 MiB available, 1024 needed"),
        ("", "/proc/meminfo does not tell"),
    ],
)
def test_little_memory_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, meminfo: str, problem: str | None
) -> None:
    monkeypatch.setattr(doctor, "_lines", lambda _path: meminfo.splitlines())
    assert needs_by_name(tmp_path)["memory for a guest"].problem == problem


@pytest.mark.parametrize(
    ("there", "opens", "words"),
    [
        (False, False, "there is no /dev/kvm: guests are emulated"),
        (True, False, "/dev/kvm may not be opened by this user: guests are emulated"),
        (True, True, "/dev/kvm opens; `accel: auto` boots a probe to see whether it works"),
    ],
)
def test_what_is_said_of_kvm(monkeypatch: pytest.MonkeyPatch, there: bool, opens: bool, words: str) -> None:
    monkeypatch.setattr(Path, "exists", lambda _path: there)
    monkeypatch.setattr(os, "access", lambda *_: opens)
    assert doctor.kvm() == words


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("QEMU emulator version 10.0.7", "QEMU 10.0 runs deterministic guests"),
        (
            "QEMU emulator version 7.2.22",
            "QEMU 7.2 is none for deterministic guests: a private 10.0 is fetched when first needed",
        ),
        (None, "there is no QEMU: deterministic guests run on a private one, fetched when first needed"),
    ],
)
def test_what_is_said_of_qemu(monkeypatch: pytest.MonkeyPatch, version: str | None, words: str) -> None:
    def system() -> qemu.Qemu:
        if version is None:
            raise HostError("not found")
        return qemu.Qemu("qemu", version)

    monkeypatch.setattr(qemu, "system", system)
    assert doctor.emulator() == words


def test_a_library_is_looked_for_by_compiling() -> None:
    assert doctor._compiles("int main(void) { return 0; }") is None
    assert doctor._compiles("#include <no-such-header.h>") == "a program that needs it does not compile"
    assert doctor._compiles("int main(void) { return 0; }", "-lnosuchlibrary")


def test_a_python_module_is_looked_for() -> None:
    assert doctor._importable("json") is None
    assert doctor._importable("nosuchmodule") == "module nosuchmodule is missing"


# --- set-up: system packages -----------------------------------------------------------------------

GCC = Need("gcc", "not found", {"debian": "gcc", "fedora": "gcc", "arch": "gcc"})
XZ = Need("xz", "not found", {"debian": "xz-utils", "fedora": "xz", "arch": "xz"})
ROOM = Need("room", "1 MiB free", {}, "make room")

APT = ["apt-get", "install", "-y", "--no-install-recommends"]
ENV = ["env", "DEBIAN_FRONTEND=noninteractive"]


class Machine:
    """A machine that notes what is run on it. `needs`: what the doctor finds, time after time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[list[str]] = []
        self.needs: list[list[Need]] = [[]]
        self.failing: list[str] = []
        self._monkeypatch = monkeypatch
        self.is_root, self.has_sudo = True, False
        self.family: str | None = "debian"

    def set_up(self, *arguments: str) -> int:
        found = iter(self.needs)
        patch = self._monkeypatch.setattr
        patch(doctor, "examine", lambda _cache: next(found))
        patch(doctor, "family", lambda: self.family)
        patch(os, "geteuid", lambda: 0 if self.is_root else 1000)
        patch(shutil, "which", lambda name: "/bin/sudo" if self.has_sudo and name == "sudo" else None)
        patch(process, "run", self._run)
        return bootstrap.main(arguments)

    def _run(
        self,
        argv: Sequence[object],
        *,
        timeout: float,
        check: bool = True,
        error: type[HostError] = HostError,
    ) -> subprocess.CompletedProcess[bytes]:
        words = [str(word) for word in argv]
        self.ran.append(words)
        failed = any(word in words for word in self.failing)
        if failed and check:
            raise error(f"`{process.pasteable(words)}` failed with exit status 1", "it said so")
        if words[1:3] == ["-m", "venv"]:
            make_venv(Path(words[3]))
        return subprocess.CompletedProcess(words, int(failed), b"", b"")


def make_venv(venv: Path) -> None:
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    version = ".".join(map(str, sys.version_info[:3]))
    (venv / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {version}\n")


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkout that set-up works in."""
    for name in ("requirements.txt", "requirements-dev.txt", "pyproject.toml"):
        (tmp_path / name).write_text(f"{name}, first version\n")
    monkeypatch.setattr(bootstrap, "REPOSITORY", tmp_path)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    return tmp_path


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, checkout: Path) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def ready(machine: Machine, checkout: Path) -> Machine:
    """A machine on which set-up was done before."""
    assert machine.set_up() == 0
    machine.ran.clear()
    return machine


@pytest.mark.parametrize(
    ("family", "line"),
    [
        ("debian", "sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends gcc xz-utils'"),
        ("fedora", "sudo dnf install -y gcc xz"),
        ("arch", "sudo pacman -S --needed --noconfirm gcc xz"),
    ],
)
@pytest.mark.parametrize("sudo", [False, True], ids=["no sudo", "sudo with password"])
def test_who_may_not_install_gets_the_line_to_run(
    machine: Machine, capsys: pytest.CaptureFixture[str], family: str, line: str, sudo: bool
) -> None:
    machine.is_root, machine.has_sudo, machine.family = False, sudo, family
    machine.failing = ["sudo"]
    machine.needs = [[GCC, XZ]]
    assert machine.set_up() == 3
    assert capsys.readouterr() == (
        "",
        "set-up: missing: gcc (not found), xz (not found)\n"
        "set-up: system packages are missing and only root may install them; run:\n"
        f"  {line}\n",
    )
    assert machine.ran == ([["sudo", "-n", "true"]] if sudo else [])


@pytest.mark.parametrize(
    ("root", "prefix"), [(True, []), (False, ["sudo", "-n"])], ids=["root", "sudo without password"]
)
def test_who_may_install_does(ready: Machine, root: bool, prefix: list[str]) -> None:
    ready.is_root, ready.has_sudo = root, True
    ready.needs = [[GCC, XZ], []]
    assert ready.set_up() == 0
    assert [words for words in ready.ran if words != ["sudo", "-n", "true"]] == [
        [*prefix, *ENV, "apt-get", "update", "-qq"],
        [*prefix, *ENV, *APT, "gcc", "xz-utils", "-o", "DPkg::Lock::Timeout=600"],
    ]


def test_only_debian_needs_its_lists_brought_up_to_date(ready: Machine) -> None:
    ready.family, ready.needs = "fedora", [[GCC], []]
    assert ready.set_up() == 0
    assert ready.ran == [[*ENV, "dnf", "install", "-y", "gcc"]]


def test_what_no_package_provides_is_told_with_its_remedy(
    ready: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    ready.needs = [[GCC, ROOM], [ROOM]]
    assert ready.set_up() == 3
    assert capsys.readouterr().err.endswith(
        "set-up: this machine lacks what cannot be installed:\n  room: 1 MiB free; make room\n"
    )


def test_on_an_unknown_distribution_nothing_is_installed(
    ready: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    ready.family, ready.needs = None, [[GCC, ROOM], [GCC, ROOM]]
    assert ready.set_up() == 3
    assert ready.ran == []
    assert "  gcc: not found\n  room: 1 MiB free; make room\n" in capsys.readouterr().err


def test_an_installer_that_fails_is_shown(ready: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    ready.needs, ready.failing = [[GCC]], ["update"]
    assert ready.set_up() == 3
    assert capsys.readouterr().err.endswith(
        "set-up: `env DEBIAN_FRONTEND=noninteractive apt-get update -qq` failed with exit status 1\n"
        "  it said so\n"
    )


LITTLE = Need("memory", "1 MiB available", {}, "end other programs", optional=True)


def test_what_may_do_all_the_same_stops_nothing(ready: Machine) -> None:
    ready.needs = [[LITTLE]]
    assert ready.set_up() == 0 and ready.ran == []


def test_an_interrupt_is_no_traceback(
    ready: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bootstrap, "_system_packages", interrupted)
    assert ready.set_up() == 130
    assert capsys.readouterr().err.endswith("set-up: stopped\n")


# --- set-up: Python packages -----------------------------------------------------------------------

VENV = [sys.executable, "-m", "venv"]


def installs(checkout: Path, lock: str) -> list[list[str]]:
    pip = [
        str(checkout / ".venv/bin/python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
    ]
    return [
        [*pip, "--require-hashes", "-r", str(checkout / lock)],
        [*pip, "--no-deps", "--no-build-isolation", "--editable", str(checkout)],
    ]


def test_a_fresh_checkout_gets_an_environment(machine: Machine, checkout: Path) -> None:
    assert machine.set_up() == 0
    assert machine.ran == [[*VENV, str(checkout / ".venv")], *installs(checkout, "requirements.txt")]


def test_the_second_time_there_is_nothing_to_do(ready: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert ready.set_up() == 0
    assert ready.ran == [] and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml"])
def test_what_was_changed_is_installed_into_the_same_environment(
    ready: Machine, checkout: Path, name: str
) -> None:
    (checkout / name).write_text("second version\n")
    assert ready.set_up() == 0
    assert ready.ran == installs(checkout, "requirements.txt")
    ready.ran.clear()
    assert ready.set_up() == 0 and ready.ran == []


def test_the_development_packages_serve_both_purposes(ready: Machine, checkout: Path) -> None:
    assert ready.set_up("--dev") == 0
    assert ready.ran == installs(checkout, "requirements-dev.txt")
    ready.ran.clear()
    assert ready.set_up() == 0 == ready.set_up("--dev") and ready.ran == []


def test_development_packages_of_another_day_do_not(ready: Machine, checkout: Path) -> None:
    ready.set_up("--dev")
    ready.ran.clear()
    (checkout / "requirements-dev.txt").write_text("second version\n")
    assert ready.set_up() == 0
    assert ready.ran == installs(checkout, "requirements.txt")


def broken_link(venv: Path) -> None:
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to("/usr/bin/python3.1")


def of_an_older_python(venv: Path) -> None:
    config = venv / "pyvenv.cfg"
    config.write_text(config.read_text().replace("version = 3.", "version = 2."))


def of_nothing_known(venv: Path) -> None:
    (venv / "pyvenv.cfg").unlink()


@pytest.mark.parametrize("spoil", [broken_link, of_an_older_python, of_nothing_known])
def test_an_environment_of_another_python_is_made_anew(
    ready: Machine, checkout: Path, spoil: Callable[[Path], None]
) -> None:
    venv = checkout / ".venv"
    (venv / "left-over").touch()
    spoil(venv)
    assert ready.set_up() == 0
    assert ready.ran == [[*VENV, str(venv)], *installs(checkout, "requirements.txt")]
    assert not (venv / "left-over").exists()


@pytest.mark.parametrize("step", ["--require-hashes", "--editable"])
def test_what_failed_half_way_is_tried_again(ready: Machine, checkout: Path, step: str) -> None:
    (checkout / "requirements.txt").write_text("second version\n")
    ready.failing = [step]
    assert ready.set_up() == 3
    ready.ran.clear()
    ready.failing = []
    assert ready.set_up() == 0
    assert ready.ran == installs(checkout, "requirements.txt")
