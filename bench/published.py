"""Numbers others published, from bench/reference, to stand beside measured ones with their source."""

from __future__ import annotations

from functools import cache

import pandas as pd

from bench.places import BENCH

# The paper compares single sequences: Medusa drafts the chain of its heads' top choices, and no step of Lookahead emits
# more than four tokens (Figure 1).
SETTINGS = {"medusa": "chain", "lookahead": "accepts 3"}
LAYERS = {"vicuna-7b": 32, "vicuna-13b": 40}
REFERENCE = BENCH / "reference"
PAPER_ORDER = ("translation", "qa", "summarization", "math_reasoning", "rag", "mt_bench")  # of Table 1
PAPER = "Kangaroo paper, arXiv 2404.18911"


def named(method: str) -> str:
    """A method with the setting that the paper measured, as measured ones are labelled."""
    return f"{method} ({SETTINGS[method]})" if method in SETTINGS else method


@cache
def _table(name: str) -> pd.DataFrame:
    return pd.read_csv(REFERENCE / f"{name}.csv", comment="#")


@cache
def table1(model: str, method: str) -> dict[str, tuple[float | None, float | None]]:
    """(CR, speedup) by subtask and "average" as the paper's Table 1 prints them; empty when it has no such row."""
    rows = _table("table1_main")
    rows = rows[(rows.model == model) & (rows.method == method)]
    return {
        row.subtask: (None if pd.isna(row.compression_ratio) else float(row.compression_ratio), float(row.speedup))
        for row in rows.itertuples()
    }


def table2() -> pd.DataFrame:
    """Adapter architectures of Table 2, one row each."""
    return _table("table2_adapter").copy()


@cache
def adapter_parameters() -> dict[str, tuple[int, int]]:
    """Extra parameters of each architecture of Table 2 at Vicuna-7B and 13B, as this project counts."""
    rows = _table("adapter_parameters").set_index("architecture")
    return {str(name): (int(row["vicuna-7b"]), int(row["vicuna-13b"])) for name, row in rows.iterrows()}


@cache
def ctar_math_reasoning(model: str, method: str) -> list[float] | None:
    """CTAR(1..6) of Figure 1, left; the paper shows Vicuna-7B only."""
    rows = _table("figure1_ctar_math_reasoning")
    rows = rows[rows.method == method].sort_values("w")
    return (rows.ctar_percent / 100).tolist() if model == "vicuna-7b" and len(rows) else None


def exit_layers(model: str) -> pd.DataFrame:
    """exit_layer, its share of the layers in per cent, compression_ratio and speedup; no rows for other models."""
    rows = _table("figure_exit_layer")
    share = 100 * rows.exit_layer / rows.model.map(LAYERS)
    return rows.assign(share=share)[rows.model == model].sort_values("exit_layer")


def thresholds(model: str) -> pd.DataFrame:
    """gamma, eta, compression_ratio, speedup of the threshold ablation; no rows for other models."""
    rows = _table("figure_threshold")
    return rows[rows.model == model].sort_values(["gamma", "eta"])


@cache
def cards() -> pd.DataFrame:
    """Published peaks of GPUs: card, gb_per_s, and TFLOPS in float16, bfloat16 and float32 (0: has none)."""
    return _table("cards")


def spec_bench(model: str, method: str) -> pd.DataFrame:
    """Rows of Spec-Bench's leaderboard for one of our model names, one per device."""
    rows = _table("spec_bench_leaderboard")
    return rows[(rows.model == f"{model}-v1.3") & (rows.method == method)]
