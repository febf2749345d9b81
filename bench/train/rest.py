"""REST datastores: conversations or plain text -> tokens and their suffix array in one file.

python -m bench.train method=rest model=vicuna-7b data.path=sharegpt.json output=checkpoints/rest-vicuna-7b
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from bench.chat import chat_files, lacks_bos
from bench.digests import sha256 as file_sha256
from bench.files import make_folder, replace_file
from bench.places import locate
from bench.settings import Model, Text
from bench.sources import Source
from bench.texts import readable
from bench.train.conversations import Render, Tally, named_records
from bench.words import plural
from methods.datastore import CHECKSUM, FILE_NAME, FORMAT, SEPARATOR, VERSION, seal
from methods.digest import sha256 as text_sha256
from methods.engine.hub import resolve
from methods.engine.vocabulary import Vocabulary
from methods.errors import UserError
from methods.hf import load_tokenizer

Tokens = NDArray[np.int32]

CACHE = Path("results") / ".cache"
REMEDY = "build one (bench.train method=rest) and give it as method.datastore=FILE"
SMALL_BYTES = 20e6  # of text: a datastore of less is there in seconds
BYTES_PER_MINUTE = 60e6  # of text rendered, tokenised and sorted on one busy core of 2024
DISK_PER_BYTE = 2.0  # of text: a token of four characters takes eight bytes
ENDINGS = "generation_config.json"  # which tokens end an answer: no text is rendered by that
BATCH = 256  # conversations tokenised together
PIECE_CHARS = 1 << 20  # a plain text is tokenised in pieces of about this length, cut at line ends
LEADS = 256  # first bytes of the code that the suffixes are sorted by
BLOCK = 1 << 16  # tokens handled at once: what is in between stays in the processor's cache


def build(*, model: Model, data: Text, output: str, seed: int) -> Path:
    """Write a datastore for the model's tokenizer and return its path.

    data.path: ShareGPT JSON or JSONL, or a .gz of one, a .txt file (one document), or joey, the built-in generator.
    output: a folder, or a .safetensors file.
    Raises UserError when there is nothing to store, and for whatever is wrong with the input.
    """
    path = data.path
    if not path:
        raise UserError("data.path is missing: give a ShareGPT JSON or JSONL file, a .txt file, or joey")
    folder = resolve(locate(model.path), model.revision, weights=False)
    file = Path(output) if output.endswith(".safetensors") else Path(output) / FILE_NAME
    vocabulary, tally = Vocabulary.read(folder), Tally()
    tokenizer, render = _chat_format(folder, model, path)
    if path.endswith(".txt"):
        documents = _plain_text(Path(path), tokenizer, tally)
    else:
        records = tqdm(
            named_records(path, data.limit, seed), unit="conversation", desc=Path(path).name, delay=5, disable=None
        )
        documents = _rendered(records, render, tokenizer, tally)
    tokens = join(documents)
    left_out = f", {tally.malformed} malformed (first: {tally.first_malformed})" if tally.malformed else ""
    found = plural("document", tally.used) + left_out
    if len(tokens) == 0:
        wanted = "ShareGPT JSON or JSONL is wanted, or plain text in a file whose name ends in .txt"
        raise UserError(f"data.path={path}: no text to store: {found}; {wanted}")
    write(file, tokens, vocabulary)
    print(f"data.path={path}: {found}; {len(tokens)} tokens, {file.stat().st_size} bytes in {file}")
    return file


def prepare(
    *, text: str, model: Model, revision: str | None = None, sha256: str | None = None, cache: Path = CACHE
) -> Path:
    """The datastore of a text for a model's tokenizer, made when it is first wanted.

    text: a path, a URL, or a file of a hub dataset, of that revision and SHA-256 if given. The datastore is kept in the
    cache, named after the content of the text and of what renders and tokenises it: a changed one is made anew, and
    models that agree in these share one.
    """
    source = Source(text, revision, sha256, "method.datastore", "text", REMEDY).fetch()
    folder = resolve(locate(model.path), model.revision, weights=False)
    read = [part for part in chat_files(folder, model.chat_template) if part.name != ENDINGS]
    rendered = [file_sha256(part) for part in read]
    facts = (Vocabulary.read(folder).sha256, file_sha256(source), VERSION, rendered, model.chat[1:])
    file = cache / f"{source.name.partition('.')[0]}-{text_sha256(repr(facts))[:12]}.safetensors"
    if file.is_file():
        return file
    make_folder(str(cache), "cache of datastores")
    with FileLock(file.with_name(f".{file.name}.lock")):
        if file.is_file():  # another run was quicker
            return file
        size = source.stat().st_size * (4 if source.suffix == ".gz" else 1)
        if size > SMALL_BYTES:
            time = plural("minute", max(1, round(size / BYTES_PER_MINUTE)))
            disk = f"takes about {size * DISK_PER_BYTE / 1e9:.1f} GB in {cache}"
            print(f"method.datastore: made once from {source.name}, in about {time}; {disk}", file=sys.stderr)
        data = Text(path=str(source), limit=None, held_out=0)
        build(model=replace(model, path=str(folder)), data=data, output=str(file), seed=0)
    return file


def join(documents: Iterable[Tokens]) -> Tokens:
    """Documents one behind the other, each with SEPARATOR at its end; those without tokens are left out."""
    end = np.array([SEPARATOR], dtype=np.int32)
    parts = [part for document in documents if len(document) for part in (document, end)]
    return np.concatenate(parts or [end[:0]])


def write(file: Path, tokens: Tokens, vocabulary: Vocabulary) -> None:
    """Sort the suffixes and write the datastore; whatever stood there stays until the new one is whole."""
    from safetensors.numpy import save_file

    facts = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer_size": str(vocabulary.size),
        "tokenizer_sha256": vocabulary.sha256,
        "tokens": str(len(tokens)),
        "dtype": "int32, big-endian",
        "separator": str(SEPARATOR),
        "largest_token": str(tokens[tokens != SEPARATOR].max(initial=0)),
        CHECKSUM: "0" * 64,
    }
    arrays = {"tokens": tokens.astype(">i4").view(np.uint8).reshape(-1, 4), "suffixes": suffix_array(tokens)}

    def store(path: Path) -> None:
        save_file(arrays, path, metadata=facts)
        seal(path)

    replace_file(file, store)


def suffix_array(tokens: Tokens) -> NDArray[np.int32] | NDArray[np.int64]:
    """[n] positions of tokens [n] in the order of what follows them; int64 only for texts that need it.

    The library sorts bytes. Tokens are written as an order-preserving code in which the frequent ones take one byte:
    fewer bytes than a fixed width, half the sorting time. Positions inside a token are dropped afterwards.
    """
    from pydivsufsort import divsufsort

    past = int(tokens.max(where=tokens != SEPARATOR, initial=-1)) + 1  # the separator: after all tokens, as in the file
    blocks = [tokens[at : at + BLOCK] for at in range(0, len(tokens), BLOCK)]
    counts = np.zeros(past + 1, dtype=np.int64)
    for block in blocks:
        counts += np.bincount(np.minimum(block, past), minlength=past + 1)
    present = np.flatnonzero(counts)
    code, extra = np.zeros((past + 1, 3), dtype=np.uint8), np.zeros(past + 1, dtype=np.uint8)
    code[present], extra[present] = byte_code(counts[present])
    code = np.ascontiguousarray(code[:, : int(extra.max()) + 1])
    used = np.arange(code.shape[1]) <= extra[:, None]

    written, firsts = [], []  # bytes, and whether a token begins with them
    for block in blocks:
        symbols = np.minimum(block, past).astype(np.intp)
        bytes_used = used.take(symbols, axis=0)
        first = np.zeros_like(bytes_used)
        first[:, 0] = True
        written.append(code.take(symbols, axis=0)[bytes_used])
        firsts.append(first[bytes_used])
    begins = np.concatenate(firsts)
    number = np.full(len(begins), -1, dtype=np.int32 if len(tokens) < 2**31 else np.int64)
    number[begins] = np.arange(len(tokens), dtype=number.dtype)
    order = divsufsort(np.concatenate(written))
    found = (number.take(order[at : at + BLOCK]) for at in range(0, len(order), BLOCK))
    return np.concatenate([places[places >= 0] for places in found])


def byte_code(counts: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Prefix-free, order-preserving code for symbols that occur counts [d] times: bytes [d, 3] and extra bytes [d].

    A first byte stands either for one frequent symbol, or for up to 256 (65,536 with three bytes) neighbours among
    the others. Of the two widths and all numbers of short codes that fit in 256 first bytes, the one with the fewest
    bytes is taken. Raises ValueError beyond 16 million symbols.
    """
    order = np.argsort(-counts, kind="stable")
    best: tuple[int, int, NDArray[np.int64]] | None = None
    for extra, room in ((1, 256), (2, 65_536)):
        for short in range(min(LEADS, len(counts)), -1, -1):
            frequent = np.sort(order[:short])
            if short + _leads_between(frequent, len(counts), room).sum() <= LEADS:
                cost = extra * int(counts[order[short:]].sum())
                best = min(best or (cost, extra, frequent), (cost, extra, frequent), key=lambda choice: choice[0])
                break
    if best is None:
        raise ValueError(f"{len(counts)} different tokens: more than a code of three bytes holds")
    _, extra, frequent = best
    room = 256**extra
    leads = _leads_between(frequent, len(counts), room)
    gap = np.zeros(len(counts), dtype=np.int64)
    gap[frequent] = 1
    is_short = gap.astype(bool)
    gap = np.cumsum(gap)  # a symbol's gap is the number of frequent ones up to it
    first_lead = np.concatenate(([0], np.cumsum(leads + 1)[:-1]))
    within = np.where(is_short, 0, np.arange(len(counts)) - np.concatenate(([0], frequent + 1))[gap])
    code = np.zeros((len(counts), 3), dtype=np.uint8)
    code[:, 0] = first_lead[gap] - is_short + within // room
    for place in range(1, extra + 1):
        code[:, place] = within % room >> 8 * (extra - place) & 255
    return code, np.where(is_short, 0, extra).astype(np.uint8)


def _leads_between(frequent: NDArray[np.int64], symbols: int, room: int) -> NDArray[np.int64]:
    """First bytes needed by the symbols before, between and after the frequent ones."""
    gaps = np.diff(np.concatenate(([-1], frequent, [symbols]))) - 1
    return -(-gaps // room)


def _chat_format(folder: Path, model: Model, path: str) -> tuple[Any, Render]:
    if path.endswith(".txt"):  # plain text needs no chat template
        return load_tokenizer(folder), lambda chat, opened: ""
    from bench.train.source import chat_format

    return chat_format(folder, model)


def _rendered(records: Iterable[tuple[str, Any]], render: Render, tokenizer: Any, tally: Tally) -> Iterator[Tokens]:
    """Tokens of each conversation as the model's chat template writes it."""
    texts = (text for text in tally.understood(records, lambda chat: render(chat, False)) if text is not None)
    while batch := list(islice(texts, BATCH)):
        tally.used += len(batch)
        yield from _tokenized(batch, tokenizer, add_special_tokens=lacks_bos(tokenizer, batch[0]))


def _plain_text(path: Path, tokenizer: Any, tally: Tally) -> Iterator[Tokens]:
    """The file as one document."""
    with readable(path, "a plain text file is wanted"), path.open(encoding="utf-8") as file:
        pieces = []
        while lines := file.readlines(PIECE_CHARS):
            pieces += _tokenized(["".join(lines)], tokenizer, add_special_tokens=False)
    if pieces:
        tally.used += 1
        yield np.concatenate(pieces)


def _tokenized(texts: list[str], tokenizer: Any, *, add_special_tokens: bool) -> list[Tokens]:
    ids = tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    return [np.asarray(sequence, dtype=np.int32) for sequence in ids]
