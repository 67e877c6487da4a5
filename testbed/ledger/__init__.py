# SPDX-License-Identifier: GPL-2.0-only
"""What is kept of trials, and how it is read back."""
