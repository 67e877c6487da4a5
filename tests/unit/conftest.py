# SPDX-License-Identifier: GPL-2.0-only
"""For all unit tests."""

from __future__ import annotations

from hypothesis import settings

# A busy machine makes a test slow, not wrong.
settings.register_profile("testbed", deadline=None)
settings.load_profile("testbed")
