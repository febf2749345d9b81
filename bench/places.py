"""Where the project's own files lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
ASSETS = "bench/assets/"
# In a checkout conf/ stands beside bench/, in an installed package inside it.
CONF = next((folder for folder in (BENCH / "conf", ROOT / "conf") if folder.is_dir()), ROOT / "conf")


def locate(value: Any) -> Any:
    """A path that ships with the project, whatever the working directory holds; everything else as it is."""
    if isinstance(value, str) and value.startswith(ASSETS) and (ROOT / value).exists():
        return str(ROOT / value)
    return value
