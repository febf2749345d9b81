"""Question sets (conf/questions): where the file of one lies, on this machine or elsewhere."""

from __future__ import annotations

import http.client
import os
import re
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from bench.files import replace_file
from bench.places import locate
from bench.questions.formats import SUFFIXES, WANTED
from bench.texts import readable
from methods.digest import file_sha256, sha256
from methods.errors import UserError, first_line

REMEDY = "give data.path=/folder/question.jsonl"
DATASET = re.compile(r"(\w[\w.-]*/[\w.-]+)(?:/(.+))?")


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """conf/questions/<name>.yaml.

    source: a path, a URL, or a dataset of the Hugging Face hub, owner/name or owner/name/file. revision: of a dataset.
    sha256: of the file; None: not checked. subtasks: the categories that share one, by its name; a category that is not
    listed is its own. Raises UserError for subtasks of another form.
    """

    name: str
    source: str
    revision: str | None
    sha256: str | None
    subtasks: dict[str, list[str]] | None

    def __post_init__(self) -> None:
        for subtask, categories in (self.subtasks or {}).items():
            if not isinstance(categories, list) or not all(isinstance(category, str) for category in categories):
                raise UserError(f"questions.subtasks.{subtask}={categories}: must be a list of categories")


def find(questions: QuestionSet, path: str | None) -> Path:
    """The file to read: `path` (data.path) if given, else the set's own, fetched once.

    Says on stderr when a later fetch could bring another content. Raises UserError when the set's file cannot be had,
    or its hash is another.
    """
    if path is not None:
        return Path(os.path.expanduser(path))
    where, wanted = f"questions.source={questions.source}", questions.sha256
    file, pin = Path(locate(os.path.expanduser(questions.source))), None
    if "://" in questions.source:
        file = _downloaded(where, questions.source, wanted)
        pin = f"questions.sha256={file_sha256(file)}"
    elif not os.path.exists(file) and (dataset := DATASET.fullmatch(questions.source)):
        file = _of_hub(where, dataset[1], dataset[2], questions.revision)
        commit = re.search(r"/snapshots/([0-9a-f]{40})/", file.as_posix())
        pin = f"questions.revision={commit[1]}" if commit and commit[1] != questions.revision else None
    with readable(file, REMEDY, "questions.source"):
        digest = file_sha256(file)
    if wanted not in (None, digest):
        raise UserError(f"{where}: has sha256 {digest}, wanted {wanted}; {REMEDY}")
    if pin and wanted is None:
        print(f"{where}: may be another file elsewhere or later; {pin} keeps to this one", file=sys.stderr)
    return file


def cached_file() -> Path:
    """Where Spec-Bench's question file was put before there were question sets; it need not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "speculative-bench/question.jsonl")


def _downloaded(where: str, url: str, wanted: str | None) -> Path:
    """What an address answered once, as long as it is what is wanted."""
    name = re.sub(r"[^\w.-]", "-", url.partition("?")[0].rpartition("/")[2])
    fresh = cached_file().parent / sha256(url)[:12] / (name or "questions")
    for file in (fresh, cached_file()):
        if file.is_file() and (file_sha256(file) == wanted if wanted else file == fresh):
            return file
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            content = response.read()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"{where}: cannot be reached ({first_line(error)}); {REMEDY}") from error
    if wanted not in (None, sha256(content)):
        raise UserError(f"{where}: has sha256 {sha256(content)}, wanted {wanted}; {REMEDY}")
    own = fresh.with_name(f"{os.getpid()}.partial")  # shards that begin together may all fetch it
    replace_file(own, lambda partial: partial.write_bytes(content), "XDG_CACHE_HOME")
    return own.replace(fresh)


def _of_hub(where: str, dataset: str, file: str | None, revision: str | None) -> Path:
    """A dataset's file in the hub client's cache; without a name, the only one that may hold questions."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        if file is None:
            listed = HfApi().dataset_info(dataset, revision=revision).siblings or ()
            fitting = sorted(sibling.rfilename for sibling in listed if sibling.rfilename.endswith(SUFFIXES))
            if len(fitting) != 1:
                raise UserError(f"{where}: has {len(fitting)} files; {WANTED}, as {dataset}/FILE: {', '.join(fitting)}")
            file = fitting[0]
        return Path(hf_hub_download(dataset, file, repo_type="dataset", revision=revision))
    except UserError:
        raise
    except Exception as error:  # whatever the hub client and the http library under it raise: all end the same way
        reason = f"no such file, and not to be had from the hub ({type(error).__name__}: {first_line(error)})"
        raise UserError(f"{where}: {reason}; wanted: a path, a URL, or owner/name[/file] of a dataset") from error
