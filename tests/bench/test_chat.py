"""Chat templates: Vicuna's is FastChat's, character for character; special tokens stand where they should."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from bench.chat import TEMPLATES, Chat, Message, read_template
from bench.questions.formats import read_questions
from methods.errors import UserError
from methods.hf import load_tokenizer
from tests.bench.train.chat_model import write_chat_model

SYSTEM_FREE = [
    ["Hello"],
    ["Two turns", "and the second"],
    ["  spaces kept \n\n", "\ttabs\t"],
    ["USER: a trap ASSISTANT: b</s>", "{{ braces }} {% raw %}"],
    ["naïve Übung 漢字 🙂", "<script>alert(1)</script> & more"],
]


def vicuna(folder: Path) -> Chat:
    write_chat_model(folder)
    return Chat(folder, "vicuna")


def rendered(chat: Chat, turns: list[str], answers: list[str]) -> str:
    messages = []
    for index, turn in enumerate(turns):
        messages.append(Message("user", turn))
        if index < len(turns) - 1:
            messages.append(Message("assistant", answers[index]))
    return chat.render(messages)


def fastchat(turns: list[str], answers: list[str]) -> str:
    conversation = pytest.importorskip("fastchat.conversation").get_conv_template("vicuna_v1.1")
    for index, turn in enumerate(turns):
        conversation.append_message(conversation.roles[0], turn)
        conversation.append_message(conversation.roles[1], answers[index] if index < len(turns) - 1 else None)
    return conversation.get_prompt()


def test_vicunas_template_is_fastchats(tmp_path: Path) -> None:
    chat, rng = vicuna(tmp_path), random.Random(0)
    alphabet = ["a", "Z", " ", "\n", "'", '"', "<", "{", "}", "%", "\\", "é", "漢", "</s>", "USER:", "ASSISTANT:"]
    drawn = [
        ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(rng.randint(1, 4))] for _ in range(200)
    ]
    for turns in SYSTEM_FREE + drawn:
        # FastChat stands an empty message for one that is still open, so an answer is never empty.
        answers = [f"{turn}!" for turn in turns]
        assert rendered(chat, turns, answers) == fastchat(turns, answers)


def test_vicunas_template_on_spec_bench(tmp_path: Path) -> None:
    file = os.environ.get("SPEC_BENCH_QUESTIONS")
    if not file:
        pytest.skip("SPEC_BENCH_QUESTIONS does not name Spec-Bench's question.jsonl")
    chat, checked = vicuna(tmp_path), 0
    for question in read_questions(Path(file), {}, []):
        for count in range(1, len(question.turns) + 1):
            turns, answers = list(question.turns[:count]), ["An answer.", "And another."]
            assert rendered(chat, turns, answers) == fastchat(turns, answers)
            checked += 1
    assert checked == 560


def test_the_bos_token_stands_once(tmp_path: Path) -> None:
    write_chat_model(tmp_path)
    chat = Chat(tmp_path)
    bos = chat.tokenizer.bos_token_id
    ids = chat.prompt_ids([Message("user", "w1 w2")])
    assert bos is None or ids.count(bos) == 1
    assert chat.encode((chat.tokenizer.bos_token or "") + "w1").count(bos) <= 1


def test_special_tokens_are_no_text(tmp_path: Path) -> None:
    write_chat_model(tmp_path)
    chat = Chat(tmp_path)
    words = chat.tokenizer("w3 w4", add_special_tokens=False).input_ids
    assert chat.decode([*words, chat.tokenizer.eos_token_id]) == "w3 w4"


def test_unknown_templates_and_missing_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.chat_template=vicunna: .*did you mean vicuna"):
        read_template("vicunna")
    with pytest.raises(UserError, match=r"model.path=.*no usable tokenizer"):
        Chat(tmp_path / "empty")
    write_chat_model(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"chat_template"', '"unused"'))
    with pytest.raises(UserError, match=r"model.chat_template: the tokenizer in .* has none; give one of vicuna"):
        Chat(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "no usable tokenizer (KeyError: 'added_tokens')"),
        ("tokenizer.json", "[]", "no usable tokenizer (TypeError"),
        ("tokenizer.json", "{", "no usable tokenizer (Expecting property name"),
        ("tokenizer_config.json", "5", "no usable tokenizer ("),  # of another type from version to version
        ("tokenizer_config.json", '{"tokenizer_class": 5}', "no usable tokenizer (AttributeError"),
        ("tokenizer_config.json", '{"model_max_length": "x"}', "no usable tokenizer ("),
        (
            "tokenizer_config.json",
            '{"chat_template": 5}',
            "model.chat_template=the tokenizer's own: cannot be rendered",
        ),
    ],
)
def test_files_of_another_shape_are_no_tokenizer(tmp_path: Path, name: str, content: str, message: str) -> None:
    write_chat_model(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        Chat(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{% for", "TemplateSyntaxError: unexpected"),
        (b"{{ raise_exception('no user') }}", "TemplateError: no user"),
        (b"{{ nothing.at.all }}", "UndefinedError: 'nothing' is undefined"),
        (b"{{ 1 / 0 }}", "ZeroDivisionError"),
        (b"\xff", "not readable ('utf-8' codec"),
    ],
)
def test_a_template_that_fails_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    write_chat_model(tmp_path)
    file = tmp_path / "own.jinja"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"model.chat_template={file}: .*{re.escape(reason)}"):
        Chat(tmp_path, str(file))


def test_templates_that_ship_render(tmp_path: Path) -> None:
    write_chat_model(tmp_path)
    for file in TEMPLATES.glob("*.jinja"):
        assert "What?" in Chat(tmp_path, file.stem).render([Message("user", "What?")])


def test_a_system_prompt_and_arguments_reach_the_template(tmp_path: Path) -> None:
    write_chat_model(tmp_path, vocab_size=67)
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}{{ m.role }}:{{ m.content }} {% endfor %}{{ mood }}")
    chat = Chat(tmp_path, str(file), "Be brief.", {"mood": "calm"})
    assert chat.render([Message("user", "w1")]) == "system:Be brief. user:w1 calm"
    assert chat.render([Message("system", "w2"), Message("user", "w1")]) == "system:w2 user:w1 calm"
    with pytest.raises(UserError, match=r"model.template_arguments.tokenize: set by the harness itself"):
        Chat(tmp_path, str(file), None, {"tokenize": True})


@pytest.mark.parametrize(
    ("file", "change", "plain"),
    [
        ("tokenizer_config.json", {}, True),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}, True),
        ("config.json", {"model_type": "qwen2"}, False),
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}, False),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a.A", None]}}, False),
        ("tokenizer.json", None, False),
    ],
)
def test_where_tokenizer_json_says_all_no_model_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, change: dict[str, Any] | None, plain: bool
) -> None:
    write_chat_model(tmp_path)
    auto = AutoTokenizer.from_pretrained(tmp_path)
    if change is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(json.dumps({**json.loads((tmp_path / file).read_text()), **change}))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda path: "auto")
    found = load_tokenizer(tmp_path)
    assert (found != "auto") is plain
    if plain:
        assert type(found) is type(auto) and found.special_tokens_map == auto.special_tokens_map
        assert found.backend_tokenizer.to_str() == auto.backend_tokenizer.to_str()
        assert found.chat_template == auto.chat_template and found.all_special_ids == auto.all_special_ids
