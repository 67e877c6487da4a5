# SPDX-License-Identifier: GPL-2.0-only
"""Which marks of a console are waited for."""

from __future__ import annotations

import os
import threading

from testbed.guest.console import Console
from testbed.host.process import Deadline

NONCE = b"3a7429f1-34a8-45cf-87c7-00c423425c19"


def test_after_a_nonce_only_marks_with_it_count() -> None:
    output, said = os.pipe()
    typed, input_ = os.pipe()
    with os.fdopen(output, "rb", 0) as out, os.fdopen(input_, "wb", 0) as keys, os.fdopen(typed, "rb"):
        with os.fdopen(said, "wb", 0) as guest:
            guest.write(b"\n#tb:ok ns=1\n\n#tb:user ns=2 nonce=%s\n\n#tb:end status=0\n" % NONCE)
            guest.write(b"\n#tb:user ns=3 nonce=%s\n\n#tb-%s:end status=7\n" % (NONCE[::-1], NONCE))
        console = Console(out, keys, threading.Event())
        first = console.expect_mark(("ok",), Deadline(30), "a command", lambda: None)
        mark = console.expect_mark(("end", "error"), Deadline(30), "the workload", lambda: None)
        console.finish(5)
    assert (first.name, mark.name, mark.fields) == ("ok", "end", {"status": "7"})
