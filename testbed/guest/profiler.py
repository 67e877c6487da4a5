# SPDX-License-Identifier: GPL-2.0-only
"""What a deterministic guest executes, counted from outside. The other half is a QEMU plugin, profiler.c.

with Profiler(path, target, stacks=True) as profiler:
    ...  # a guest with profiler.plugin beside the rendezvous
    text = profiler.counted()
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from testbed.guest.shape import Plugin
from testbed.host.errors import GuestLost, SpecError

SOURCE = Path(__file__).with_suffix(".c")
# The program in whose functions the measured window begins and ends; see images/src/.
WATCHER = "observe"
_CODE_BYTES = 16
# struct told of profiler.c, up to the numbers.
_TOLD = struct.Struct(f"<6Q{_CODE_BYTES}s{_CODE_BYTES}s2Q")
_ENTRY = struct.Struct("<3Q")


@dataclass(frozen=True)
class Program:
    """The functions of a program that is always at the same place: address -> name; and its code."""

    functions: dict[int, str]
    text_start: int
    text: bytes

    def place(self, name: str) -> tuple[int, bytes]:
        """The address of a function, and its first bytes. Raises SpecError when there is none."""
        start = next((start for start, known in self.functions.items() if known == name), None)
        if start is None:
            raise SpecError(f"{WATCHER} has no function {name}(): its compiler has left nothing of it")
        offset = start - self.text_start
        return start, self.text[offset : offset + _CODE_BYTES]


def program(binary: bytes) -> Program | None:
    """The functions of a program; None if it has no symbols, or nobody knows where it will be."""
    with contextlib.suppress(ELFError):
        elf = ELFFile(io.BytesIO(binary))
        table, text = elf.get_section_by_name(".symtab"), elf.get_section_by_name(".text")
        is_fixed = elf.header.e_type == "ET_EXEC"
        if is_fixed and isinstance(table, SymbolTableSection) and text is not None:
            found = (
                (int(symbol.entry.st_value), str(symbol.name))
                for symbol in table.iter_symbols()
                if symbol.entry.st_info.type == "STT_FUNC" and symbol.entry.st_value
            )
            return Program(dict(sorted(found)), int(text.header.sh_addr), bytes(text.data()))
    return None


@dataclass(frozen=True)
class Target:
    """What has to be known of a guest.

    `functions` are the addresses where the kernel's begin, ascending, and the end of the last; `entries` are
    start, size and kind, as in profiler.c; `pid` and `comm` are offsets in struct task_struct.
    """

    functions: Sequence[int]
    entries: Sequence[tuple[int, int, int]]
    switch_to: int
    pid: int
    comm: int
    watcher: Program

    def told(self, stacks: bool) -> bytes:
        """It as the plugin reads it."""
        (sample, sample_code), (snapshot, snapshot_code) = map(self.watcher.place, ("sample", "snapshot"))
        head = (stacks, self.pid, self.comm, self.switch_to, sample, snapshot, sample_code, snapshot_code)
        return b"".join(
            [
                _TOLD.pack(*head, len(self.functions), len(self.entries)),
                struct.pack(f"<{len(self.functions)}Q", *self.functions),
                *(_ENTRY.pack(*entry) for entry in self.entries),
            ]
        )


class Profiler:
    """Files in memory, of which the plugin reads one and writes the other."""

    def __init__(self, path: Path, target: Target, *, stacks: bool) -> None:
        self._path, self._target, self._stacks = path, target, stacks

    def __enter__(self) -> Profiler:
        with contextlib.ExitStack() as stack:
            told, self._counted = (os.memfd_create(f"profile-{name}") for name in ("told", "counted"))
            for fd in (told, self._counted):
                stack.callback(os.close, fd)
            with open(told, "wb", closefd=False) as file:
                file.write(self._target.told(self._stacks))
            self.plugin = Plugin(self._path, {"in": told, "out": self._counted})
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def counted(self) -> str:
        """What was counted, as lines. Raises GuestLost when the measured window never came to its end."""
        with open(self._counted, "rb", closefd=False) as file:
            file.seek(0)
            text = file.read().decode(errors="replace")
        if not text:
            raise GuestLost("the guest did not come to the end of what was to be profiled")
        return text
