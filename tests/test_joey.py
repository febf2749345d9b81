"""The built-in model: every method is lossless on it, each in its own way."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench import session
from bench.binder import bind
from bench.config import installed
from bench.joey.__main__ import DRAFTS
from bench.places import BENCH
from bench.questions.formats import read_questions
from bench.questions.spec_bench import MT_BENCH, SUBTASKS
from bench.run import all_methods, main
from bench.train.work import compose
from tests.bench.small_run import lines

ASSETS = BENCH / "assets" / "joey"
MiB = 1024 * 1024


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Metrics of every method on the first question of each subtask; the run itself checks each token.

    Vanilla answers a prompt once for all methods: nothing here is about time.
    """
    folder, generated, known = tmp_path_factory.mktemp("joey"), session._generated, {}

    def once(name: str, side: Any, ids: list[int], *more: Any) -> Any:
        if name == "method":
            return generated(name, side, ids, *more)
        if tuple(ids) not in known:
            known[tuple(ids)] = generated(name, side, ids, *more)
        return known[tuple(ids)]

    small = ["limit=1", "repeats=1", "max_new_tokens=32", "warmup_turns=0", "threads=1", f"results_dir={folder}"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(session, "_generated", once)
        assert main(["method=all", "model=joey", *small]) == 0
    found = {
        file.parent.parent.name: json.loads(file.read_text()) for file in folder.glob("runs/joey/*/*/metrics.json")
    }
    answers = {file.parent.parent.name: lines(file) for file in folder.glob("runs/joey/*/*/answers.jsonl")}
    return {name: {"metrics": found[name]["overall"], "answers": answers[name]} for name in found}


def test_all_methods_ran(runs) -> None:
    assert (
        set(runs)
        == set(all_methods(installed()))
        == {
            "eagle",
            "eagle2",
            "eagle3",
            "hydra",
            "kangaroo",
            "kangaroo_tree",
            "layerskip",
            "lookahead",
            "medusa",
            "pld",
            "recycling",
            "rest",
            "sam",
            "sps",
        }
    )


def test_every_token_is_vanillas(runs) -> None:
    for name, run in runs.items():
        verdicts = [v["verdict"] for answer in run["answers"] for v in answer["choices"][0]["fidelity"]]
        assert verdicts == ["equal"] * 7, name  # six questions, one of them with two turns


def test_each_method_shows_its_own_character(runs) -> None:
    curves = {name: tuple(run["metrics"]["ctar"]) for name, run in runs.items()}
    for name, curve in curves.items():
        assert runs[name]["metrics"]["cr"] > 1.1 and curve[0] > 0.1, name
        assert all(before >= after for before, after in pairwise(curve)), name
        assert curve[0] > curve[3], f"{name}'s curve does not decay"
    assert len(set(curves.values())) == len(curves)


def test_kangaroos_compression_is_in_the_wanted_range(runs) -> None:
    assert 1.5 < runs["kangaroo"]["metrics"]["cr"] < 4.5  # six short answers: a wider range than all sixty have


def test_a_dynamic_tree_compresses_more_than_a_static_one_and_that_more_than_a_chain(runs) -> None:
    compression = {name: run["metrics"]["cr"] for name, run in runs.items()}
    assert compression["eagle2"] > compression["eagle"] > compression["kangaroo"]


def test_questions_are_ten_a_subtask_and_mt_bench_has_two_turns() -> None:
    questions = read_questions(ASSETS / "question.jsonl", {"mt_bench": list(MT_BENCH)}, [])
    for subtask in SUBTASKS:
        own = [question for question in questions if question.subtask == subtask]
        assert len(own) == 10
        assert {len(question.turns) for question in own} == ({2} if subtask == "mt_bench" else {1})


def test_everything_together_is_at_most_40_mb() -> None:
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) <= 40e6


def test_its_loss_curves_and_recipes_are_kept() -> None:
    recipe = json.loads((ASSETS / "training" / "recipe.json").read_text())
    drafts = {"eagle", "eagle3", "hydra", "kangaroo", "medusa", "sps"}
    assert {"base", *drafts} <= set(recipe)
    for folder in (ASSETS / name for name in ("training", *drafts)):
        assert list(folder.glob("*.csv")) and list(folder.glob("*.png")), folder


@pytest.mark.parametrize("method", DRAFTS)
def test_making_it_again_finds_its_drafts_made(method: str) -> None:
    """Whether a draft is there already is told by its settings: a new one of the loop must not make six drafts anew."""
    made = json.loads((ASSETS / method / "training.json").read_text())["identity"]
    wanted = bind(compose(installed(), [f"method={method}", "model=joey", "output=x"]).loop, "loop").make().identity()
    assert {key: value for key, value in made.items() if key.startswith("loop.")} == wanted


def test_no_file_is_left_over_from_training() -> None:
    assert not list(Path(ASSETS).rglob("training_state*"))
