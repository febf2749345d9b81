"""Where the project's own files lie, and folders to write into."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from methods.errors import UserError

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
# In a checkout conf/ stands beside bench/, in an installed package inside it.
CONF = next((folder for folder in (BENCH / "conf", ROOT / "conf") if folder.is_dir()), ROOT / "conf")


def locate(value: Any) -> Any:
    """A path that ships with the project, found from any working directory; everything else as it is."""
    if isinstance(value, str) and value and not Path(value).exists() and (ROOT / value).exists():
        return str(ROOT / value)
    return value


def make_folder(path: str, key: str = "results_dir") -> Path:
    """A folder to write into. Raises UserError where there can be none."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{key}={path!s}: {reason}; valid: a folder that can be written to") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{key}={path}: may not be written to; valid: a folder that can be written to")
    return folder
