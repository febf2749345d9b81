"""Overrides: what is of the wrong type, unknown or taken away is one line that says what would be valid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bench.config
from bench.binder import bind
from bench.config import Conf, installed
from bench.places import CONF, ROOT, locate
from bench.run import main
from bench.settings import Model, Run, Text, Train
from bench.train.work import compose
from bench.types import check_type
from methods.errors import UserError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("limit=abc", "limit=abc: must be an integer or null"),
        ("limit=2.5", "limit=2.5: must be an integer or null"),
        ("question_ids=[true,7]", "question_ids=[true, 7]: must be an integer or text or [an integer or text, ...] or"),
        (
            "questions=specbench",
            "questions=specbench: unknown; did you mean spec_bench? valid: custom, joey, spec_bench",
        ),
        ("questions.subtasks.mt_bench=b", "questions.subtasks.mt_bench=b: must be a list of categories"),
        ("threads=abc", "threads=abc: must be an integer or null"),
        ("threads=1.5", "threads=1.5: must be an integer or null"),
        ("temperature=abc", "temperature=abc: must be a number"),
        ("temperature=nan", "temperature=NaN: must be a number"),
        ("seed=abc", "seed=abc: must be an integer"),
        ("repeats=true", "repeats=true: must be an integer"),
        ("resume=maybe", "resume=maybe: must be true or false"),
        ("baseline=null", "baseline=null: unknown; did you mean none?"),
        ("results_dir=null", "results_dir=null: must be text"),
        ("task=5", "task=5: must be text or [text, ...]"),
        ("data.path=123", "data.path=123: must be text or null"),
        ("data.path=[a]", 'data.path=["a"]: must be text or null'),
        ("model.context=abc", "model.context=abc: must be an integer or null"),
        ("model.context=100.5", "model.context=100.5: must be an integer or null"),
        ("model.exit_layer=1.5", "model.exit_layer=1.5: must be an integer"),
        ("model.dtype=16", "model.dtype=16: unknown; valid: auto, bfloat16"),
        ("model.device=0", "model.device=0: unknown; valid: auto, cpu"),
        ("model.weights=5", "model.weights=5: unknown; valid: checkpoint, random"),
        ("model.path=null", "model.path=null: must be text"),
        ("model.chat_template=5", "model.chat_template=5: must be text or null"),
        ("model.name=null", "model.name=null: must be text"),
        ("model.name=a/b", "model.name='a/b': names a folder of the results"),
        ("model.name=..", "model.name='..': names a folder of the results"),
        ("+method.gama=1", "method.gama: unknown override; did you mean method.gamma?"),
        ("++limt=1", "limt: unknown override; did you mean limit?"),
        (
            "methd=pld",
            "methd: unknown override; did you mean method? valid: baseline, data.path, draft, engine, launcher",
        ),
        ("train=sps", "train: unknown override; valid: baseline"),
        ("~limit", "~limit: a key cannot be taken away; limit=VALUE sets it"),
        ("~method.gamma", "~method.gamma: a key cannot be taken away"),
        ("~method", "~method: a key cannot be taken away"),
        ("limit=1,2", "limit=1,2: several values at once are a sweep: bench.run -m limit=value,value"),
        ("method=5", "method=5: unknown; valid: eagle"),
        ("limit={a:1}", 'limit={"a": 1}: must be an integer or null'),
        ("repeats={a:1}", 'repeats={"a": 1}: must be an integer'),
        ("model.path={a:1}", 'model.path={"a": 1}: must be text'),
        ("data=5", "data=5: must be a section"),
        ("hydra=1.5", "hydra=1.5: Hydra only composes here, and takes hydra.searchpath alone"),
        ("hydra.mode=MULTIRUN", "hydra.mode=MULTIRUN: Hydra only composes here"),
        ("hydra.output_subdir=x", "hydra.output_subdir=x: Hydra only composes here"),
        ("shard=²/3", "shard=²/3; an override is written key=value"),
        ("method=a b", "method=a b: unknown; valid: "),
        ("seed=99999999999999999999", "seed=99999999999999999999: whole numbers have 64 bits at most"),
        ("temperature=1e-320", "temperature=1e-320: must be 0 (greedy) or at least 0.001"),
        ("threads=99999", "threads=99999: must be at least 1 and at most this machine's"),
        ("limit=" + "[" * 3000, "no viable alternative at input"),
    ],
)
def test_a_wrong_override_is_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        conf, overrides = Conf.given([override])
        Run.of(conf.compose("config", overrides))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_annotations_that_words_do_not_say_take_anything() -> None:
    for kind in (Any, "Forward", object):
        check_type("method.any", {"a": 1}, kind)
    check_type("method.share", 1, float)
    with pytest.raises(UserError, match=r"method.share=true: must be a number or null"):
        check_type("method.share", True, float | None)


@pytest.mark.parametrize("written", ["method.fallback=pld", "method.fallback='pld'", "+method.fallback=pld"])
def test_a_method_inside_another_is_chosen_as_hydra_writes_it(written: str) -> None:
    method = installed().compose("config", ["method=sam", written, "method.fallback.length=3"]).values["method"]
    assert method["fallback"]["_target_"] == "methods.pld.PromptLookup" and method["fallback"]["length"] == 3


@pytest.mark.parametrize(
    ("first", "last", "drafts"),
    [("null", "eagle", "methods.eagle.Eagle"), ("pld", "eagle", "methods.eagle.Eagle"), ("eagle", "null", None)],
)
def test_the_last_method_inside_another_counts_with_its_draft(first: str, last: str, drafts: str | None) -> None:
    given = ["method=sam", f"method.fallback={first}", "model=vicuna-7b", f"method.fallback={last}"]
    fallback = installed().compose("config", given).values["method"]["fallback"]
    assert (fallback and fallback["_target_"]) == drafts
    assert fallback is None or fallback["checkpoint"].startswith("yuhuili/")


def test_a_method_from_outside_may_take_another_that_has_no_drafts(tmp_path: Path) -> None:
    """As conf/method/sam.yaml, but that its list does not say that the draft is optional."""
    (tmp_path / "method").mkdir()
    lines = (CONF / "method" / "sam.yaml").read_text().replace("- optional ", "- ")
    (tmp_path / "method" / "own.yaml").write_text(lines)
    conf, left = Conf.given([f"--config-dir={tmp_path}", "method=own", "method.fallback=recycling"])
    assert conf.compose("config", left).values["method"]["fallback"]["_target_"].endswith("Recycling")


def test_a_configuration_is_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = []
    once = bench.config.compose
    monkeypatch.setattr(bench.config, "compose", lambda *given, **how: composed.append(given) or once(*given, **how))
    installed().compose("config", ["method=sam", "method.fallback=eagle", "method.fallback.tree=null"])
    assert len(composed) == 1


@pytest.mark.parametrize("written", ["method=vanilla", "method='vanilla'", "+method=vanilla"])
def test_what_cannot_be_trained_is_said_however_it_is_written(written: str) -> None:
    with pytest.raises(UserError, match="method=vanilla: there is nothing to train; valid: eagle"):
        compose(installed(), [written, "output=x"])


def test_what_ships_is_found_whatever_the_working_folder_holds(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "bench" / "assets" / "joey").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert Run.of(installed().compose("config", ["model=joey"])).model.built_in
    assert Path(locate("bench/assets/joey")) == ROOT / "bench" / "assets" / "joey"
    assert locate("results") == "results"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.length=" + "9" * 23, "method.length=" + "9" * 23 + ": whole numbers have 64 bits at most"),
        ("question_ids=[1," + "9" * 23 + "]", "question_ids=[1, 999"),
        ("limit=" + "9" * 5000, "limit=" + "9" * 34 + "...: nested too deep, or a number too long"),
        ("method." + "a" * 300 + "=1", "method.aaa"),
        ("method._target_=nope.x", "method._target_=nope.x: Error loading 'nope.x': ModuleNotFoundError"),
        ("method._target_=5", "method._target_=5: 'int' object has no attribute"),
    ],
    ids=lambda text: text[:30],
)
def test_values_beyond_all_bounds_are_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        composed = installed().compose("config", ["method=pld", override])
        bind(Run.of(composed).method, "method")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "setting", "message"),
    [
        ("lookahead", "level=1000000000", "must be at most 16384"),
        ("medusa", "heads=1000000000", "must be at most 64"),
        ("eagle2", "top_k=99999", "must be at most 16384"),
        ("eagle3", "depth=99999", "must be at most 16384"),
        ("pld", "max_ngram=99999", "must be at most 16384"),
        ("kangaroo", "gamma=99999", "must be at most 16384"),
        ("sam", "predict=99999", "must be at most 16384"),
        ("rest", "nodes=99999", "must be at most 16384"),
        ("hf_prompt_lookup", "prompt_lookup=99999", "must be at most 16384"),
    ],
)
def test_steps_that_no_machine_could_hold_are_refused(
    method: str, setting: str, message: str, tmp_path: Path, capsys
) -> None:
    given = [f"method={method}", f"method.{setting}", "model=joey", "limit=1", f"results_dir={tmp_path}"]
    assert main(given) == 2 and capsys.readouterr().err == f"method.{setting}: {message}\n"


def test_rows_that_several_settings_make_are_bounded_too(tmp_path: Path, capsys) -> None:
    for settings, message in (
        (["method=lookahead", "method.level=9000"], "method: Lookahead says 20340002 rows a step; must be at most"),
        (["method=eagle2", "method.depth=9000"], "method.top_k=10, method.depth=9000: must be at most 16384 nodes"),
    ):
        assert main([*settings, "model=joey", "limit=1", f"results_dir={tmp_path}"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(message) and error.count("\n") == 1


@pytest.mark.parametrize("argument", ["model.system_prompt=\udcff", "data.path=q\udce9.jsonl", "model.name=a\0b"])
def test_bytes_that_are_no_text_are_refused_before_anything_is_measured(argument: str, tmp_path: Path, capsys) -> None:
    assert main([argument, "model=joey", f"results_dir={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"{argument!a}: not valid Unicode\n" and not any(tmp_path.iterdir())


def test_a_tilde_that_the_shell_left_is_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Run.of(installed().compose("config", ["results_dir='~/res'"])).results_dir == str(tmp_path / "res")


def test_a_training_takes_settings_and_its_sections_are_held_against_them() -> None:
    node = Train.of(installed().compose("train", ["data.path=joey", "data.limit=7", "output=o"])).train
    arguments = bind(node, "train").arguments
    assert isinstance(arguments["model"], Model) and arguments["data"] == Text(path="joey", limit=7, held_out=200)
    with pytest.raises(UserError, match=r"^train\.data\.lmit: unknown; did you mean limit"):
        bind({**node, "data": {"path": "joey", "lmit": 3, "held_out": 1}}, "train")
    with pytest.raises(UserError, match=r"^train\.model\.dtype=int4: unknown"):
        bind({**node, "model": {**node["model"], "dtype": "int4"}}, "train")


def outside_training(model: Model, data: Text | None) -> None:
    """One of somebody else's."""


def test_a_section_that_need_not_be_there_is_one_where_it_is() -> None:
    settings = Train.of(installed().compose("train", ["data.path=joey", "output=o"])).train
    node = {"_target_": f"{__name__}.outside_training", "model": settings["model"], "data": settings["data"]}
    assert isinstance(bind(node, "train").arguments["data"], Text)
    assert bind({**node, "data": None}, "train").arguments["data"] is None
    with pytest.raises(UserError, match=r"^train\.data=3: must be a section or null"):
        bind({**node, "data": 3}, "train")
