"""Whole runs on a tiny model: records, exit status, resume, and one clear line for every mistake."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.assembly import Parts
from bench.config import installed
from bench.records.identity import HASHES
from bench.run import main
from bench.settings import Run
from methods.digest import file_sha256
from tests.bench.small_run import QUESTIONS, SmallRun, lines, refused, write_questions
from tests.gguf_file import write_gguf
from tests.joey import ASSETS
from tests.tiny import reference_model

SIDES = ("method", "baseline")
ROOT = Path(__file__).parents[2]


def test_a_run_records_both_sides_and_says_so(small: SmallRun, tmp_path: Path, capsys) -> None:
    overrides = small.overrides(results_dir=tmp_path)
    assert main(overrides) == 0
    printed = capsys.readouterr().out
    assert "speedup" in printed and "translation" in printed and "recorded in" in printed
    (folder,) = (file.parent for file in tmp_path.glob("runs/model/kangaroo/*/run.json"))
    answers, baseline = lines(folder / "answers.jsonl"), lines(folder / "baseline.jsonl")
    wanted = [(question["question_id"], repeat) for repeat in (0, 1) for question in QUESTIONS]
    assert [(answer["question_id"], answer["repeat"]) for answer in answers] == wanted
    for answer, plain in zip(answers, baseline, strict=True):
        ours, theirs = answer["choices"][0], plain["choices"][0]
        assert ours["token_ids"] == theirs["token_ids"] and ours["prompt_sha256"] == theirs["prompt_sha256"]
        assert {verdict["verdict"] for verdict in ours["fidelity"]} == {"equal"}
        for side in (ours, theirs):
            assert [len(tokens) for tokens in side["token_ids"]] == side["new_tokens"]
            assert sum(side["accept_lengths"]) + len(side["turns"]) == sum(side["new_tokens"])
            assert [len(steps) for steps in side["steps"]] == side["decoding_steps"]
            spent = [sum(times) for times in zip(side["prefill_s"], side["draft_s"], side["verify_s"], strict=True)]
            assert all(0 < part <= wall for part, wall in zip(spent, side["wall_time"], strict=True))
        assert set(theirs["accept_lengths"]) <= {1}
    assert len(answers[0]["choices"][0]["turns"]) == 2
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics["subtasks"]) == ["mt_bench", "translation", "qa"] and metrics["overall"]["questions"] == 5
    info = json.loads((folder / "run.json").read_text())
    assert info["threads"] == 1 and info["dtype"] == "float32" and info["packages"]["torch"] == torch.__version__
    assert "target/model.safetensors" in info["checkpoint_sha256"]
    assert "draft/pytorch_model.bin" in info["checkpoint_sha256"]
    before = (folder / "answers.jsonl").read_bytes()
    assert main(overrides) == 0, "a finished run only prints its table again"
    assert "speedup" in capsys.readouterr().out and (folder / "answers.jsonl").read_bytes() == before


def test_lines_are_what_spec_benchs_own_scripts_read(small: SmallRun, tmp_path: Path) -> None:
    """speed.py sums new_tokens and wall_time of choice 0 and extends accept_lengths; equal.py compares turns."""
    assert main(small.overrides(results_dir=tmp_path, repeats=1)) == 0
    (folder,) = (file.parent for file in tmp_path.glob("runs/*/*/*/run.json"))
    for file in ("answers.jsonl", "baseline.jsonl"):
        for record in lines(folder / file):
            choice = record["choices"][0]
            assert sum(choice["new_tokens"]) / sum(choice["wall_time"]) > 0
            assert all(isinstance(length, int) for length in choice["accept_lengths"])
            assert all(isinstance(turn, str) for turn in choice["turns"])
            assert isinstance(record["question_id"], int) and isinstance(record["category"], str)


def test_the_second_turns_prompt_holds_the_first_answer(small: SmallRun, tmp_path: Path) -> None:
    assert main(small.overrides(results_dir=tmp_path, repeats=1, question_ids="[81]")) == 0
    (file,) = tmp_path.glob("runs/*/*/*/answers.jsonl")
    (choice,) = lines(file)[0]["choices"]
    first, second = choice["prompt_tokens"]
    # Special tokens are no part of the answer as text.
    answered = [token for token in choice["token_ids"][0] if token > 6]
    assert second >= first + len(answered) + len("w4 w5".split())


def test_stopped_runs_go_on_where_they_were(small: SmallRun, tmp_path: Path) -> None:
    """Killed without warning, with a torn line and a baseline whose answer is missing on disk."""
    overrides = small.overrides(results_dir=tmp_path, max_new_tokens=60, repeats=4)
    process = subprocess.Popen([sys.executable, "-m", "bench.run", *overrides], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (files := list(tmp_path.glob("runs/*/*/*/answers.jsonl"))) or len(files[0].read_bytes()) < 4000:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = files[0].parent
    kept = lines_that_are_whole(folder / "answers.jsonl")
    with (folder / "baseline.jsonl").open("a") as file:
        file.write(json.dumps({"question_id": 999, "repeat": 0}) + "\n" + '{"question_id": 81, "re')
    with (folder / "answers.jsonl").open("a") as file:
        file.write('{"question_id": 24')
    assert main(small.overrides(results_dir=tmp_path, max_new_tokens=60, repeats=4)) == 0
    answers, baseline = lines(folder / "answers.jsonl"), lines(folder / "baseline.jsonl")
    assert answers[: len(kept)] == kept
    assert len({(a["question_id"], a["repeat"]) for a in answers}) == len(answers) == 20
    assert [(a["question_id"], a["repeat"]) for a in answers] == [(b["question_id"], b["repeat"]) for b in baseline]
    assert len(list(folder.parent.iterdir())) == 1


def lines_that_are_whole(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.parametrize(
    ("number", "resume", "status", "advice"),
    [
        (signal.SIGINT, "true", 130, "the same command continues"),
        (signal.SIGINT, "False", 130, "the same command without resume=false"),
        (signal.SIGTERM, "true", 143, "the same command continues"),
    ],
)
def test_interrupting_says_how_to_go_on(
    small: SmallRun, tmp_path: Path, number: int, resume: str, status: int, advice: str
) -> None:
    overrides = small.overrides(results_dir=tmp_path, max_new_tokens=60, repeats=12, resume=resume)
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.run", *overrides], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/*/*/answers.jsonl")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status and advice in error and "Traceback" not in error


@pytest.mark.parametrize(
    "changed", ["question.jsonl", "template.jinja", "model/tokenizer_config.json", "model/tokenizer.json"]
)
def test_a_file_with_another_content_starts_a_new_folder(tmp_path: Path, capsys, changed: str) -> None:
    small = SmallRun.make(tmp_path)
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }} {% endfor %}<bot>")
    overrides = small.overrides(repeats=1, limit=1, model__chat_template=template)
    assert main(overrides) == 0 and main(overrides) == 0 and len(small.folders()) == 1
    with (tmp_path / changed).open("a") as file:
        file.write("\n")
    capsys.readouterr()
    assert main(overrides) == 0 and len(small.folders()) == 2
    assert "questions_sha256 was" in (error := capsys.readouterr().err) or f'"{Path(changed).name}": ' in error


def test_a_run_from_before_a_hash_was_recorded_is_left_as_it_is(small: SmallRun, tmp_path: Path, capsys) -> None:
    overrides = small.overrides(results_dir=tmp_path, repeats=1, limit=1)
    assert main(overrides) == 0
    (file,) = tmp_path.glob("runs/*/*/*/run.json")
    info = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in info.items() if key not in HASHES}))
    assert main(overrides) == 0 and "_sha256 was null" in capsys.readouterr().err
    assert len(list(tmp_path.glob("runs/*/*/*/run.json"))) == 2


def test_a_second_process_on_one_folder_is_refused(small: SmallRun, tmp_path: Path, capsys) -> None:
    overrides = small.overrides(results_dir=tmp_path, repeats=1, limit=1)
    assert main(overrides) == 0
    (folder,) = (file.parent for file in tmp_path.glob("runs/*/*/*/run.json"))
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process is writing" in refused(capsys, overrides)


def test_prompts_over_the_context_are_skipped_and_leave_both_sides(small: SmallRun, tmp_path: Path, capsys) -> None:
    long = {"question_id": 300, "category": "rag", "turns": ["w1 " * 400]}
    file = write_questions(tmp_path / "q.jsonl", [QUESTIONS[3], long])
    assert main(small.overrides(results_dir=tmp_path, data__path=file, repeats=1)) == 0
    (folder,) = (found.parent for found in tmp_path.glob("runs/*/*/*/run.json"))
    (failure,) = lines(folder / "failures.jsonl")
    assert failure["status"] == "skipped" and "no room in a context of 256" in failure["error"] and failure["turn"] == 0
    assert {record["question_id"] for record in lines(folder / "answers.jsonl")} == {241}
    assert {record["question_id"] for record in lines(folder / "baseline.jsonl")} == {241}
    assert "1 question skipped" in capsys.readouterr().out


def test_a_run_in_which_every_question_was_skipped_says_so(small: SmallRun, tmp_path: Path, capsys) -> None:
    assert main(small.overrides(results_dir=tmp_path, model__context=4, repeats=1)) == 1
    assert "every question was skipped: no prompt leaves room" in capsys.readouterr().err


def test_a_custom_model_is_filed_under_what_its_path_ends_in(small: SmallRun, tmp_path: Path, capsys) -> None:
    (tmp_path / "my-model").symlink_to(small.folder / "model")
    given = {"results_dir": tmp_path, "repeats": 1, "limit": 1, "model__path": f"{tmp_path}/my-model/"}
    assert main(small.overrides(**given)) == main(small.overrides(**given, model__name="mine")) == 0
    assert {file.parents[2].name for file in tmp_path.glob("runs/*/*/*/run.json")} == {"my-model", "mine"}
    capsys.readouterr()
    assert main(small.overrides(**given, model="vicuna-7b", method__variant="kangaroo")) == 0
    assert "taken for vicuna-7b; if it is another model, model=custom is meant" in capsys.readouterr().err
    assert "joey is built in and lies elsewhere; model=custom is meant" in refused(
        capsys, small.overrides(**given, model="joey")
    )


@pytest.mark.parametrize("model", [["model=joey"], ["model=custom", f"model.path={ASSETS}"]])
def test_the_built_in_model_is_a_demonstration_by_whatever_name(model: list[str]) -> None:
    settings = Run.of(installed().compose("config", ["method=vanilla", *model]))
    assert Parts.gather(settings, rehearsed=True).information("")["demonstration"]


def test_nan_logits_fail_the_turn_and_the_run_goes_on(small: SmallRun, tmp_path: Path, monkeypatch) -> None:
    from bench import session

    build = session.build

    def broken(parts):
        sides = build(parts)
        sides.target.weights.embedding[sides.target.weights.embedding.shape[0] - 1] = float("nan")
        return sides

    monkeypatch.setattr(session, "build", broken)
    bad = {"question_id": 300, "category": "rag", "turns": ["w59"]}  # the last word of the vocabulary
    file = write_questions(tmp_path / "q.jsonl", [bad, QUESTIONS[3]])
    assert main(small.overrides(results_dir=tmp_path, data__path=file, repeats=1, max_new_tokens=2)) == 1
    (folder,) = (found.parent for found in tmp_path.glob("runs/*/*/*/run.json"))
    failures = lines(folder / "failures.jsonl")
    assert failures[0]["question_id"] == 300 and failures[0]["status"] == "failed" and "NaN" in failures[0]["error"]


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 13 GiB.\nand more")


def test_running_out_of_memory_in_a_turn_fails_the_turn(small: SmallRun, tmp_path: Path, monkeypatch) -> None:
    """In warm-up it is left to the recorded turns; in the check of fidelity it fails the turn that is checked."""
    from methods.decoder import Decoder

    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "generate", out_of_memory)
        assert main(small.overrides(results_dir=tmp_path, repeats=1, question_ids=241)) == 1
    monkeypatch.setattr("bench.session.compare", out_of_memory)
    assert main(small.overrides(results_dir=tmp_path, repeats=1, question_ids=242)) == 1
    failures = [record for file in tmp_path.glob("runs/*/*/*/failures.jsonl") for record in lines(file)]
    said = {record["question_id"]: record["error"] for record in failures}
    assert said[241] in [f"{side}: out of memory (CUDA out of memory. Tried to allocate 13 GiB.)" for side in SIDES]
    assert said[242].startswith("fidelity: out of memory")


def test_a_tokenizer_of_another_model_fails_the_turn(small: SmallRun, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("bench.chat.Chat.prompt_ids", lambda chat, messages: [1, 67] if len(messages) == 1 else [])
    assert main(small.overrides(results_dir=tmp_path, repeats=1, question_ids=241)) == 1
    (file,) = tmp_path.glob("runs/*/*/*/failures.jsonl")
    assert "token 67 of the prompt is beyond the model's vocabulary of 67" in lines(file)[0]["error"]


def test_threads_null_is_all_of_them_again(small: SmallRun, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("bench.session.DEFAULT_THREADS", 2)
    used = torch.get_num_threads()
    try:
        for threads, now in ((1, 1), ("null", 2)):
            assert main(small.overrides(results_dir=tmp_path, repeats=1, limit=1, threads=threads)) == 0
            assert torch.get_num_threads() == now
    finally:
        torch.set_num_threads(used)


def test_a_mismatch_fails_the_run(small: SmallRun, tmp_path: Path, monkeypatch) -> None:
    from bench import session
    from methods.vanilla import Vanilla

    build = session.build

    def other_baseline(parts):
        from dataclasses import replace

        from methods.decoder import Decoder
        from methods.engine.checkpoint import load_model

        sides = build(parts)
        other = load_model(parts.folder, weights="random", seed=5)
        return replace(sides, baseline=Decoder(other, Vanilla(other)))

    monkeypatch.setattr(session, "build", other_baseline)
    assert main(small.overrides(results_dir=tmp_path, repeats=1, limit=1)) == 1
    (folder,) = (found.parent for found in tmp_path.glob("runs/*/*/*/run.json"))
    verdicts = [v["verdict"] for a in lines(folder / "answers.jsonl") for v in a["choices"][0]["fidelity"]]
    assert "mismatch" in verdicts


def test_a_broken_draft_and_an_unpinned_model_are_warned_of(tmp_path: Path, monkeypatch, capsys) -> None:
    small = SmallRun.make(tmp_path)
    weights = torch.load(tmp_path / "adapter" / "pytorch_model.bin", weights_only=True)
    torch.save({n: torch.full_like(t, torch.nan) for n, t in weights.items()}, tmp_path / "adapter/pytorch_model.bin")
    commit = "0123456789" * 4
    cached = tmp_path / "hub" / "models--house--tiny"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    (tmp_path / "model").rename(cached / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for path, told in (("house/tiny", True), (f"house/tiny@{commit}", False)):
        assert main(small.overrides(model__path=path, repeats=1, limit=1)) == 0
        printed = capsys.readouterr().out
        assert re.search(r"! \d+ drafts with a confidence that is not a number: are the draft's weights", printed)
        assert (f"! not pinned to a commit: house/tiny@{commit} is what the hub had" in printed) == told


def test_without_a_baseline_there_is_no_speedup(small: SmallRun, tmp_path: Path) -> None:
    assert main(small.overrides(results_dir=tmp_path, baseline="none", repeats=1, limit=1)) == 0
    (folder,) = (found.parent for found in tmp_path.glob("runs/*/*/*/run.json"))
    assert not (folder / "baseline.jsonl").exists()
    assert json.loads((folder / "metrics.json").read_text())["overall"]["speedup"] is None


def test_random_weights_need_no_weight_files(small: SmallRun, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(small.folder / "model", tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    changes = {"method": "vanilla", "method__checkpoint": None, "model__path": tmp_path / "bare"}
    overrides = small.overrides(results_dir=tmp_path, model__weights="random", repeats=1, limit=1, **changes)
    assert main(overrides) == 0


def test_one_question_id_needs_no_brackets(small: SmallRun, tmp_path: Path) -> None:
    for written in ("161", "[161]"):
        assert main(small.overrides(results_dir=tmp_path, repeats=1, question_ids=written)) == 0
    (file,) = tmp_path.glob("runs/*/*/*/answers.jsonl")
    assert [record["question_id"] for record in lines(file)] == [161]


def test_a_file_of_prompts_is_measured_and_named_in_the_record(small: SmallRun, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("w1 w2\n\nw3\n")
    assert main(small.overrides(results_dir=tmp_path, repeats=1, data__path=file, task="mine", question_ids=3)) == 0
    (folder,) = (answers.parent for answers in tmp_path.glob("runs/*/*/*/answers.jsonl"))
    info, digest = json.loads((folder / "run.json").read_text()), hashlib.sha256(file.read_bytes()).hexdigest()
    assert info["config"]["questions"]["name"] == "spec_bench" and info["config"]["data"]["path"] == str(file)
    assert (info["questions_file"], info["questions_sha256"]) == (str(file), digest)
    assert [(line["question_id"], line["subtask"]) for line in lines(folder / "answers.jsonl")] == [(3, "mine")]
    assert list(json.loads((folder / "metrics.json").read_text())["subtasks"]) == ["mine"]


def test_a_set_with_text_ids_and_system_messages_is_measured(small: SmallRun, tmp_path: Path) -> None:
    records = [
        {"id": "a", "messages": [{"role": "system", "content": "w9"}, {"role": "user", "content": "w1"}]},
        {"id": "b", "messages": [{"role": "user", "content": "w1"}]},
        {"id": "c", "prompt": "w2", "category": "other"},
    ]
    overrides = small.overrides(results_dir=tmp_path, repeats=1, data__path=None, warmup_turns=2, question_ids="[a,b]")
    source = f"questions.source={write_questions(tmp_path / 'mine.jsonl', records)}"
    assert main([*overrides, "questions=custom", source]) == 0
    (file,) = tmp_path.glob("runs/*/*/*/answers.jsonl")
    answers = lines(file)
    assert [answer["question_id"] for answer in answers] == ["a", "b"]
    assert len({answer["choices"][0]["prompt_sha256"][0] for answer in answers}) == 2, "one has a system message"


def test_help_is_quick_and_needs_no_torch() -> None:
    code = "import sys; from bench.run import main; main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("usage:") and done.stdout.endswith("False\n")


@pytest.mark.parametrize("given", ["", "rest.safetensors"])
def test_a_datastore_is_part_of_what_was_measured(small: SmallRun, tmp_path: Path, given: str) -> None:
    from bench.binder import bind, file_hashes

    (tmp_path / "rest.safetensors").write_bytes(b"store")
    node = installed().compose("config", ["method=rest", f"method.datastore={tmp_path / given}"]).values["method"]
    ((key, path),) = bind(node, "method").fetch().files()
    assert key == "method.datastore" and file_hashes(path)["rest.safetensors"] == hashlib.sha256(b"store").hexdigest()


def test_sampled_answers_are_held_against_the_baselines_token_by_token(small: SmallRun, tmp_path: Path) -> None:
    assert main(small.overrides(results_dir=tmp_path, temperature=0.8, seed=3, repeats=1)) == 0
    (folder,) = (file.parent for file in tmp_path.glob("runs/*/*/*/run.json"))
    overall = json.loads((folder / "metrics.json").read_text())["overall"]
    assert (overall["equal"], overall["near_tie"], overall["mismatch"]) == (7, 0, 0)
    greedy = SmallRun(small.folder)
    assert main(greedy.overrides(results_dir=tmp_path / "greedy", repeats=1)) == 0
    (other,) = (file.parent for file in (tmp_path / "greedy").glob("runs/*/*/*/run.json"))
    texts = [[line["choices"][0]["turns"] for line in lines(f / "answers.jsonl")] for f in (folder, other)]
    assert texts[0] != texts[1]


def test_a_gguf_target_is_measured_and_its_hash_is_recorded(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", reference_model("llama_gqa"), "Q8_0")
    questions = write_questions(tmp_path / "q.jsonl", [{"question_id": 1, "category": "qa", "turns": ["ab a"]}])
    small = SmallRun(tmp_path)
    settings = {"model__path": file, "method": "lookahead", "method__checkpoint": None, "data__path": questions}
    assert main(small.overrides(**settings)) == 0
    (folder,) = small.folders()
    info = json.loads((folder / "run.json").read_text())
    assert info["checkpoint_sha256"] == {"target/tiny.gguf": file_sha256(file)}
