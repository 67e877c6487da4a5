# SPDX-License-Identifier: GPL-2.0-only
"""For all unit tests."""

from __future__ import annotations

import signal

from hypothesis import settings

# Who starts a job in the background has it ignore Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A busy machine makes a test slow, not wrong.
settings.register_profile("testbed", deadline=None)
settings.load_profile("testbed")
