"""Results of vllm bench serve and SpecForge, in the forms that their sources write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.report.command import main
from bench.serve.imported import import_comparisons, is_result
from methods.errors import UserError

GAPS = [0.01] * 10


def vllm(folder: Path, name: str, level: int | None = 4, detailed: bool = True, slow: float = 1.0, **more: Any) -> Path:
    """--save-result of vLLM 0.32, --save-detailed or not."""
    result: dict[str, Any] = {
        "date": "20261001-120000", "backend": "vllm", "label": None, "model_id": "org/model", "num_prompts": 6,
        "request_rate": "inf", "max_concurrency": level, "duration": 2.0 * slow, "completed": 6,
        "total_input_tokens": 60, "total_output_tokens": 66, "output_throughput": 33.0 / slow, "mean_ttft_ms": 100.0,
    }  # fmt: skip
    if detailed:
        result |= {
            "input_lens": [10] * 6, "output_lens": [11] * 6, "errors": [""] * 6,
            "ttfts": [0.1 * slow * (1 + place / 10) for place in range(6)], "itls": [[slow * gap for gap in GAPS]] * 6,
            "generated_texts": [f"answer {place}" for place in range(6)],
        }  # fmt: skip
    path = folder / name
    path.write_text(json.dumps(result | more))
    return path


SPECULATION = {
    "spec_decode_acceptance_rate": 50.0, "spec_decode_acceptance_length": 2.5, "spec_decode_num_drafts": 20,
    "spec_decode_draft_tokens": 60, "spec_decode_accepted_tokens": 30,
    "spec_decode_per_position_acceptance_rates": [0.8, 0.5, 0.2],
}  # fmt: skip


def test_detailed_results_have_every_figure(tmp_path: Path) -> None:
    ours = [vllm(tmp_path, f"o{level}.json", level, **SPECULATION) for level in (1, 4)]
    theirs = [vllm(tmp_path, f"p{level}.json", level, slow=2.0 / level**0.8) for level in (1, 4)]
    (found,) = import_comparisons(ours, theirs)
    assert found.title == "org/model / vllm bench serve" and found.metrics["engine"] == "vllm"
    first, second = found.metrics["levels"]
    assert first["speedup"] == pytest.approx(2.0) and first["throughput_ratio"] == pytest.approx(2.0)
    assert first["cr"] == pytest.approx(60 / 30) and first["ctar"][:4] == pytest.approx([16 / 30, 10 / 30, 4 / 30, 0])
    assert first["gap_ms_p50"] == pytest.approx(10) and first["ttft_ms_p50"] == pytest.approx(125)
    assert second["speedup"] == pytest.approx(2.0 / 4**0.8) and 1 < found.metrics["crossing"]["at"] < 4
    assert first["client_cpu_share"] is None and first["equal"] == 0
    assert any("0 of 12 answers have another text" in text for text in found.metrics["warnings"])


def test_what_a_summary_does_not_say_is_empty(tmp_path: Path) -> None:
    ours, theirs = (vllm(tmp_path, f"{slow}.json", detailed=False, slow=slow) for slow in (1.0, 2.0))
    (row,) = import_comparisons([ours], [theirs], name="ngram")[0].metrics["levels"]
    assert row["throughput_ratio"] == pytest.approx(2.0) and row["questions"] == 0
    assert {row[name] for name in ("speedup", "tokens_per_s", "ttft_ms_p50", "cr")} == {None}
    (row,) = import_comparisons([ours], [])[0].metrics["levels"]
    assert row["throughput"] == pytest.approx(33) and row["baseline_throughput"] is row["throughput_ratio"] is None


def test_a_failed_request_is_out_of_both_sides(tmp_path: Path) -> None:
    ours = vllm(tmp_path, "o.json", errors=["", "boom", *[""] * 4], output_lens=[11, 0, 11, 11, 11, 11])
    (row,) = import_comparisons([ours], [vllm(tmp_path, "p.json")])[0].metrics["levels"]
    assert (row["questions"], row["failed"]) == (5, 1)


def specforge(folder: Path, **more: Any) -> Path:
    def row(steps: int, batch: int, throughput: float, length: float) -> dict[str, Any]:
        metrics = {"latency": 10.0, "output_throughput": throughput, "accept_length": length, "num_questions": 20}
        setting = {"batch_size": batch, "steps": steps, "topk": min(1, steps), "num_draft_tokens": steps and steps + 1}
        return {**setting, "metrics": [metrics], "num_samples": 20}

    rows = [row(0, 1, 100.0, 1.0), row(0, 8, 500.0, 1.0), row(3, 1, 220.0, 2.2), row(3, 8, 400.0, 2.2)]
    path = folder / "results_20261001.jsonl"
    path.write_text(json.dumps({"model": "org/draft", "mtbench": rows, "gsm8k": rows} | more, indent=4))
    return path


def test_specforges_settings_become_pairs(tmp_path: Path) -> None:
    (found,) = import_comparisons([specforge(tmp_path)], [], model="org/model")
    assert found.title == "org/model / steps 3, topk 1, tokens 4" and found.metrics["engine"] == "sglang"
    assert [row["throughput_ratio"] for row in found.metrics["levels"]] == pytest.approx([2.2, 0.8])
    assert found.metrics["levels"][0]["cr"] == pytest.approx((2200 - 20) / 1000)


def test_the_report_takes_them_and_answer_files_apart(tmp_path: Path) -> None:
    ours, theirs = vllm(tmp_path, "o.json", **SPECULATION), vllm(tmp_path, "p.json", slow=2.0)
    out = tmp_path / "report"
    given = [f"import={ours}", str(specforge(tmp_path)), f"baseline={theirs}", f"output={out}"]
    assert main([f"results_dir={tmp_path / 'none'}", *given]) == 0
    page = (out / "index.html").read_text()
    assert "org/model / vllm bench serve" in page and "steps 3, topk 1, tokens 4" in page
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"question_id": 1, "category": "qa", "choices": []}\n')
    assert is_result(ours) and not is_result(answers) and not is_result(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"max_concurrency": None}, "max_concurrency=None; a rate of requests is no number of them at a time"),
        ({"ttfts": 3}, "a result of another form (TypeError"),
        ({"input_lens": [11] * 6}, "other prompts than the other side's"),
    ],
)
def test_what_is_none_is_one_line(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        import_comparisons([vllm(tmp_path, "o.json", **more)], [vllm(tmp_path, "p.json")])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_other_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"x\.json: a result of another form|neither a result of vllm bench serve"):
        import_comparisons([tmp_path / "x.json"], [])
    with pytest.raises(UserError, match="no result of vllm bench serve"):
        import_comparisons([vllm(tmp_path, "o.json")], [tmp_path / "x.json"])
