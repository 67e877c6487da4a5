# SPDX-License-Identifier: GPL-2.0-only
"""QMP, one command at a time, each with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

from qemu.qmp import EventListener, Message, QMPClient, QMPError

from testbed.host.errors import GuestLost

T = TypeVar("T")

COMMAND_SECONDS = 20.0
# The client logs what it also raises.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class Monitor:
    """A synchronous QMP connection over a connected socket.

    Every method raises GuestLost when QEMU does not answer in time, answers with an error or is gone.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("testbed")
        self._events = EventListener()
        self._seen: list[Message] = []
        self._client.register_listener(self._events)
        try:
            self._wait(self._client.connect(connection), COMMAND_SECONDS, "greet")
        except BaseException:
            self.close()
            raise

    def execute(self, command: str, timeout: float = COMMAND_SECONDS, **arguments: object) -> Any:
        """The `return` of a command."""
        return self._wait(self._client.execute(command, arguments), timeout, command)

    def events(self, timeout: float = 0.01) -> list[Message]:
        """All events so far, after waiting for one more. The loop has to run for any to come in."""
        if not self._loop.is_closed():
            with contextlib.suppress(TimeoutError):
                event = self._loop.run_until_complete(asyncio.wait_for(self._events.get(), timeout))
                self._seen.append(event)
            self._seen += self._events.clear()
        return self._seen

    def quit(self) -> None:
        """Ask QEMU to end; whether it does is for the caller to see."""
        self.execute("quit", timeout=5.0)

    def close(self) -> None:
        # The other side may have hung up already.
        with contextlib.suppress(TimeoutError, QMPError, OSError, EOFError):
            self._loop.run_until_complete(asyncio.wait_for(self._client.disconnect(), 5.0))
        self._loop.close()

    def _wait(self, action: Coroutine[Any, Any, T], timeout: float, what: str) -> T:
        try:
            return self._loop.run_until_complete(asyncio.wait_for(action, timeout))
        except TimeoutError as late:
            raise GuestLost(f"QEMU did not answer QMP `{what}` within {timeout:.0f} s") from late
        except (QMPError, OSError, EOFError) as failed:
            raise GuestLost(f"QMP `{what}` failed: {failed or type(failed).__name__}") from failed
