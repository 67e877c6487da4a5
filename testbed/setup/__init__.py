# SPDX-License-Identifier: GPL-2.0-only
"""What this machine needs before testbed can run."""
