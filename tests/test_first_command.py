"""What the README says first, on a machine with a network: the paper's methods on Vicuna-7B, nothing done by hand.

The hub and Google Drive are stand-ins: the published names and file formats, and weights of a few kilobytes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from tests.bench.small_run import lines, write_questions
from tests.bench.train.chat_model import write_sharegpt
from tests.methods.test_medusa import random_heads, write_heads
from tests.servers import GOOGLE, Drive, Hub, serving
from tests.tiny import adapter_checkpoint, reference_model, write_checkpoint

ROOT = Path(__file__).parents[1]
HIDDEN, VOCABULARY = 32, 400
TEXT_CONFIG = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
ADAPTERS, INNER = "1_lSqhasWeIUyfCft50JtKuQ2-TWepm8p", "i" * 33
SHAREGPT = "ShareGPT_V3_unfiltered_cleaned_split.json"
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Compose a short post about Hawaii.", "Rewrite it."]},
    {"question_id": 241, "category": "qa", "turns": ["Who wrote the report?"]},
]
SHORT = ["max_new_tokens=8", "repeats=1", "warmup_turns=0", "threads=1"]
# Every process imports this first: a request to Google Drive goes to the stand-in.
REDIRECTED = """import requests
get = requests.Session.get
requests.Session.get = lambda self, url, **more: get(self, url.replace({google!r}, {here!r}), **more)
"""


def sentencepiece_model() -> bytes:
    """A tokenizer.model like Llama's, learnt from the README."""
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((ROOT / "README.md").read_text(encoding="utf-8").splitlines()),
        model_writer=made,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        character_coverage=0.98,
        minloglevel=2,
    )
    return made.getvalue()


def vicuna(folder: Path) -> Path:
    """lmsys/vicuna-7b-v1.3 as it is published: two .bin shards, and a tokenizer.model alone."""
    shape = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 3}
    write_checkpoint(folder, reference_model("llama", **shape, max_position_embeddings=2048), "bin_shards", shards=2)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    (folder / "tokenizer_config.json").write_text(json.dumps({**TEXT_CONFIG, "add_bos_token": True}))
    (folder / "special_tokens_map.json").write_text(json.dumps({**TEXT_CONFIG, "pad_token": "<unk>"}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """The environment in which hub and Google Drive are the stand-ins, and nothing has been downloaded yet."""
    away = tmp_path / "published"
    heads = write_heads(away / "heads", random_heads(5, HIDDEN, VOCABULARY), claimed=2)  # what its config.json says
    repositories = {
        "lmsys/vicuna-7b-v1.3": contents(vicuna(away / "vicuna")),
        "FasterDecoding/medusa-vicuna-7b-v1.3": contents(heads),
        "datasets/anon8231489123/ShareGPT_Vicuna_unfiltered": {
            SHAREGPT: write_sharegpt(away / SHAREGPT, 30).read_bytes()
        },
    }
    adapter = contents(adapter_checkpoint(away / "adapter", HIDDEN))
    ids = {name: letter * 33 for name, letter in zip(adapter, "cw", strict=True)}
    folders = {
        ADAPTERS: ("Kangaroo", {"kangaroo-vicuna-7b-v1.3": (INNER, True)}),
        INNER: ("kangaroo-vicuna-7b-v1.3", {name: (key, False) for name, key in ids.items()}),
    }
    files = {ids[name]: content for name, content in adapter.items()}
    with serving(Hub, repositories=repositories) as hub, serving(Drive, folders=folders, contents=files) as drive:
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(REDIRECTED.format(google=GOOGLE, here=drive.address))
        clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        yield {
            **clean,
            "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)]),
            "HF_ENDPOINT": hub.address,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "hub"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }


@pytest.fixture
def python(network: Mapping[str, str], tmp_path: Path) -> Callable[..., str]:
    """What a command prints that runs in an empty folder, and ends well."""
    pytest.importorskip("gdown", reason="gdown is not installed")

    def printed(*arguments: str) -> str:
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=network, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return printed


def digest(tmp_path: Path) -> str:
    """Of the stand-in's ShareGPT: the pinned one is of the published text."""
    return hashlib.sha256((tmp_path / "published" / SHAREGPT).read_bytes()).hexdigest()


def test_the_papers_methods_on_vicuna_end_with_a_report(python: Callable[..., str], tmp_path: Path) -> None:
    data = f"data.path={write_questions(tmp_path / 'question.jsonl', QUESTIONS)}"
    python("bench.run", "method=kangaroo,medusa,lookahead", "model=vicuna-7b", data, *SHORT)
    sha256 = f"method.datastore.sha256={digest(tmp_path)}"
    python("bench.run", "method=rest", "model=vicuna-7b", sha256, data, *SHORT)
    python("bench.report")
    leaderboard = (tmp_path / "results" / "report" / "leaderboard.md").read_text(encoding="utf-8")
    for method in ("kangaroo", "medusa", "lookahead", "rest"):
        (answers,) = (tmp_path / "results" / "runs" / "vicuna-7b" / method).glob("*/answers.jsonl")
        verdicts = [v["verdict"] for line in lines(answers) for v in line["choices"][0]["fidelity"]]
        assert verdicts == ["equal"] * 3 and f"| {method}" in leaderboard
    (run,) = (tmp_path / "results" / "runs" / "vicuna-7b" / "kangaroo").glob("*/run.json")
    weights = (tmp_path / "published" / "adapter" / "pytorch_model.bin").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in run.read_text(encoding="utf-8")


@pytest.mark.slow
def test_table_1_is_one_command(python: Callable[..., str], tmp_path: Path) -> None:
    table1 = yaml.safe_load((ROOT / "conf" / "experiment" / "table1.yaml").read_text(encoding="utf-8"))
    (last,) = (grid for grid in table1["grids"] if "rest" in grid["method"])
    last["method"].remove("rest")
    table1["grids"].append({"method": ["rest"], "method.datastore.sha256": [digest(tmp_path)]})
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "table1_here.yaml").write_text(yaml.safe_dump(table1))
    questions = write_questions(tmp_path / "question.jsonl", QUESTIONS)
    data = [f"data.path={questions}", f"questions.sha256={hashlib.sha256(questions.read_bytes()).hexdigest()}"]
    said = python("bench.experiment", "--config-dir=conf", "name=table1_here", "model=vicuna-7b", *data, *SHORT)
    assert "of unknown size: gdrive:" in said and "to measure: about " in said
    with (tmp_path / "results" / "experiments" / "table1_here" / "table1.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for source in ("measured", "published"):
        methods = {row["method"].partition(" (")[0] for row in rows if row["source"] == source}
        assert methods == {"kangaroo", "lookahead", "medusa", "rest"}
