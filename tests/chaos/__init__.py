# SPDX-License-Identifier: GPL-2.0-only
"""Testbed killed, starved and lied to, thousands of times: `make chaos`, docs/reliability.md."""
