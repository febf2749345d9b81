"""Spec-Bench's subtasks: the order in which they are shown, and what records without a subtask go by."""

from __future__ import annotations

SUBTASKS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")
MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")


def subtask_of(category: str) -> str:
    """Spec-Bench's eight MT-bench categories are one subtask; every other category is its own."""
    return "mt_bench" if category in MT_BENCH else category
