# SPDX-License-Identifier: GPL-2.0-only
"""As much of gdb as it takes to look at a trial: the other end of testbed/trials/debug.py."""

from __future__ import annotations

import re
import socket
from types import TracebackType

SECONDS = 600.0
# In the order of gdb's amd64.
RSI, RDI, RSP, RIP = 4, 5, 7, 16
_LONG = 8


def packed(content: str) -> bytes:
    """A packet of the remote protocol: content and checksum."""
    data = content.encode()
    return b"$%b#%02x" % (data, sum(data) % 256)


class Debugger:
    """A connection to a stub. `ask` returns "" once the stub has hung up."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("localhost", port), timeout=SECONDS)
        self._pending = b""

    def __enter__(self) -> Debugger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, content: str) -> str:
        """Send a packet; the content of the one that answers it."""
        self._socket.sendall(packed(content))
        while not (match := re.search(rb"\$([^#]*)#..", self._pending)):
            data = self._socket.recv(65536)
            if not data:
                return ""
            self._pending += data
        self._pending = self._pending[match.end() :]
        return match[1].decode()

    def registers(self) -> list[int]:
        """The 64-bit ones of the thread that the last stop was of, as RSI and the others number them."""
        data = bytes.fromhex(self.ask("g"))
        return [int.from_bytes(data[at : at + _LONG], "little") for at in range(0, (RIP + 1) * _LONG, _LONG)]

    def memory(self, address: int, size: int) -> bytes:
        """What is there. Raises ValueError if nothing is."""
        return bytes.fromhex(self.ask(f"m{address:x},{size:x}"))
