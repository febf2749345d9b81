"""bench.predict: exact where costs are known, and right about what it cannot know."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.predict.__main__ import main
from bench.predict.costs import OWN_HEAD, Draft, Times, card_named, on_card, own
from bench.predict.model import by_length, predict, steps_of
from bench.predict.paper import by_row
from bench.predict.tables import Recorded
from methods.adapters import VARIANTS
from methods.errors import UserError

VANILLA, BASE, ROW, DRAFT, TOKEN, OVERHEAD = 0.010, 0.008, 0.001, 0.002, 0.0015, 0.0005


def choice(steps: Sequence[tuple[int, int]], draft_s: float, verify_s: float, overhead: float) -> dict[str, Any]:
    tokens = 1 + sum(emitted for _, emitted in steps)
    times = {"prefill_s": [0.02], "draft_s": [draft_s], "verify_s": [verify_s]}
    wall = 0.02 + draft_s + verify_s + overhead
    return {"turns": [""], "new_tokens": [tokens], "wall_time": [wall], "steps": [[list(s) for s in steps]], **times}


def write_run(folder: Path, method: str = "kangaroo", questions: int = 12, **info: Any) -> Path:
    """Turns whose times follow the costs above, with drafts of 1 to 6 tokens."""
    drawn = np.random.default_rng(0)
    answers, baseline = [], []
    for number in range(questions):
        drafted = drawn.integers(1, 7, 10 + number)
        steps = [(int(d), int(drawn.integers(1, d + 2))) for d in drafted]
        verify = sum(BASE + ROW * (d + 1) for d, _ in steps)
        draft = sum(DRAFT + TOKEN * d for d, _ in steps)
        plain = [(0, 1)] * sum(e for _, e in steps)
        head = {"question_id": number, "category": "qa", "repeat": 0}
        answers.append({**head, "choices": [choice(steps, draft, verify, OVERHEAD * len(steps))]})
        baseline.append({**head, "choices": [choice(plain, 0.0, VANILLA * len(plain), 0.0)]})
    folder.mkdir()
    for name, records in (("answers", answers), ("baseline", baseline)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {"exit_layer": 2, "gamma": 6}
    known = {"model": "joey", "method": method, "dtype": "float16", "layers": 8, "config": {"method": settings}}
    (folder / "run.json").write_text(json.dumps(known | info))
    return folder


def test_known_costs_are_found_and_the_prediction_is_exact(tmp_path: Path) -> None:
    run = Recorded(write_run(tmp_path / "run"))
    costs = own(Times.of(run.answers), Times.of(run.baseline), run.draft)
    assert [costs.draft_step, costs.draft_token] == pytest.approx([DRAFT, TOKEN])
    assert [costs.vanilla, costs.overhead] == pytest.approx([VANILLA, OVERHEAD])
    drafted, emitted = steps_of(run.answers)
    seconds = sum(BASE + ROW * (d + 1) + DRAFT + TOKEN * d + OVERHEAD for d in drafted)
    found = predict(drafted, emitted, costs, run.draft)
    assert found.speedup == pytest.approx(emitted.sum() * VANILLA / seconds)
    assert found.draft + found.verify + found.overhead == pytest.approx(1)
    assert found.overhead == pytest.approx(OVERHEAD * len(drafted) / seconds)


def test_uneven_turns_keep_their_whole_time(tmp_path: Path) -> None:
    # The second turn of three was slow: where its time goes is a guess, that it passed is none.
    drafted, draft, verify = [[1] * 10, [4] * 20, [2, 6] * 5], [0.03, 0.25, 0.1], [0.10, 0.70, 0.12]
    ran, plain = turns(drafted, draft, verify, [0.0] * 3), turns([[0] * 9], [0.0], [0.09], [0.0])
    method = {"settings": {}, "turns": {"method": ran, "vanilla": plain}}
    run = Recorded(write_run(tmp_path / "run"), str(speed_file(tmp_path, kangaroo=method)))
    assert run.measured is not None and run.measured.turns is not None
    steps = np.concatenate(run.measured.turns[0].drafted)
    for costs in (own(*run.measured.turns, run.draft), run.costs(run.answers, run.baseline)):
        assert costs.verify(run.draft.rows(steps)).sum() == pytest.approx(sum(verify))
        assert costs.draft_step * len(steps) + costs.draft_token * steps.sum() == pytest.approx(sum(draft))


def test_a_chain_is_cut_and_a_tree_is_not(tmp_path: Path) -> None:
    run = Recorded(write_run(tmp_path / "run"))
    costs = run.costs(run.answers, run.baseline)
    drafted, emitted = np.array([6, 2]), np.array([7, 1])
    found = by_length(drafted, emitted, costs, run.draft)
    assert list(found) == [1, 2, 3, 4, 5, 6] and found[6] == predict(drafted, emitted, costs, run.draft)
    assert found[2].cr == pytest.approx((3 + 1) / 2)
    assert not by_length(drafted, emitted, costs, Draft("medusa", "medusa", False, 1.0, 0))


def speed_file(
    folder: Path, engine: str | None = None, model: str = "joey", threads: int | None = None, **methods: Any
) -> Path:
    """As bench.speed writes: a vanilla pass takes twice as long as in the runs."""
    section = {"dtype": "float16", "threads": threads, "pass_ms": {"1": 20.0, "4": 26.0}, "methods": methods}
    section |= {"engine": engine} if engine else {}
    file = folder / "speed.json"
    file.write_text(json.dumps({"config": {"model": {"name": model}}, "sections": [section]}))
    return file


def turns(drafted: Sequence[Sequence[int]], draft: Any, verify: Any, left: Any) -> dict[str, Any]:
    """Turns that spend so many seconds drafting, verifying, and beside both."""
    wall = [1 + sum(parts) for parts in zip(draft, verify, left, strict=True)]
    return {"drafted": drafted, "prefill_s": [1.0] * len(drafted), "draft_s": draft, "verify_s": verify, "wall_s": wall}


def test_passes_of_bench_speed_replace_verification(tmp_path: Path) -> None:
    run = Recorded(write_run(tmp_path / "run"), str(speed_file(tmp_path)))
    costs = run.costs(run.answers, run.baseline)
    assert "no turns of it" in run.notes()[0]
    assert costs.vanilla == pytest.approx(2 * VANILLA) and costs.draft_token == pytest.approx(2 * TOKEN)
    # of 8 layers the draft ran 2; beyond the last number of rows the last line goes on
    assert costs.verify(np.array([1, 2, 7])) == pytest.approx(0.75 * np.array([0.020, 0.022, 0.032]))


def test_costs_are_of_the_runs_model_and_other_threads_are_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", threads=1)
    with pytest.raises(UserError, match=r"^cost=[^ ]*speed\.json: measured with smollm2-135m; RUN is of joey$"):
        Recorded(folder, str(speed_file(tmp_path, model="smollm2-135m")))
    notes = Recorded(folder, str(speed_file(tmp_path, threads=16))).notes()
    assert "joey / kangaroo: measured with threads=1, cost=FILE with threads=16" in notes
    assert len(Recorded(folder, str(speed_file(tmp_path, threads=1))).notes()) == 1


def test_passes_of_the_fixed_engine_are_as_wide_as_they_were_filled_up_to(tmp_path: Path) -> None:
    run = Recorded(write_run(tmp_path / "run", engine="fixed"), str(speed_file(tmp_path, engine="fixed")))
    verify = run.costs(run.answers, run.baseline).verify
    assert verify(np.array([1, 2, 3, 4, 5, 8, 9])) == pytest.approx(
        0.75 * np.array([0.020, 0.022, 0.026, 0.026, 0.034, 0.034, 0.050])
    )
    drafted = [[1] * 3, [4] * 3, [1, 5] * 4]
    seconds = [sum(0.002 + 0.001 * {2: 2, 5: 8, 6: 8}[d + 1] for d in steps) for steps in drafted]
    sides = (turns(drafted, [0.1] * 3, seconds, [0.0] * 3), turns([[0] * 9], [0.0], [0.018], [0.0]))
    method = {"settings": {}, "turns": dict(zip(("method", "vanilla"), sides, strict=True))}
    run = Recorded(tmp_path / "run", str(speed_file(tmp_path, engine="fixed", kangaroo=method)))
    assert run.measured is not None and run.measured.turns is not None
    fitted = own(*run.measured.turns, run.draft).verify
    assert fitted(np.array([2, 3, 5, 9, 128, 129])) == pytest.approx(0.002 + 0.001 * np.array([2, 4, 8, 16, 128, 129]))


def test_timed_passes_are_filled_up_as_well(tmp_path: Path) -> None:
    """Of 3 and of 7 rows they are of 4 and 8; two of the same width are one figure, the mean."""
    cost = speed_file(tmp_path, engine="fixed")
    record = json.loads(cost.read_text())
    record["sections"][0]["pass_ms"] = {"1": 20.0, "3": 26.0, "7": 33.0, "8": 35.0}
    record["sections"][0]["uncaptured"] = {"kangaroo": "3 were not captured", "passes by rows": "4 were not"}
    cost.write_text(json.dumps(record))
    run = Recorded(write_run(tmp_path / "run", engine="fixed"), str(cost))
    assert run.measured is not None
    found = run.measured.pass_s(np.array([1, 2, 4, 5, 8, 12]), run.draft)
    assert found == pytest.approx([0.020, 0.022, 0.026, 0.034, 0.034, 0.05])
    assert run.notes()[:2] == [f"joey / kangaroo, cost=FILE: {text}" for text in ("4 were not", "3 were not captured")]


def test_transformers_fills_nothing_up(tmp_path: Path) -> None:
    cost, rows = str(speed_file(tmp_path, engine="fixed")), np.array([3])
    for name, seconds in (("hf_prompt_lookup", 0.024), ("pld", 0.026)):
        run = Recorded(write_run(tmp_path / name, name, engine="fixed"), cost)
        assert run.costs(run.answers, run.baseline).verify(rows) == pytest.approx(seconds)
        fitted = own(Times.of(run.answers), Times.of(run.baseline), run.draft).verify
        assert (fitted(np.array([3])) == pytest.approx(fitted(np.array([4])))) == (name == "pld")


def test_custom_models_are_told_apart_where_the_file_says_which(tmp_path: Path) -> None:
    folder, cost = write_run(tmp_path / "run", model="mine"), speed_file(tmp_path, model="custom")
    assert Recorded(folder, str(cost)).notes()[0] == (
        "mine / kangaroo, cost=FILE: does not say of which custom model it is"
    )
    cost.write_text(json.dumps({**json.loads(cost.read_text()), "model": "another"}))
    with pytest.raises(UserError, match="measured with another; RUN is of mine"):
        Recorded(folder, str(cost))


def test_sam_is_a_chain_where_nothing_else_drafts() -> None:
    def of(**settings: Any) -> Draft:
        return Draft.of({"method": "sam", "config": {"method": settings}})

    assert of(fallback=None, static=None).chain
    assert not of(fallback={"_target_": "methods.recycling.Recycling"}).chain and not of(static={"text": "x"}).chain
    info = {"weight_bytes": 100e9, "dtype": "float16", "config": {"method": {"fallback": {"_target_": "x"}}}}
    with pytest.raises(UserError, match="not record which steps the fallback drafted"):
        on_card(card_named("H100"), {"method": "sam", **info}, of(fallback={"_target_": "x"}))


def test_a_card_that_does_not_compute_in_the_runs_dtype_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", dtype="bfloat16", weight_bytes=16_000_000_000)
    assert main([str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "not predicted: card=V100: does not compute in bfloat16" in printed and "A100" in printed
    assert "  V100  " not in printed
    assert main([str(folder), "card=V100"]) == 2


def test_turns_of_bench_speed_give_draft_vanilla_and_what_verifying_takes(tmp_path: Path) -> None:
    # A step drafts in 2 ms and 1 ms a token, verifies in 1.5 passes and 5 ms, and has 3 ms left over.
    drafted, passes = [[1] * 10, [2, 4] * 10], (10 * 0.75 * 0.022, 10 * 0.75 * (0.024 + 0.028))
    verify = [1.5 * seconds + 0.005 * len(steps) for seconds, steps in zip(passes, drafted, strict=True)]
    draft = [0.002 * len(steps) + 0.001 * sum(steps) for steps in drafted]
    plain = turns([[0] * 50], [0.0], [0.4], [0.1])
    method = {
        "settings": {"exit_layer": 2},
        "turns": {"method": turns(drafted, draft, verify, [0.03, 0.06]), "vanilla": plain},
    }
    run = Recorded(write_run(tmp_path / "run"), str(speed_file(tmp_path, kangaroo=method)))
    costs = run.costs(run.answers, run.baseline)
    assert [costs.vanilla, costs.draft_step, costs.draft_token] == pytest.approx([0.010, 0.002, 0.001])
    assert costs.overhead == pytest.approx(0.003) and not run.notes()
    assert costs.verify(np.array([1, 7])) == pytest.approx([1.5 * 0.75 * 0.020 + 0.005, 1.5 * 0.75 * 0.032 + 0.005])
    other = speed_file(tmp_path, kangaroo={**method, "settings": {"exit_layer": 3}})
    with pytest.raises(UserError, match=r"measured with method\.exit_layer=3; RUN has 2"):
        Recorded(tmp_path / "run", str(other))


def test_of_trees_the_best_is_said_where_several_were_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (write_run(tmp_path / name, "medusa", questions) for name, questions in (("a", 12), ("b", 3)))
    assert main([str(first)]) == 0
    assert "a step records no order of a tree's candidates" in capsys.readouterr().out
    assert main([str(first), str(second)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("joey / medusa, its own machine: of ") and " candidates a step the best is " in last


def test_a_card_reads_what_a_draft_needs() -> None:
    info = {"method": "kangaroo", "dtype": "float16", "weight_bytes": 900_000_000, "layers": 4}
    info |= {"extra_parameters": 9_000_000, "head_bytes": 18_000_000, "config": {"method": {"exit_layer": 1}}}
    draft = Draft.of(info)
    costs = on_card(card_named("V100"), info, draft)
    assert costs.vanilla == pytest.approx(0.001)
    assert costs.draft_token == pytest.approx((18e6 + 220.5e6 + 18e6) / 900e9)
    assert costs.draft_step == pytest.approx(220.5e6 / 900e9), "the last candidate goes through the first layer too"
    assert predict(np.array([0]), np.array([1]), costs, draft).speedup == pytest.approx(1), "nothing drafted, one pass"
    wide = 1000  # rows: the tensor cores, not the memory
    verified = 900e6 - 220.5e6  # three of four layers, and the head
    assert costs.verify(np.array([1, wide])) == pytest.approx([verified / 900e9, verified * wide / 125e12])
    apart = info | {"weight_bytes": 918_000_000, "step_bytes": 900_000_000}
    assert on_card(card_named("V100"), apart, Draft.of(apart)).vanilla == costs.vanilla, "a table is not read"
    own_head = info | {"config": {"method": {"exit_layer": 1, "variant": "mlp_only"}}}
    without = on_card(card_named("V100"), own_head, Draft.of(own_head)).draft_token
    assert without == pytest.approx((18e6 + 220.5e6) / 900e9), "its head is among its parameters"


def test_variants_of_kangaroos_adapter_are_known_by_their_head() -> None:
    assert {name for name, parts in VARIANTS.items() if parts.own_head} == set(OWN_HEAD)


def test_a_chain_of_even_length_costs_by_the_token() -> None:
    times = Times([np.full(10, 6), np.full(20, 6)], *np.array([[0.1, 0.1], [0.6, 1.2], [1.0, 2.0], [1.7, 3.3]]))
    for method, step, token in (("sps", 0.0, 0.01), ("layerskip", 0.06 / 7, 0.06 / 7), ("medusa", 0.06, 0.0)):
        costs = own(times, times, Draft(method, method, True, 1.0, 0))
        assert [costs.draft_step, costs.draft_token] == pytest.approx([step, token])


def test_a_chain_cut_once_by_the_context_costs_by_the_token_too() -> None:
    # A shorter last draft that happened to take longer: least squares would give all of it to the step.
    drafted = [np.full(10, 6), np.array([6] * 9 + [5])]
    times = Times(drafted, *np.array([[0.1, 0.1], [0.6, 0.7], [1.0, 1.0], [1.7, 1.8]]))
    costs = own(times, times, Draft("sps", "sps", True, 1.0, 0))
    assert [costs.draft_step, costs.draft_token] == pytest.approx([0.0, 1.3 / 119])


def test_what_the_paper_prints_lies_below_what_is_predicted() -> None:
    found = [cell for row in by_row() for cell in row["cells"].values()]
    assert len(found) == 48 and all(cell.printed < cell.predicted for cell in found)


def test_a_half_predicts_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run")
    assert main([str(folder), "held_out=true"]) == 0
    *_, first, second, verdict, costs, cuts = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"joey / kangaroo: \d+ of 60 random cuts within 7%; the worse half is \d+\.\d% off, in the middle of them", cuts
    )
    assert verdict.startswith("within 7%: ") and "of 2 halves" in verdict
    assert costs == (
        "with the other's steps, so by costs alone: 2 of 2 halves; the largest error is 0.0%, of joey / kangaroo"
    )
    assert all(line.split()[-1] in ("+0.0%", "-0.0%") for line in (first, second)), (
        "costs are known, so its steps give its speed"
    )


@pytest.mark.parametrize(
    ("slower", "shown"),
    [(1.0, "60 of 60 random cuts within 7%; the worse half is 0.0% off, in the middle"), (9.0, "0 of 60")],
)
def test_random_cuts_say_how_much_depends_on_the_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], slower: float, shown: str
) -> None:
    """Five alike questions; one of them takes longer, so the half without it never predicts the other."""
    folder = write_run(tmp_path / "run")
    for name in ("answers", "baseline"):
        record = json.loads((folder / f"{name}.jsonl").read_text().splitlines()[0])
        records = [{**record, "question_id": number} for number in range(5)]
        if name == "answers":
            (answer,) = record["choices"]
            records[0] = {**record, "choices": [answer | {"wall_time": [answer["wall_time"][0] * slower]}]}
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main([str(folder), "held_out=true"]) == 0
    assert f"joey / kangaroo: {shown}" in capsys.readouterr().out


def test_halves_are_compared_on_one_machine_and_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Costs of elsewhere predict elsewhere; what they predict is not what a run measured here."""
    folder, cost = write_run(tmp_path / "run"), speed_file(tmp_path, engine="fixed")
    assert main([str(folder), f"cost={cost}"]) == 0
    assert main([str(folder), f"cost={cost}", "held_out=true"]) == 2
    assert "measured with engine fixed; RUN has eager" in capsys.readouterr().err
    assert main([str(folder), f"cost={speed_file(tmp_path, engine='eager')}", "held_out=true"]) == 0


@pytest.mark.parametrize("name", ["kangaroo", "medusa", "lookahead", "rest"])
def test_runs_from_before_are_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = (Path(__file__).parents[2] / "results/example/runs/joey" / name).iterdir()
    assert main([str(folder)]) == 0
    assert "predicted, not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "crad=V100"], "crad=V100: unknown"),
        (["{run}", "card=V10"], "card=V10: unknown"),
        (["{run}", "cost={run}/none.json"], "cannot be read"),
        (["{run}", "cost={run}/run.json"], "not a file that bench.speed wrote"),
        (["{run}", "held_out=maybe"], "held_out=true or false"),
        (["{run}", "card=V100"], "no weight_bytes"),
        (["{run}/none"], "not a run directory"),
        (["paper", "card=V100"], "paper takes no runs and no settings"),
        (["card=V100"], "RUN is missing"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capsys: Any, arguments: list[str], message: str) -> None:
    folder = write_run(tmp_path / "run")
    assert main([argument.format(run=folder) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("method", "settings", "read"),
    [
        ("medusa", {"tree": "mc_sim_7b_63"}, 100),
        ("eagle", {"tree": "mc_sim_7b_63"}, 5 * (100 + 300)),
        ("eagle", {"tree": [[0], [0, 0], [1]]}, 2 * (100 + 300)),
        ("eagle2", {"depth": 5, "tree": "dynamic"}, 6 * (100 + 300)),
        ("eagle3", {"depth": 5, "tree": "dynamic"}, 6 * 100),
        ("pld", {}, 0),
    ],
)
def test_a_draft_reads_its_weights_once_a_pass_of_it(method: str, settings: dict[str, Any], read: int) -> None:
    info = {"method": method, "config": {"method": settings}, "weight_bytes": 4000, "dtype": "float16", "layers": 8}
    info |= {"extra_parameters": 0 if method == "pld" else 50, "head_bytes": 300}
    card = card_named("A100")
    assert on_card(card, info, Draft.of(info)).draft_step == pytest.approx(read / card.bytes_per_s)


@pytest.mark.parametrize(("method", "read"), [("eagle", 100 + 300), ("eagle3", 100)])
def test_a_chain_of_eagles_is_a_pass_a_token(method: str, read: int) -> None:
    info = {"method": method, "config": {"method": {"depth": 5, "tree": "chain"}}, "weight_bytes": 4000, "layers": 8}
    info |= {"dtype": "float16", "extra_parameters": 50, "head_bytes": 300}
    card = card_named("A100")
    costs = on_card(card, info, Draft.of(info))
    assert costs.draft_step == 0 and costs.draft_token == pytest.approx(read / card.bytes_per_s)


def test_what_kangaroos_tree_runs_is_not_recorded() -> None:
    info = {"method": "kangaroo_tree", "config": {"method": {"exit_layer": 2}}, "layers": 8, "weight_bytes": 4000}
    with pytest.raises(UserError, match="records no levels"):
        on_card(card_named("A100"), {**info, "dtype": "float16"}, Draft.of(info))


def test_a_method_is_known_by_its_class_and_not_by_its_name(tmp_path: Path) -> None:
    info = {
        "method": "mine",
        "config": {"method": {"_target_": "methods.kangaroo.Kangaroo", "exit_layer": 1}},
        "layers": 4,
    }
    renamed, kangaroo = Draft.of(info), Draft.of({**info, "method": "kangaroo"})
    assert (renamed.method, renamed.kind, renamed.share) == ("mine", "kangaroo", kangaroo.share) and renamed.chain
    outside = {**info, "config": {"method": {"_target_": "its_package.Eagle", "depth": 5}}, "method": "eagle2"}
    costs = {"step_bytes": 1e9, "dtype": "float16"}
    with pytest.raises(UserError, match="of a method from outside, nobody here knows what a draft reads; cost=FILE"):
        on_card(card_named("V100"), {**outside, **costs}, Draft.of(outside))
    assert Draft.of({"method": "hf_prompt_lookup", "config": {"method": {"_target_": "methods.hf.HfGenerate"}}}).foreign


def test_costs_of_another_environment_are_no_comparison(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "cores": 64}))
    file = speed_file(tmp_path)
    file.write_text(json.dumps({**json.loads(file.read_text()), "cores": 2}))
    recorded = Recorded(run, str(file))
    with pytest.raises(UserError, match=r"measured with cores 2; RUN has 64, and held_out=true compares"):
        recorded.same_machine(str(file))
