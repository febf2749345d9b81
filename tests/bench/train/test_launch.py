from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.config import installed
from bench.train.__main__ import main
from bench.train.launch import wanted_processes
from bench.train.work import compose, train
from tests.bench.train.chat_model import interrupt_at, write_chat_model, write_sharegpt

SMALL = [
    "loop.length=64",
    "loop.batch=1",
    "loop.epochs=2",
    "loop.lr=1e-2",
    "loop.warmup_steps=3",
    "loop.checkpoint_every=1000",
    "data.held_out=5",
    "model.device=cpu",
    "model.exit_layer=1",
    "train.save_dtype=float32",
    "loop.mixed_precision=no",
    "resume=false",
]


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    write_chat_model(folder / "model")
    write_sharegpt(folder / "data.json", 60)
    return ["model=custom", f"model.path={folder / 'model'}", f"data.path={folder / 'data.json'}", *SMALL]


def held_out_loss(folder: Path) -> float:
    return json.loads((folder / "training.json").read_text())["held_out"]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "changes", "file"),
    [
        ("kangaroo", [], "pytorch_model.bin"),
        ("eagle", ["train.noise=0"], "pytorch_model.bin"),  # noise and dropout are drawn by each process for itself
        ("eagle3", ["train.unrolls=2"], "pytorch_model.bin"),
        ("hydra", ["train.dropout=0"], "hydra_lm_head.pt"),
        ("sps", ["train.hidden=32", "train.heads=2"], "model.safetensors"),
    ],
)
def test_two_processes_train_as_one_with_twice_the_accumulation(overrides, tmp_path, method, changes, file):
    one, two = tmp_path / "one", tmp_path / "two"
    overrides = [f"method={method}", *overrides, *changes]
    assert main([*overrides, "loop.accumulation=4", f"output={one}"]) == 0
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command = [*launcher, "-m", "bench.train", *overrides, "loop.accumulation=2", f"output={two}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert held_out_loss(two) == pytest.approx(held_out_loss(one), abs=1e-5)
    read = load_file if file.endswith("safetensors") else partial(torch.load, weights_only=True)
    weights = [read(folder / file) for folder in (one, two)]
    for name, tensor in weights[0].items():
        # Adam turns the last bits of a gradient near zero into steps of up to the learning rate.
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-4, rtol=1e-4)


def test_processes_that_the_launcher_did_not_start():
    asked = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}
    assert wanted_processes(asked, ["python", "accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "x"]) == 2
    assert wanted_processes(asked, ["accelerate", "launch", "--num-processes=4", "x.py"]) == 4
    assert wanted_processes({**asked, "WORLD_SIZE": "2"}, ["--num_processes", "2"]) == 1
    assert wanted_processes({}, ["--num_processes", "2"]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["method=kangarooo"], "method=kangarooo: unknown; did you mean kangaroo?"),
        (["method=vanilla"], "method=vanilla: there is nothing to train; valid: eagle"),
        (["loop.lrr=1"], "loop.lrr: unknown override; did you mean loop.lr?"),
        (["data.path="], "data.path is missing: give a ShareGPT JSON or JSONL file, or joey"),
        (["method.variant=mlp"], "train.variant=mlp: unknown; valid: kangaroo, kangaroo_head"),
        (["method=sps", "train.learns=texts"], "train.learns=texts: unknown; did you mean text?"),
        (["method=hydra", "train.architecture=mpl"], "train.architecture=mpl: unknown; did you mean mlp?"),
        (["train.start_from=/nowhere/none"], "train.start_from=/nowhere/none: no such folder"),
        (["method=kangaroo", "model.path=/nowhere"], "/nowhere"),
        (["data.path=/nowhere.json"], "data.path=/nowhere.json: No such file or directory"),
        (["loop.length=999"], "loop.length=999: the context of custom is 256 tokens"),
        (["method.exit_layer=7"], "method.exit_layer=7: must be between 0 and the model's 3 layers"),
        (["output=???"], "output is missing: give output=VALUE"),
        (["loop.batch=abc"], "loop.batch=abc: must be an integer"),
        (["loop.batch=1.5"], "loop.batch=1.5: must be an integer"),
        (["loop.lr=abc"], "loop.lr=abc: must be a number"),
        (["loop.epochs=inf"], "loop.epochs=Infinity: must be a number"),
        (["loop.betas=[a,b]"], 'loop.betas=["a", "b"]: must be [a number, ...]'),
        (["method.exit_layer=1.5"], "train.exit_layer=1.5: must be an integer"),
        (["method=medusa", "train.heads=abc"], "train.heads=abc: must be an integer"),
        (["train.save_dtype=int64"], "train.save_dtype=int64 is unknown"),
        (["data.held_out=-5"], "data.held_out=-5: must be an integer of at least 0"),
        (["data.limit=abc"], "data.limit=abc: must be an integer or null"),
        (["seed=-1"], "seed=-1: must be 0 or above"),
        (["threads=0"], "threads=0: must be at least 1"),
        (["resume=maybe"], "resume=maybe: must be true or false"),
        (["output=/proc/nowhere"], "output=/proc/nowhere: No such file or directory; valid: a folder that"),
    ],
)
def test_bad_input_is_one_line_and_status_2(overrides, tmp_path, capsys, changes, message):
    assert main([*overrides, f"output={tmp_path}", *changes]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty; a ShareGPT JSON list or JSONL is wanted"),
        ("[]", "no conversation to train on: 0 without assistant tokens in their first 64 tokens"),
        ('{"id": 1}\n[3]\n', "no conversation to train on: 2 malformed (first: line 1: no list under 'conversations')"),
        ('[{"conversations": [{"from": "human", "value": "w1"}]}]', "no conversation to train on: 1 without assistant"),
    ],
)
def test_text_with_nothing_to_learn_is_one_line(overrides, tmp_path, capsys, content, message):
    data = tmp_path / "data.json"
    data.write_text(content)
    assert main([*overrides, f"data.path={data}", f"output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert f"data.path={data}: {message}" in error and error.count("\n") == 1


def test_malformed_conversations_are_counted_and_training_goes_on(overrides, tmp_path, capsys):
    good = Path(next(text for text in overrides if text.startswith("data.path=")).partition("=")[2])
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"id": "bad"}, *json.loads(good.read_text()), 7]))
    assert main([*overrides, f"data.path={data}", f"output={tmp_path / 'out'}", "loop.epochs=1"]) == 0
    assert "2 malformed left out (first: record 0: no list under 'conversations')" in capsys.readouterr().out
    assert (tmp_path / "out" / "pytorch_model.bin").exists()


def test_a_full_disk_keeps_the_last_state(overrides, tmp_path, capsys, monkeypatch):
    """A limit on the size of files stands in for the disk. Before it an interrupted run, after it a continued one."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    changes = [*overrides, "loop.checkpoint_every=2", "loop.accumulation=1", "threads=1"]
    assert main([*changes, f"output={whole}"]) == 0
    resumed = [*changes, "resume=true", f"output={cut}"]
    interrupt_at(3, monkeypatch)
    assert main(resumed) == 130
    assert "the same command continues" in capsys.readouterr().err
    monkeypatch.undo()
    before = (cut / "training_state.pt").read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        status = main(resumed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err.splitlines()[-1]
    assert status == 2 and f"output={cut}: training_state.pt cannot be written (File too large)" in error
    assert error.endswith("the file that was there is untouched")
    assert (cut / "training_state.pt").read_bytes() == before
    assert sorted(file.name for file in cut.iterdir()) == ["log.csv", "training_state.pt"]
    assert main(resumed) == 0
    assert (cut / "pytorch_model.bin").read_bytes() == (whole / "pytorch_model.bin").read_bytes()


def test_an_unreadable_state_is_named(overrides, tmp_path, capsys):
    (tmp_path / "training_state.pt").write_bytes(b"half a file")
    resumed = [*overrides[:-1], "resume=true", f"output={tmp_path}"]
    assert main(resumed) == 2
    assert "training_state.pt: not readable as a training state" in capsys.readouterr().err
    assert train(compose(installed(), [*overrides, f"output={tmp_path}"]))
