"""Which tokenizer a file of token ids belongs to, without loading the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods.digest import sha256
from methods.engine.config import read_json
from methods.engine.gguf import is_gguf, token_texts
from methods.errors import UserError, reading

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Vocabulary:
    """Identity of a tokenizer: two that give every id the same piece of text are the same, whatever their files."""

    size: int  # ids that stand for something
    sha256: str  # of the sorted (id, piece) pairs

    def __str__(self) -> str:
        return f"{self.size} tokens, sha256 {self.sha256[:12]}"

    @classmethod
    def read(cls, folder: Path) -> Vocabulary:
        """Vocabulary of the tokenizer in a checkpoint folder: tokenizer.json, tokenizer.model or vocab.json; or in a
        GGUF file.

        Raises UserError when there is none of them, or it cannot be read.
        """
        if is_gguf(folder):
            return cls._of(dict(enumerate(token_texts(folder))))
        file = next((folder / name for name in FILES if (folder / name).is_file()), None)
        if file is None:
            raise UserError(f"model.path={folder}: no tokenizer; one of {', '.join(FILES)} is wanted")
        with reading(file, "a tokenizer"):
            pieces = _tokenizer_json(read_json(file)) if file.name == FILES[0] else _older(file)
            return cls._of(pieces)

    @classmethod
    def _of(cls, pieces: dict[int, str]) -> Vocabulary:
        return cls(size=len(pieces), sha256=sha256(json.dumps(sorted(pieces.items()), ensure_ascii=True)))


def _tokenizer_json(content: dict[str, Any]) -> dict[int, str]:
    vocab = content["model"]["vocab"]  # piece -> id, or for unigram models a list of (piece, score)
    pieces = _by_id(vocab.items() if isinstance(vocab, dict) else ((p, i) for i, (p, _) in enumerate(vocab)))
    return pieces | _by_id((added["content"], added["id"]) for added in content.get("added_tokens", []))


def _by_id(pairs: Iterable[tuple[Any, Any]]) -> dict[int, str]:
    """(piece, id) pairs as pieces by id. Raises ValueError for what is neither, and for an id that two pieces have."""
    pieces: dict[int, str] = {}
    for piece, number in pairs:
        if type(piece) is not str or type(number) is not int or not 0 <= number < 1 << 31:
            raise ValueError(f"a text and a number are wanted, not {piece!r:.50} and {number!r:.50}")
        if pieces.setdefault(number, piece) != piece:
            raise ValueError(f"id {number} stands for {pieces[number]!r:.50} and for {piece!r:.50}")
    return pieces


def _older(file: Path) -> dict[int, str]:
    """tokenizer.model or vocab.json, with what added_tokens.json adds beside it."""
    if file.name == "vocab.json":
        pieces = _by_id(read_json(file).items())
    else:
        pieces = dict(enumerate(_sentencepieces(file.read_bytes())))
    added = file.with_name("added_tokens.json")
    return pieces | (_by_id(read_json(added).items()) if added.is_file() else {})


def _sentencepieces(model: bytes) -> Iterator[str]:
    """Pieces of a sentencepiece model in the order of their ids (protobuf: field 1 of the model, field 1 of those)."""
    for field, piece in _fields(model):
        if field == 1:
            yield dict(reversed(list(_fields(piece))))[1].decode()


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, value) of a protobuf message's length-delimited fields; the others are stepped over."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 2:
            length, at = _varint(message, at)
            yield tag >> 3, message[at : at + length]
            at += length
        elif kind == 0:
            _, at = _varint(message, at)
        else:
            at += {1: 8, 5: 4}[kind]
    if at > len(message):
        raise ValueError("cut short")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Value of the variable-length integer at `at`, and where the next one begins."""
    value = shift = 0
    while message[at] & 128 and shift < 63:
        value |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | message[at] << shift, at + 1
