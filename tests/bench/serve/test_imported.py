"""Results of vllm bench serve, specdec_bench and SpecForge, in the forms that their sources write."""

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
    assert first["gap_ms_p50"] == first["token_ms_p50"] == pytest.approx(10) and first["ttft_ms_p50"] == pytest.approx(
        125
    )
    assert second["speedup"] == pytest.approx(2.0 / 4**0.8) and 1 < found.metrics["crossing"]["at"] < 4
    assert first["client_cpu_share"] is None and first["equal"] is first["unchecked"] is None
    assert any("0 of 12 answers have another text" in text for text in found.metrics["warnings"])


def test_what_a_summary_does_not_say_is_empty(tmp_path: Path) -> None:
    ours, theirs = (vllm(tmp_path, f"{slow}.json", detailed=False, slow=slow) for slow in (1.0, 2.0))
    (row,) = import_comparisons([ours], [theirs], name="ngram")[0].metrics["levels"]
    assert row["throughput_ratio"] == pytest.approx(2.0)
    assert row["questions"] is row["failed"] is row["turns"] is None
    assert {row[name] for name in ("speedup", "tokens_per_s", "ttft_ms_p50", "cr")} == {None}
    times = {"median_ttft_ms": 90.0, "p99_ttft_ms": 180.0, "p99_itl_ms": 20.0, "median_tpot_ms": 7.0}
    (row,) = import_comparisons([vllm(tmp_path, "t.json", detailed=False, **times)], [theirs])[0].metrics["levels"]
    assert (row["ttft_ms_p50"], row["ttft_ms_p99"], row["gap_ms_p99"]) == (90.0, 180.0, 20.0)
    assert row["token_ms_p50"] == 7.0 and row["token_ms_p99"] is None
    assert {row[name] for name in ("ttft_ms_p90", "gap_ms_p50", "baseline_ttft_ms_p50")} == {None}
    (row,) = import_comparisons([ours], [])[0].metrics["levels"]
    assert row["throughput"] == pytest.approx(33) and row["baseline_throughput"] is row["throughput_ratio"] is None


def test_more_accepted_than_answered_takes_at_least_the_steps_that_had_a_draft(tmp_path: Path) -> None:
    more = {"spec_decode_accepted_tokens": 50, "spec_decode_per_position_acceptance_rates": [0.9, 0.8, 0.8]}
    (found,) = import_comparisons([vllm(tmp_path, "o.json", **SPECULATION | more)], [vllm(tmp_path, "p.json", slow=2)])
    assert found.metrics["levels"][0]["cr"] == pytest.approx(60 / 20)


def test_a_result_given_twice_is_refused_and_one_without_a_partner_said(tmp_path: Path) -> None:
    ours, again, plain = (vllm(tmp_path, f"{slow}.json", slow=slow) for slow in (1.0, 1.5, 2.0))
    for given in (([ours, ours], [plain]), ([ours], [plain, plain])):
        with pytest.raises(UserError, match=r"\.json hold the same result; give one of them"):
            import_comparisons(*given)
    (found,) = import_comparisons([ours, again], [plain])
    said = "4 at a time: of 2 results of one side, the last 1 have no partner and are left out"
    assert said in found.metrics["warnings"] and found.metrics["levels"][0]["repeats"] == 1
    (found,) = import_comparisons([ours, again], [])
    assert "no partner" not in str(found.metrics["warnings"]) and found.metrics["levels"][0]["repeats"] == 2


def test_a_failed_request_is_out_of_both_sides(tmp_path: Path) -> None:
    ours = vllm(tmp_path, "o.json", errors=["", "boom", *[""] * 4], output_lens=[11, 0, 11, 11, 11, 11])
    (row,) = import_comparisons([ours], [vllm(tmp_path, "p.json")])[0].metrics["levels"]
    assert (row["questions"], row["failed"]) == (5, 1)
    ours = vllm(tmp_path, "o.json", completed=5, **SPECULATION)
    (found,) = import_comparisons([ours], [vllm(tmp_path, "p.json", completed=4)])
    assert found.metrics["levels"][0]["cr"] is None, "the server's counts have the failed request's steps too"
    said = f"{ours}: 1 of 6 requests failed; its counts of acceptance have them too and are in no CR"
    assert {said, f"{tmp_path / 'p.json'}: 2 of 6 requests failed"} <= {*found.metrics["warnings"]}


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


def statistics(mean: float) -> dict[str, Any]:
    quantiles = {"0.25": f"{mean / 2:.4f}", "0.5": f"{mean:.4f}", "0.75": f"{2 * mean:.4f}"}
    return {"min": "0.0000", "max": "9.0000", "mean": f"{mean:.4f}", "std": "0.1000", "quantiles": quantiles}


def specdec(folder: Path, algorithm: str, level: int, lengths: dict[int, int], runs: int = 1, **more: Any) -> Path:
    """run.py --save_dir of specdec_bench: four turns, and so many tokens streamed at a time, in ten seconds."""
    folder.mkdir()
    config = {"engine": "VLLM", "engine_version": "0.32.0", "model_dir": "org/model", "gpu": "H100", "tp_size": 1,
              "output_length": 16, "concurrency": level, "speculative_algorithm": algorithm, "draft_length": 3,
              "block_size": None, "temperature": None, "runtime_params": {}, "huggingface_model_id": None}  # fmt: skip
    tokens = sum(length * count for length, count in lengths.items())
    timing = {"Output TPS": tokens / 10, "TTFT Time": statistics(0.2), "E2E Request Time": statistics(2.0),
              "Number of Output Tokens": statistics(tokens / 4)}  # fmt: skip
    acceptance = {"Average_AL": 1.0, "Acceptance_Length_Histogram": {str(k): v for k, v in lengths.items()}}
    files = {"configuration": config | more, "timing": [timing] * runs, "acceptance_rate": [acceptance] * runs}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    answers = [{"question_id": n, "turns": ["a", "b"], "choices": [{"turns": ["c", algorithm * n]}]} for n in range(2)]
    (folder / "specbench_responses.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    return folder


LENGTHS = {1: 6, 2: 4, 4: 10}  # four of the first are the prefills': 2 + 4 + 10 passes emit 50 of 54 tokens


def test_specdec_benchs_folders_become_pairs(tmp_path: Path) -> None:
    ours = [specdec(tmp_path / f"e{level}", "EAGLE3", level, LENGTHS) for level in (1, 8)]
    plain = [specdec(tmp_path / f"p{level}", "NONE", level, {1: 27}) for level in (1, 8)]
    for given in (([*ours, *plain], []), ([ours[0] / "configuration.json", ours[1]], plain)):
        (found,) = import_comparisons(*given)
        assert found.title == "org/model / eagle3, draft length 3" and found.metrics["engine"] == "vllm"
        row, other = found.metrics["levels"]
        assert (row["level"], other["level"]) == (1, 8) and row["throughput_ratio"] == pytest.approx(2.0)
        assert row["throughput"] == pytest.approx(5.4) and row["baseline_throughput"] == pytest.approx(2.7)
        assert row["cr"] == pytest.approx(50 / 16) and row["ctar"][:4] == pytest.approx([14 / 16, 10 / 16, 10 / 16, 0])
        assert (row["ttft_ms_p50"], row["baseline_wall_ms_p50"]) == (200.0, 2000.0)
        for name in ("speedup", "tokens_per_s", "ttft_ms_p90", "gap_ms_p50", "draft_acceptance", "client_cpu_share"):
            assert row[name] is None
        assert any("2 of 8 answers have another text" in text for text in found.metrics["warnings"])
        assert found.records.info["config"]["server"]["hardware"] == "H100"


def test_each_programs_results_go_with_their_own_plain_ones(tmp_path: Path) -> None:
    ours = [vllm(tmp_path, "o.json"), specdec(tmp_path / "e", "EAGLE3", 1, LENGTHS)]
    plain = [vllm(tmp_path, "p.json", slow=4.0), specdec(tmp_path / "p", "NONE", 1, {1: 27})]
    found = import_comparisons(ours, plain)
    assert [one.metrics["levels"][0]["throughput_ratio"] for one in found] == pytest.approx([4.0, 2.0])


def test_a_folder_that_was_run_again_has_repeats_and_an_unknown_prefill_no_cr(tmp_path: Path) -> None:
    (found,) = import_comparisons([specdec(tmp_path / "e", "DFLASH", 2, {1: 3, 5: 4}, runs=2, block_size=8)], [])
    (row,) = found.metrics["levels"]
    assert found.title == "org/model / dflash, block size 8" and (row["repeats"], row["blocks"]) == (2, 2)
    assert (row["cr"], row["ttft_ms_p50"], row["throughput_ratio"]) == (None, None, None)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"gpu": "A100"}, "p: gpu=A100; .*e has gpu=H100; wanted: the same"),
        ({"runtime_params": {"sampling_kwargs": {"temperature": 1}}}, "p: temperature=1; .*e has temperature=0"),
        ({"concurrency": "4"}, "concurrency=4; a rate of requests is no number"),
        ({"runtime_params": 3}, "p: a result of another form"),
    ],
)
def test_folders_that_are_no_pair_are_one_line(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    ours, plain = specdec(tmp_path / "e", "EAGLE3", 1, LENGTHS), specdec(tmp_path / "p", "NONE", 1, {1: 27}, **more)
    with pytest.raises(UserError, match=said) as caught:
        import_comparisons([ours], [plain])
    assert "\n" not in str(caught.value)


def test_half_a_folder_and_other_prompts_are_one_line(tmp_path: Path, capsys: Any) -> None:
    ours, plain = specdec(tmp_path / "e", "EAGLE3", 1, LENGTHS), specdec(tmp_path / "p", "NONE", 1, {1: 27})
    with pytest.raises(UserError, match="speculative_algorithm=NONE; wanted: a result that speculates"):
        import_comparisons([plain], [])
    (plain / "specbench_responses.jsonl").write_text('{"turns": ["x"], "choices": [{"turns": ["y"]}]}\n')
    with pytest.raises(UserError, match="other prompts than the other side's"):
        import_comparisons([ours], [plain])
    (ours / "acceptance_rate.json").unlink()
    with pytest.raises(UserError, match=r"acceptance_rate\.json: no such file; wanted: a folder that specdec_bench's"):
        import_comparisons([ours], [])
    for path, said in ((ours / "timing.json", "of specdec_bench, give the folder"), (tmp_path, "no such file")):
        assert main([f"results_dir={tmp_path / 'none'}", f"import={path}"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"import: {path}: ") and said in error and error.count("\n") == 1


def test_the_report_takes_them_and_answer_files_apart(tmp_path: Path) -> None:
    ours, theirs = vllm(tmp_path, "o.json", **SPECULATION), vllm(tmp_path, "p.json", slow=2.0)
    out = tmp_path / "report"
    given = [f"import={ours}", str(specforge(tmp_path)), f"baseline={theirs}", f"output={out}"]
    assert main([f"results_dir={tmp_path / 'none'}", *given]) == 0
    page = (out / "index.html").read_text()
    assert "0 / 0 / 0" not in page and "<td>0</td>" not in page and "too few" not in page
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
    with pytest.raises(UserError, match=r"^import: \S*x\.json: neither a result of vllm bench serve"):
        import_comparisons([tmp_path / "x.json"], [])
    for nothing in ({"duration": 0.0}, {"total_output_tokens": 0}):
        with pytest.raises(UserError, match=r"tokens in \d s: nothing was measured"):
            import_comparisons([vllm(tmp_path, "n.json", detailed=False, **nothing)], [])
    with pytest.raises(UserError, match="no result of vllm bench serve"):
        import_comparisons([vllm(tmp_path, "o.json")], [tmp_path / "x.json"])


def test_each_setting_of_a_specforge_file_is_held_against_the_row_without_a_draft(tmp_path: Path) -> None:
    def row(steps: int, throughput: float) -> dict[str, Any]:
        metrics = {"latency": 10.0, "output_throughput": throughput, "accept_length": 2.0, "num_questions": 20}
        return {"batch_size": 1, "steps": steps, "topk": 1, "num_draft_tokens": steps + 1, "metrics": [metrics]}

    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({"model": "org/draft", "mtbench": [row(0, 100.0), row(3, 220.0), row(5, 300.0)]}))
    found = import_comparisons([path], [], model="org/model")
    assert [one.metrics["levels"][0]["throughput_ratio"] for one in found] == pytest.approx([2.2, 3.0])


def test_every_percentile_that_a_file_has_is_shown(tmp_path: Path) -> None:
    (one,) = import_comparisons([vllm(tmp_path, "t.json", detailed=False, median_e2el_ms=60.0, p90_e2el_ms=70.0)], [])
    (row,) = one.metrics["levels"]
    assert (row["wall_ms_p50"], row["wall_ms_p90"], row["wall_ms_p99"]) == (60.0, 70.0, None)
