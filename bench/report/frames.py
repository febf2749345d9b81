"""records.parquet: every recorded turn as one row, for those who go on in pandas."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.files import replace_file
from bench.report.collect import Collection

LEFT_OUT = ["text", "token_ids"]  # large, and in answers.jsonl


def records_frame(collection: Collection) -> pd.DataFrame:
    """Answers and baseline of all runs, one row a turn; `lengths`, `candidates`: what each step emitted, drafted."""
    frames = []
    for group in collection.groups:
        for entry in group.entries:
            for side, turns in (("method", entry.run.answers), ("baseline", entry.run.baseline)):
                if turns is None:
                    continue
                names = {"machine": group.machine, "model": group.model, "method": entry.label, "side": side}
                folder = bytes(entry.run.folders[0]).decode(errors="backslashreplace")
                frame = turns.drop(columns=LEFT_OUT).assign(**names, run=folder)
                frames.append(frame[[*names, "run", *(c for c in frame.columns if c not in {*names, "run"})]])
    whole = pd.concat(frames, ignore_index=True)
    return whole.assign(question_id=whole.question_id.astype(str))


def write_records(collection: Collection, out: Path) -> Path:
    path = out / "records.parquet"
    frame = records_frame(collection)
    replace_file(path, lambda file: frame.to_parquet(file, engine="pyarrow", index=False))
    return path
