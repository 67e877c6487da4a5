# SPDX-License-Identifier: GPL-2.0-only
"""What is in an initramfs, and what comes along for a program of the user's."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from testbed.guest import image
from testbed.host.errors import SpecError


def listed(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content of every entry of a newc archive, in order."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        at = (at + 110 + length + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[at : at + size])
        at = (at + size + 3) // 4 * 4


def compiled(directory: Path, source: str, *options: str, name: str = "prog") -> Path:
    made = directory / name
    words = ["gcc", "-x", "c", "-", "-x", "none", *options, "-o", str(made)]
    subprocess.run(words, input=source.encode(), check=True, timeout=60)
    return made


def script(directory: Path, text: str, mode: int = 0o755, name: str = "script") -> Path:
    made = directory / name
    made.write_text(text)
    made.chmod(mode)
    return made


# --- the archive -----------------------------------------------------------------------------------


def test_directories_come_before_what_is_in_them() -> None:
    entries = listed(image.archive({"opt/a/b/c": (0o644, b"x"), "init": (0o755, b"y")}, {"sh": "busybox"}))
    names = list(entries)
    assert names == sorted(names)
    for directory in ("bin", "dev", "mnt", "opt", "opt/a", "opt/a/b", "proc", "run", "sys"):
        assert entries[directory] == (0o040755, b"")
    assert entries["opt/a/b/c"] == (0o100644, b"x")
    assert entries["init"] == (0o100755, b"y")
    assert entries["bin/sh"] == (0o120777, b"busybox")
    assert entries["dev/console"][0] == 0o020600


def test_a_file_goes_before_an_applet_of_the_same_name() -> None:
    entries = listed(image.archive({"bin/dd": (0o755, b"mine")}, {"dd": "busybox", "cp": "busybox"}))
    assert entries["bin/dd"] == (0o100755, b"mine")
    assert entries["bin/cp"] == (0o120777, b"busybox")


def test_files_are_in_the_image_and_the_same_bytes_make_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One workload is enough here.
    (tmp_path / "images" / "src").mkdir(parents=True)
    shutil.copy(image.IMAGES / "init", tmp_path / "images")
    shutil.copy(image.IMAGES / "src" / "tell.c", tmp_path / "images" / "src")
    shutil.copytree(image.IMAGES / "lib", tmp_path / "images" / "lib")
    monkeypatch.setattr(image, "IMAGES", tmp_path / "images")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = [script(tmp_path / place, "data", 0o600, "data") for place in "ab"]
    first = image.build(
        tmp_path / "1", files={"opt/data": plain[0], "bin/run": script(tmp_path, "#!/bin/sh\n")}
    )
    entries = listed(first.path.read_bytes())
    assert entries["opt/data"] == (0o100644, b"data")
    assert entries["bin/run"] == (0o100755, b"#!/bin/sh\n")
    # Of other files with the same content, elsewhere, with another umask.
    plain[1].chmod(0o664)
    again = image.build(tmp_path / "2", files={"bin/run": tmp_path / "script", "opt/data": plain[1]})
    assert again.path.read_bytes() == first.path.read_bytes()
    # And what is changed is never taken from the cache.
    plain[1].chmod(0o755)
    other = image.build(tmp_path / "2", files={"bin/run": tmp_path / "script", "opt/data": plain[1]})
    assert listed(other.path.read_bytes())["opt/data"] == (0o100755, b"data")


# --- what comes along ------------------------------------------------------------------------------


def test_what_the_guest_has_anyway_needs_nothing() -> None:
    assert image.gather("dd", []) == {}
    assert image.gather("/bin/sh", []) == {}
    assert image.gather("mmap_test", []) == {}


def test_a_file_is_where_it_was_asked_for(tmp_path: Path) -> None:
    data, run = script(tmp_path, "data", 0o644, "data"), script(tmp_path, "#!/bin/sh\n")
    assert image.gather("script", [str(run), f"{data}:/opt/x/y"]) == {"bin/script": run, "opt/x/y": data}
    assert image.gather("/opt/run", [f"{run}:/opt/run"]) == {"opt/run": run}


def test_a_program_of_this_machine_comes_with_its_libraries() -> None:
    found = image.gather("objdump", [])
    assert found["bin/objdump"] == Path(shutil.which("objdump") or "")
    libraries = {name for name in found if ".so" in name}
    assert {"lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/libc.so.6"} <= libraries
    assert any("libbfd" in name for name in libraries)
    absolute = image.gather("/usr/bin/objdump", [])
    assert absolute["usr/bin/objdump"] == Path("/usr/bin/objdump")


def test_a_static_program_comes_alone(tmp_path: Path) -> None:
    program = compiled(tmp_path, "int main(void) { return 0; }", "-static")
    assert image.gather("prog", [str(program)]) == {"bin/prog": program}


def test_a_library_that_only_the_environment_leads_to_is_where_the_guest_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = compiled(tmp_path, "int f(void) { return 0; }", "-shared", "-fPIC", name="libmine.so")
    source = "int f(void); int main(void) { return f(); }"
    program = compiled(tmp_path, source, f"-L{tmp_path}", "-lmine")
    with pytest.raises(
        SpecError, match=r"(?s)workload\.command: .*prog needs libmine\.so.*PATH:/lib/libmine\.so"
    ):
        image.gather("prog", [str(program)])
    # As the message says.
    given = image.gather("prog", [str(program), f"{mine}:/lib/libmine.so"])
    assert given["lib/libmine.so"] == mine
    assert "lib/x86_64-linux-gnu/libc.so.6" in given
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert image.gather("prog", [str(program)])["lib/libmine.so"] == mine


def test_libraries_of_a_library_come_too(tmp_path: Path) -> None:
    source = "int puts(const char *); int f(void) { return puts(__FILE__); }"
    mine = compiled(tmp_path, source, "-shared", "-fPIC", name="libmine.so")
    assert "lib/x86_64-linux-gnu/libc.so.6" in image.gather("true", [f"{mine}:/lib/libmine.so"])


@pytest.mark.parametrize(
    ("program", "files", "message"),
    [
        (
            "no-such-program",
            [],
            r"workload\.command: there is no program `no-such-program`\n.*`files: \[PATH\]`",
        ),
        ("./script", ["{here}/script"], r"workload\.command: there is no program `\./script`"),
        ("true", ["{here}/nothing"], r"workload\.files: .*/nothing is not a file"),
        ("true", ["{here}"], r"workload\.files: .* is not a file that can be read\n.*directory"),
        ("true", ["{here}/script:/proc/x"], r"workload\.files: .* cannot be at /proc/x .*\n.*/data"),
        ("true", ["{here}/script:/mnt/x"], r"cannot be at /mnt/x"),
        ("true", ["{here}/script:/opt/../etc/x"], r"cannot be at /opt/\.\./etc/x"),
        ("true", ["{here}/script:/bin/observe"], r"workload\.files: /bin/observe is the guest's own"),
        ("true", ["{here}/script:/init"], r"workload\.files: /init is the guest's own"),
        ("plain", ["{here}/plain"], r"workload\.command: .*/plain is not executable\n.*chmod"),
        ("python", ["{here}/python"], r"python is a script for /usr/bin/python3, which the guest has not\n"),
    ],
)
def test_what_cannot_be_is_said_with_its_remedy(
    tmp_path: Path, program: str, files: Sequence[str], message: str
) -> None:
    script(tmp_path, "#!/bin/sh\n")
    script(tmp_path, "#!/bin/sh\n", 0o644, "plain")
    script(tmp_path, "#!/usr/bin/python3 -u\n", name="python")
    with pytest.raises(SpecError) as raised:
        image.gather(program, [text.format(here=tmp_path) for text in files])
    assert re.search(message, str(raised.value)), raised.value
