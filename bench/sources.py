"""Files from elsewhere: a path, a URL, or a dataset of the Hugging Face hub -> a file of this machine, fetched once."""

from __future__ import annotations

import http.client
import os
import re
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from bench.digests import sha256 as file_sha256
from bench.files import replace_file
from bench.places import locate
from bench.texts import SUFFIXES, readable
from methods.digest import sha256
from methods.errors import UserError, first_line

DATASET = re.compile(r"(\w[\w.-]*/[\w.-]+)(?:/(.+))?")


@dataclass(frozen=True)
class Source:
    """Where a file is to be had, and what its configuration keys are called.

    source: a path, a URL, or a dataset of the hub, owner/name or owner/name/file. revision: of a dataset. sha256: of
    the file; None: not checked. section: of the configuration; key: of the source in it. remedy: ends every error.
    """

    source: str
    revision: str | None
    sha256: str | None
    section: str
    key: str = "source"
    remedy: str = ""

    @property
    def where(self) -> str:
        """Begins every error."""
        return f"{self.section}.{self.key}={self.source}"

    def fetch(self) -> Path:
        """The file. Says on stderr when a later fetch could bring another content.

        Raises UserError when the file cannot be had, or its hash is another.
        """
        file, pin = Path(locate(os.path.expanduser(self.source))), None
        if "://" in self.source:
            file = self._downloaded()
            pin = f"{self.section}.sha256={file_sha256(file)}"
        elif not os.path.exists(file) and (dataset := DATASET.fullmatch(self.source)):
            file = self._of_hub(dataset[1], dataset[2])
            commit = re.search(r"/snapshots/([0-9a-f]{40})/", file.as_posix())
            pin = f"{self.section}.revision={commit[1]}" if commit and commit[1] != self.revision else None
        with readable(file, self.remedy, f"{self.section}.{self.key}"):
            digest = file_sha256(file)
        if self.sha256 not in (None, digest):
            raise UserError(f"{self.where}: has sha256 {digest}, wanted {self.sha256}; {self.remedy}")
        if pin and self.sha256 is None:
            print(f"{self.where}: may be another file elsewhere or later; {pin} keeps to this one", file=sys.stderr)
        return file

    def pending_bytes(self) -> int | None:
        """Bytes that `fetch` would download; 0 for what lies here, None where nobody says."""
        from huggingface_hub import try_to_load_from_cache

        if os.path.exists(locate(os.path.expanduser(self.source))):
            return 0
        dataset = DATASET.fullmatch(self.source)
        if dataset is None or not dataset[2]:
            return None
        try:
            cached = try_to_load_from_cache(dataset[1], dataset[2], repo_type="dataset", revision=self.revision)
            return 0 if isinstance(cached, str) else self._sizes(dataset[1])[dataset[2]]
        except Exception:  # whatever the hub client raises: `fetch` will say it
            return None

    def _sizes(self, dataset: str) -> dict[str, int]:
        """Bytes of a dataset's files, as the hub lists them."""
        from huggingface_hub import HfApi

        listed = HfApi().dataset_info(dataset, revision=self.revision, files_metadata=True).siblings or ()
        return {sibling.rfilename: sibling.size or 0 for sibling in listed}

    def _downloaded(self) -> Path:
        """What an address answered once, as long as it is what is wanted."""
        name = re.sub(r"[^\w.-]", "-", self.source.partition("?")[0].rpartition("/")[2])
        fresh = cached_file().parent / sha256(self.source)[:12] / (name or "file")
        for file in (fresh, cached_file()):
            if file.is_file() and (file_sha256(file) == self.sha256 if self.sha256 else file == fresh):
                return file
        try:
            with urllib.request.urlopen(self.source, timeout=30) as response:
                content = response.read()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UserError(f"{self.where}: cannot be reached ({first_line(error)}); {self.remedy}") from error
        if self.sha256 not in (None, sha256(content)):
            raise UserError(f"{self.where}: has sha256 {sha256(content)}, wanted {self.sha256}; {self.remedy}")
        replace_file(fresh, lambda partial: partial.write_bytes(content), "XDG_CACHE_HOME")
        return fresh

    def _of_hub(self, dataset: str, file: str | None) -> Path:
        """A dataset's file in the hub client's cache; without a name, the only one of a fitting kind."""
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        revision = self.revision
        if file and revision:
            cached = try_to_load_from_cache(dataset, file, repo_type="dataset", revision=revision)
            if isinstance(cached, str):
                return Path(cached)
        try:
            sizes = self._sizes(dataset)
            if file is None:
                fitting = sorted(name for name in sizes if name.endswith(SUFFIXES))
                if len(fitting) != 1:
                    wanted = f"wanted: one ({', '.join(SUFFIXES)}), as {dataset}/FILE"
                    raise UserError(f"{self.where}: has {len(fitting)} files; {wanted}: {', '.join(fitting)}")
                file = fitting[0]
            if sizes.get(file, 0) > 1e6:
                print(f"{self.where}: {sizes[file] / 1e6:.0f} MB, fetched once from the hub", file=sys.stderr)
            return Path(hf_hub_download(dataset, file, repo_type="dataset", revision=revision))
        except UserError:
            raise
        except Exception as error:  # whatever the hub client and the http library under it raise: all end the same way
            cached = try_to_load_from_cache(dataset, file, repo_type="dataset", revision=revision) if file else None
            if isinstance(cached, str):  # of the branch that was fetched last, where no revision is asked for
                return Path(cached)
            reason = f"no such file, and not to be had from the hub ({type(error).__name__}: {first_line(error)})"
            raise UserError(
                f"{self.where}: {reason}; wanted: a path, a URL, or owner/name[/file] of a dataset"
            ) from error


def cached_file() -> Path:
    """Where Spec-Bench's question file was put before there were question sets; it need not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "speculative-bench/question.jsonl")
