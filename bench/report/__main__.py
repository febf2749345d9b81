"""python -m bench.report [results_dir=results]   tables and figures of all recorded runs, into results/report/."""

from __future__ import annotations

import sys

from bench.report.command import main

sys.exit(main(sys.argv[1:]))
