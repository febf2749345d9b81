"""The record room: what a run leaves behind, written line by line and read back as data frames. No torch."""

from bench.records.directory import RunDirectory, method_name, read_info
from bench.records.identity import HASHES, config_hash
from bench.records.lines import Place, Turn, prompt_hash

__all__ = ["HASHES", "Place", "RunDirectory", "Turn"]
__all__ += ["config_hash", "method_name", "prompt_hash", "read_info"]
