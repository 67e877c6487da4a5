# SPDX-License-Identifier: GPL-2.0-only
"""Which commit changed a noisy metric, without what it takes to build and to measure. Pure.

`posterior` says how probable each candidate is, `search` what to measure next.
"""
