from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from bench.texts import read
from bench.train import conversations as c
from bench.train.source import chat_format
from methods.errors import UserError
from tests.bench.train.chat_model import NO_SYSTEM, SPECIAL, WORDS, model_settings, tokenizer

TOKENIZER = tokenizer()
IDS = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}


def render(chat: c.Messages, open_turn: bool) -> str:
    return TOKENIZER.apply_chat_template(chat, tokenize=False, add_generation_prompt=open_turn)


def turns(*texts: str) -> dict:
    return {"conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]}


def encode(record: dict, length: int = 100) -> c.Encoded:
    return c.encode(c.messages(record), render, TOKENIZER, eos_token_ids=[2], length=length)


def encode_all(records: list, length: int = 100) -> c.Corpus:
    named = ((f"record {i}", record) for i, record in enumerate(records))
    return c.encode_all(named, render, TOKENIZER, eos_token_ids=[2], length=length, source="x.json")


def words(encoded: c.Encoded, chosen: np.ndarray) -> str:
    names = [*SPECIAL, *WORDS]
    return " ".join(names[i] for i in encoded.tokens[chosen])


def test_hand_checked_mask_over_two_turns():
    encoded = encode(turns("w0 w1", "w2 w3", "w4", "w2"))
    expected = "<s> <user> w0 w1 <bot> w2 w3 </s> <user> w4 <bot> w2 </s>".split()
    assert encoded.tokens.tolist() == [IDS[word] for word in expected]
    assert "".join("01"[int(m)] for m in encoded.assistant) == "0000011100011"
    assert words(encoded, encoded.assistant) == "w2 w3 </s> w2 </s>"


def test_truncation_cuts_tokens_and_mask_alike():
    corpus = encode_all([turns("w0 w1", "w2 w3", "w4", "w2"), turns("w0", "w1")], length=7)
    cut, whole = corpus.conversations
    assert words(cut, cut.assistant) == "w2 w3" and len(cut.tokens) == 7
    assert words(whole, whole.assistant) == "w1 </s>"
    assert (corpus.truncated, corpus.silent) == (1, 0)
    assert len(encode_all([turns("w0", "w1")], length=5).conversations[0].tokens) == 5
    assert encode_all([turns("w0", "w1")], length=6).truncated == 0  # exactly full is not cut


def test_an_answer_that_repeats_the_prompt_is_marked_where_it_is_said():
    encoded = encode(turns("w5", "w5", "w5", "w5 w5"))
    assert "".join("01"[int(m)] for m in encoded.assistant) == "000011000111"


def test_a_template_without_bos_gets_the_tokenizers_special_tokens_once():
    assert (encode(turns("w0", "w1")).tokens == IDS["<s>"]).sum() == 1


def test_system_leading_answer_and_unanswered_question():
    system = {"from": "system", "value": "w9"}
    record = {"conversations": [system, *turns("w0", "w1", "w2")["conversations"]]}
    assert [m["role"] for m in c.messages(record)] == ["system", "user", "assistant"]
    leading = {"conversations": [{"from": "gpt", "value": "w7"}, *turns("w0", "w1")["conversations"]]}
    assert [m["content"] for m in c.messages(leading)] == ["w0", "w1"]


def test_malformed_records_are_counted_and_the_first_named():
    bad = [{"nothing": 1}, {"conversations": [{"from": "bing", "value": "w1"}]}, 7, turns("w0", "w1", "w2", "w3")]
    bad[3]["conversations"][2]["from"] = "gpt"
    corpus = encode_all([turns("w0", "w1"), *bad, turns("w3")])
    assert (len(corpus.conversations), corpus.tally.malformed, corpus.silent) == (1, 4, 1)
    assert corpus.tally.first_malformed == "record 1: no list under 'conversations'"
    assert "4 malformed left out (first: record 1" in corpus.summary()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"conversations": [{"from": ["human"], "value": "w0"}]}, "turn 0 has no known 'from'"),
        ({"conversations": [{"from": "human", "value": "w0 \ud83d"}]}, "turn 0 has half of a character"),
    ],
)
def test_odd_records_are_malformed(record, reason):
    corpus = encode_all([record, turns("w0", "w1")])
    assert corpus.tally.malformed == 1 and reason in corpus.tally.first_malformed


def test_a_line_nested_too_deep_is_malformed(tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps(turns("w0", "w1")) + "\n" + "[" * 200_000 + "\n")
    corpus = c.encode_all(read(tmp_path / "data.jsonl"), render, TOKENIZER, eos_token_ids=[2], length=9, source="x")
    assert len(corpus.conversations) == 1 and corpus.tally.first_malformed.startswith("line 2: not valid JSON")


@pytest.mark.parametrize("answer", ["Hello there.", "Hello there.\n", "Hello there. "])
def test_the_end_of_a_turn_is_marked_behind_white_space_too(answer):
    folder = Path(c.__file__).parents[1] / "assets" / "joey"
    tokenizer, joeys = chat_format(folder, model_settings(folder))
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    encoded = c.encode(c.messages(turns("Hi", answer)), joeys, tokenizer, eos_token_ids=[end], length=99)
    marked = encoded.tokens[encoded.assistant]
    assert marked[-1] == end and tokenizer.decode(marked[:-1]).strip() == "Hello there."
    assert not encoded.assistant[encoded.tokens == end][:-1].any()


def test_a_conversation_that_the_chat_template_refuses_is_malformed(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    (tmp_path / "no_system.jinja").write_text(NO_SYSTEM)
    _, strict = chat_format(tmp_path, model_settings(tmp_path, chat_template=str(tmp_path / "no_system.jinja")))
    refused = {"conversations": [{"from": "system", "value": "w9"}, *turns("w0", "w1")["conversations"]]}
    records = enumerate([turns("w0", "w1"), refused])
    corpus = c.encode_all(records, strict, TOKENIZER, eos_token_ids=[2], length=9, source="x.json")
    assert (len(corpus.conversations), corpus.tally.malformed) == (1, 1)
    assert corpus.tally.first_malformed.startswith("1: ") and "no system turn" in corpus.tally.first_malformed


def test_nothing_left_is_one_line():
    with pytest.raises(UserError, match=r"^data.path=x.json: no conversation to train on: 1 malformed \(first: rec.*$"):
        encode_all([{"nothing": 1}])
    with pytest.raises(UserError, match="1 without assistant tokens in their first 4 tokens"):
        encode_all([turns("w0 w1", "w2")], length=4)


def test_list_and_lines_read_the_same(tmp_path):
    records = [turns("w0", "w1"), turns("w2", "w3")]
    as_list, as_lines = tmp_path / "a.json", tmp_path / "a.jsonl"
    as_list.write_text(json.dumps(records, indent=1))
    as_lines.write_text("\n".join(json.dumps(r) for r in records) + "\n\n{broken\n")
    assert [r for _, r in read(as_list)] == records
    found = list(read(as_lines))
    assert [r for _, r in found[:2]] == records
    assert found[2][0] == "line 4" and isinstance(found[2][1], ValueError)
    corpus = c.encode_all(iter(found), render, TOKENIZER, eos_token_ids=[2], length=50, source="a")
    assert corpus.tally.malformed == 1 and corpus.tally.first_malformed.startswith("line 4: not valid JSON")


SQUEEZED = gzip.compress(b"[]" * 99, mtime=0)  # without the time: all processes of one session must name tests alike


@pytest.mark.parametrize("content", [b"[]", SQUEEZED[:-12], SQUEEZED[:10] + b"\xff" * 9])
def test_damaged_compressed_files(tmp_path, content):
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"data\.jsonl\.gz: truncated, or not a gzip file; compress it again$"):
        list(read(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"", "the file is empty"), (b"[{", "not valid JSON"), (b"\xff\xfe[1", "not UTF-8")],
)
def test_unreadable_files(tmp_path, content, message):
    path = tmp_path / "data.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["fifo", "folder", "nul\0"])
def test_what_is_no_file_is_not_opened(tmp_path, name):
    if name != "nul\0":
        (os.mkfifo if name == "fifo" else os.mkdir)(tmp_path / name)
    with pytest.raises(
        UserError, match=r"^data\.path=.*(not a file|embedded null byte); a ShareGPT JSON list or JSONL"
    ):
        list(read(tmp_path / name))
