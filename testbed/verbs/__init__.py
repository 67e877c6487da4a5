# SPDX-License-Identifier: GPL-2.0-only
"""What testbed does: a request in, an outcome out."""
