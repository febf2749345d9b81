"""python -m bench.report [results_dir=results]: one page, tables and figures of all recorded runs."""

from __future__ import annotations

import sys

from bench.report.command import main

sys.exit(main(sys.argv[1:]))
