# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel's own map says of its functions, and where its code is entered from outside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.host.errors import SpecError

_LINE = re.compile(r"^([0-9a-f]{16}) (\S) (\S+)$", re.MULTILINE)
# Exceptions for which the CPU leaves an error code on the stack (Intel's manual, volume 3, 6.13).
_WITH_CODE = {
    *("alignment_check", "control_protection", "double_fault", "general_protection", "invalid_tss"),
    *("page_fault", "segment_not_present", "stack_segment"),
}
# Rows of equal pieces of code, one for each vector.
_STUBS = ("irq_entries_start", "spurious_entries_start")
SYSTEM_CALL, INTERRUPT, FAULT, FAULT_WITH_CODE = range(4)


@dataclass(frozen=True)
class Entry:
    """Code of so many bytes at any of which an interrupt, a fault or a system call may begin."""

    start: int
    size: int
    kind: int


@dataclass(frozen=True)
class Symbols:
    """The functions of a kernel: where each starts, ascending, and its name; `end` is behind them."""

    starts: Sequence[int]
    names: Sequence[str]
    end: int
    entries: Sequence[Entry]

    def address(self, name: str) -> int:
        """Where a function starts. Raises SpecError when there is none of that name."""
        if name not in self.names:
            raise SpecError(f"the kernel has no function {name}()")
        return self.starts[self.names.index(name)]


def symbols(vmlinux: Path) -> Symbols:
    """The symbols of a kernel, from the System.map beside it. Raises SpecError when that cannot be read."""
    path = vmlinux.with_name(vmlinux.name.replace("vmlinux", "System.map"))
    try:
        text = path.read_text()
    except (OSError, ValueError) as unreadable:
        raise SpecError(f"{path}: the map of a kernel's functions is not there: {unreadable}") from unreadable
    found = [(int(address, 16), kind, name) for address, kind, name in _LINE.findall(text)]
    end = next((address for address, _, name in found if name == "_etext"), 0)
    functions: dict[int, str] = {}
    for address, kind, name in found:
        # Of several names the plainest.
        if kind in "tTwW" and (address not in functions or _rank(name) < _rank(functions[address])):
            functions[address] = name
    starts = sorted(address for address in functions if address >> 63 and address < end)
    if not starts:
        raise SpecError(f"{path}: not the map of a kernel's functions")
    return Symbols(starts, [functions[start] for start in starts], end, _entries(found))


def _rank(name: str) -> tuple[bool, int, str]:
    return (name.startswith("_"), len(name), name)


def _entries(found: Sequence[tuple[int, str, str]]) -> list[Entry]:
    addresses = sorted({address for address, _, _ in found})
    entries = []
    for address, _, name in found:
        if name == "entry_SYSCALL_64":
            entries.append(Entry(address, 1, SYSTEM_CALL))
        elif name in _STUBS:
            following = next((other for other in addresses if other > address), address + 1)
            entries.append(Entry(address, following - address, INTERRUPT))
        elif name.startswith("asm_sysvec_"):
            entries.append(Entry(address, 1, INTERRUPT))
        elif name.startswith("asm_exc_"):
            code = name.removeprefix("asm_exc_") in _WITH_CODE
            entries.append(Entry(address, 1, FAULT_WITH_CODE if code else FAULT))
    return entries
