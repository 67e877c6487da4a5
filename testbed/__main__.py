# SPDX-License-Identifier: GPL-2.0-only
import sys

from testbed.cli import main

sys.exit(main())
