# SPDX-License-Identifier: GPL-2.0-only
"""What a QEMU that was taken over by its guest cannot do to this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.host import confine, process
from testbed.host.errors import HostError
from testbed.setup import doctor

# A program that tries to get out, and says what it could do.
ESCAPE = """
import os, socket, sys
place, outside, port = sys.argv[1:]
def tries(name, act):
    try:
        act()
    except OSError:
        return
    print(name)
tries("inside", lambda: open(f"{place}/new", "w").write("x"))
tries("null", lambda: open("/dev/null", "w").write("x"))
tries("read", lambda: open(f"{outside}/victim").read())
tries("write", lambda: open(f"{outside}/victim", "a"))
tries("truncate", lambda: os.truncate(f"{outside}/victim", 0))
tries("remove", lambda: os.remove(f"{outside}/victim"))
tries("make", lambda: open(f"{outside}/new", "w"))
tries("directory", lambda: os.mkdir(f"{outside}/directory"))
tries("link", lambda: os.symlink("victim", f"{outside}/link"))
tries("move", lambda: os.rename(f"{place}/new", f"{outside}/new"))
tries("connect", lambda: socket.create_connection(("127.0.0.1", int(port)), 5))
tries("listen beyond", lambda: socket.create_connection(socket.create_server(("", 0)).getsockname(), 5))
"""
ALLOWED = ["inside", "null", "read"]


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Where the program may write, and where not."""
    inside, outside = tmp_path / "in, side", tmp_path / "outside"
    for path in (inside, outside):
        path.mkdir()
        path.chmod(0o777)
    (outside / "victim").write_text("precious")
    (outside / "victim").chmod(0o666)
    return inside, outside


def test_this_machine_can_confine() -> None:
    """Else the tests below would show nothing."""
    words = [sys.executable, confine.__file__, "--layers"]
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout
    assert said.split()[:2] == ["network", "files"]


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("network files TCP", "QEMU is confined"),
        ("files TCP", "QEMU is confined"),
        ("network", "would get at files you can write to (no Landlock: Linux 5.13 has it)"),
        ("files", "would get at the network (no namespace is allowed)"),
        ("", "would get at files you can write to (no Landlock: Linux 5.13 has it) and the network"),
    ],
)
def test_the_doctor_says_what_is_lacking(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, layers: str, said: str
) -> None:
    program = tmp_path / "confine.py"
    program.write_text(f"print({layers!r})")
    monkeypatch.setattr(confine, "__file__", str(program))
    assert said in doctor.confinement()


def test_a_program_writes_where_it_may_and_reaches_nobody(places: tuple[Path, Path], port: int) -> None:
    inside, outside = places
    words = [sys.executable, "-c", ESCAPE, str(inside), str(outside), str(port)]
    child = process.spawn(words, writable=[inside])
    out, _ = child.communicate(timeout=20)
    assert out.decode().split("\n")[:-1] == ALLOWED
    assert (outside / "victim").read_text() == "precious"
    assert [path.name for path in outside.iterdir()] == ["victim"]


def test_so_does_one_of_a_user_without_rights(places: tuple[Path, Path], port: int, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("is what the test before does, unless we are root")
    inside, outside = places
    # Where another user can read it.
    program, python = tmp_path / "confine.py", "/usr/bin/python3"
    shutil.copy(confine.__file__, program)
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    words = [python, "-I", "-S", str(program), str(inside), "--", python, "-c", ESCAPE]
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *words]
    ran = subprocess.run(
        [*words, str(inside), str(outside), str(port)], capture_output=True, text=True, check=True, timeout=20
    )
    assert ran.stdout.split("\n")[:-1] == ALLOWED


def test_a_program_that_is_not_there_is_named_before() -> None:
    with pytest.raises(HostError, match="no-such-program: program not found"):
        process.spawn(["no-such-program"])
