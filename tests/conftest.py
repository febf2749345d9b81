"""One thread for each test process: the models are tiny, and tests run side by side."""

from __future__ import annotations

import os

# Before torch is imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
