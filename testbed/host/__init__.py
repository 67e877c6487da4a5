# SPDX-License-Identifier: GPL-2.0-only
"""This machine: errors, paths, processes, locks, packages. Standard library only."""
