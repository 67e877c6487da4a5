# SPDX-License-Identifier: GPL-2.0-only
"""From an experiment to records: kernels and guests made ready, trials run."""
