# SPDX-License-Identifier: GPL-2.0-only
"""What is in an initramfs, and what comes along for a program of the user's."""

from __future__ import annotations

import os
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


def test_a_directory_comes_whole(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "deep" / "er").mkdir(parents=True)
    (data / "empty").mkdir()
    one, two = script(data, "1", 0o644, "one"), script(data / "deep" / "er", "2", 0o755, "two")
    (data / "link").symlink_to(one)
    (data / "elsewhere").symlink_to(data / "deep")
    whole = {"one": one, "deep/er/two": two, "empty": data / "empty", "link": data / "link"}
    whole["elsewhere/er/two"] = data / "elsewhere" / "er" / "two"
    assert image.gather("true", [str(data)]) == {f"data/{name}": path for name, path in whole.items()}
    assert image.gather("true", [f"{data}:/opt/x/"]) == {
        f"opt/x/{name}": path for name, path in whole.items()
    }
    # What is beneath a directory that others use, too.
    assert set(image.gather("true", [f"{data / 'deep'}:/lib"])) == {"lib/er/two"}
    entries = listed(image.archive({"data/one": (0o644, b"1")}, {}, ["data/empty"]))
    assert entries["data/empty"] == entries["data"] == (0o040755, b"")


def test_a_path_may_have_colons(tmp_path: Path) -> None:
    here = script(tmp_path, "x", 0o644, "a:b")
    written = str(here).replace(":", "\\:")
    assert image.gather("true", [written]) == {"bin/a:b": here}
    assert image.gather("true", [f"{written}:/data/x"]) == {"data/x": here}
    with pytest.raises(SpecError, match=r"/a is not a file or directory that can be read"):
        image.gather("true", [str(here)])


@pytest.mark.parametrize("line", ["#!/usr/bin/env -S python3 -u", "#!{python}"])
def test_python_comes_with_its_library(tmp_path: Path, line: str) -> None:
    # Not what stands for one of several.
    asked = subprocess.run(
        ["python3", "-ISc", "import sys; print(sys.executable)"], capture_output=True, text=True, check=True
    )
    python = asked.stdout.strip()
    mine = script(tmp_path, f"{line.format(python=python)}\nimport json, zlib; print(json.dumps(1))\n")
    found = image.gather("script", [str(mine)])
    names = set(found)
    interpreter = python.lstrip("/") if "{" in line else "bin/python3"
    assert found[interpreter] == Path(python)
    assert ("usr/bin/env" in names) == ("env" in line)
    place = next(
        name.removesuffix("/os.py") for name in names if re.fullmatch(r"lib\w*/python3\.\d+/os\.py", name)
    )
    assert {f"{place}/encodings/utf_8.py", f"{place}/json/decoder.py", f"{place}/json/__init__.py"} <= names
    assert any(name.startswith(f"{place}/lib-dynload/") for name in names)
    assert not any("__pycache__" in name or "/test/" in name or "-packages" in name for name in names)
    # It finds it all there, and nothing else of this machine.
    root = tmp_path / "root"
    for name, path in found.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / name)
    words = [str(root / interpreter), "-c", "import json, zlib, sys; print(json.__file__, sys.path)"]
    ran = subprocess.run(
        words,
        env={"LD_LIBRARY_PATH": str(root / "lib")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ran.stdout.startswith(f"{root}/{place}/json/__init__.py")


def test_an_interpreter_of_this_machine_comes_along(tmp_path: Path) -> None:
    found = image.gather("script", [str(script(tmp_path, "#!/bin/bash\n"))])
    assert found["bin/bash"] == Path("/bin/bash")
    assert "lib/x86_64-linux-gnu/libc.so.6" in found


def test_whoever_brings_a_library_may_have_its_interpreter(tmp_path: Path) -> None:
    (tmp_path / "perl").mkdir()
    script(tmp_path / "perl", "1;", 0o644, "strict.pm")
    assert "usr/share/perl/strict.pm" in image.gather("perl", [f"{tmp_path / 'perl'}:/usr/share/perl"])


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
        ("true", ["{here}/script:/proc/x"], r"workload\.files: .* cannot be at /proc/x .*\n.*/data"),
        ("true", ["{here}/script:/mnt/x"], r"cannot be at /mnt/x"),
        ("true", ["{here}/script:/opt/../etc/x"], r"cannot be at /opt/\.\./etc/x"),
        ("true", ["{here}/script:/bin/observe"], r"workload\.files: /bin/observe is the guest's own"),
        ("true", ["{here}/script:/init"], r"workload\.files: /init is the guest's own"),
        ("plain", ["{here}/plain"], r"workload\.command: .*/plain is not executable\n.*chmod"),
        # Neither lost nor turned into a file.
        ("true", ["{here}/script:/lib"], r"/lib is no name for a file .*\n.*script:/lib/script`"),
        ("true", ["{here}/script:/etc/"], r"/etc/ is no name for a file .*\n.*script:/etc/script`"),
        ("true", ["{here}/script:/"], r"/ is no name for a file .*\n.*script:/script`"),
        ("true", ["{here}/script:."], r"\. is no name for a file .*\n.*script:/script`"),
        ("true", ["{here}/script:"], r"nothing is no name for a file .*\n.*script:/script`"),
        ("true", ["{here}/script:/lib", "{here}/script:/etc/"], r"(?s): /lib is no .*: /etc/ is no "),
        ("true", ["{here}/script:/data", "{here}/script:/data/x"], r"/data cannot be a file, as /data/x is"),
        (
            "ls",
            ["{here}/script:/lib/x86_64-linux-gnu", "{here}/dynamic"],
            r"/lib/x86_64-linux-gnu cannot be a",
        ),
        ("true", ["{here}/script", "{here}/other/script"], r"/bin/script is brought twice: .*/other/script"),
        ("true", ["{here}/loop"], r"/loop/self is a link to a directory that it is in"),
        ("true", ["{here}/dangling"], r"/dangling/link is neither a file nor a directory"),
        ("true", ["/proc/self/mem"], r"workload\.files: /proc/self/mem is neither a file nor a directory"),
        ("true", ["/dev/zero"], r"workload\.files: /dev/zero is neither a file nor a directory"),
        ("true", ["{here}/pipe"], r"workload\.files: .*/pipe is neither a file nor a directory"),
        ("true", ["{here}/huge"], r"with .*/huge more than 1024 MiB or 100000 files would come along"),
        ("true", ["{here}/deep"], r"workload\.files: .* is more than 100 directories deep"),
        ("true", ["{here}/tree:/"], r"a file cannot be at /dev/x in the guest"),
        # Scripts.
        (
            "foreign",
            ["{here}/foreign"],
            r"foreign is a script for /opt/nowhere/sh, which the guest has not\n",
        ),
        ("env", ["{here}/env-foreign"], r"env-foreign is a script for nowhere-sh, which the guest has not\n"),
        ("empty", ["{here}/empty"], r"the first line of .*/empty names no interpreter\n.*#!/bin/sh"),
        ("blank", ["{here}/blank"], r"the first line of .*/blank names no interpreter\n"),
        ("crlf", ["{here}/crlf"], r"lines of .*/crlf end with CR LF; .* `/bin/sh\\r`\n.*sed -i 's/\\r\$//'"),
        ("perly", ["{here}/perly"], r"perl needs its library of modules, .*\n.*directories along"),
        ("perl", [], r"perl needs its library of modules, which does not come by itself\n"),
    ],
)
def test_what_cannot_be_is_said_with_its_remedy(
    tmp_path: Path, program: str, files: Sequence[str], message: str
) -> None:
    script(tmp_path, "#!/bin/sh\n")
    script(tmp_path, "#!/bin/sh\n", 0o644, "plain")
    script(tmp_path, "#!/opt/nowhere/sh -u\n", name="foreign")
    script(tmp_path, "#!/usr/bin/env -S FOO=1 nowhere-sh -u\n", name="env-foreign")
    script(tmp_path, "#!", name="empty")
    script(tmp_path, "#! \n", name="blank")
    script(tmp_path, "#!/bin/sh\r\necho\r\n", name="crlf")
    script(tmp_path, "#!/usr/bin/perl -w\n", name="perly")
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate((1 << 30) + 1)
    (tmp_path / "dynamic").symlink_to("/bin/ls")
    for directory in ("deep" + "/d" * 110, "other", "loop", "dangling", "tree/dev"):
        (tmp_path / directory).mkdir(parents=True)
    script(tmp_path / "other", "#!/bin/sh\n")
    (tmp_path / "loop" / "self").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling" / "link").symlink_to("nowhere")
    script(tmp_path / "tree" / "dev", "x", name="x")
    with pytest.raises(SpecError) as raised:
        image.gather(program, [text.format(here=tmp_path) for text in files])
    assert re.search(message, str(raised.value)), raised.value
