"""From a name to a folder, against a small hub served from this machine and against hubs that cannot be reached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from methods.engine.hub import hub_name, resolve
from methods.errors import UserError
from tests.servers import COMMIT, Hub, serving

REPOSITORY = Path(__file__).parents[3]
CLOSED_PORT = "http://127.0.0.1:9"
Listen = Callable[..., tuple[str, str]]
TEXT = ("config.json", "generation_config.json", "tokenizer.json", "README.md")
REPOSITORIES = {
    "house/both": (*TEXT, "model.safetensors", "pytorch_model.bin", "consolidated.safetensors", "optimizer.pt"),
    "house/shards": (
        *TEXT,
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ),
    "house/bin": (
        *TEXT,
        "tokenizer.model",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json",
    ),
    "house/heads": (*TEXT, "medusa_lm_head.pt", "optimizer.pt"),
    "house/empty": ("README.md", "tokenizer.json"),
    "house/lora": ("tokenizer.json", "adapter_config.json", "adapter_model.safetensors"),
}


def content(file: str, files: tuple[str, ...]) -> bytes:
    """What the hub gives for a file: an index that names the shards, or the file's own name."""
    shards = {f"layer.{i}": shard for i, shard in enumerate(name for name in files if "-of-" in name)}
    return json.dumps({"weight_map": shards}).encode() if file.endswith(".index.json") else file.encode()


@pytest.fixture
def hub() -> Iterator[Any]:
    contents = {name: {file: content(file, files) for file in files} for name, files in REPOSITORIES.items()}
    with serving(Hub, repositories=contents) as served:
        yield served


# Forks a process for each line that it reads. What takes long is imported once; the hub client reads the environment
# when it is imported, and each process imports it anew.
FORKING = """
import json, os, sys
import methods.engine.checkpoint
from methods.engine.hub import pending_bytes, resolve
from methods.errors import UserError
assert "huggingface_hub" not in sys.modules
for line in sys.stdin:
    call, environment, files = json.loads(line)
    if not (child := os.fork()):
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ |= environment
        try:
            print(eval(call), flush=True)
        except UserError as error:
            print(error, flush=True)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def forking() -> Iterator[subprocess.Popen[str]]:
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    command = [sys.executable, "-c", FORKING]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, env=clean, text=True, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def listen(forking: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory) -> Listen:
    """(folder or error message, what else a user saw) of a call, in a fresh process."""
    folder = tmp_path_factory.mktemp("heard")

    def heard(call: str, cache: Path, **environment: str) -> tuple[str, str]:
        settings = {"HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **environment}
        files = [folder / "stdout", folder / "stderr"]
        assert forking.stdin and forking.stdout
        forking.stdin.write(json.dumps([call, settings, [str(file) for file in files]]) + "\n")
        forking.stdin.flush()
        status = forking.stdout.readline()
        said, errors = (file.read_text(encoding="utf-8") for file in files)
        assert status == "0\n", errors
        assert said.count("\n") == 1, said
        return said.strip(), errors

    return heard


@pytest.fixture
def resolved(listen: Listen) -> Callable[..., str]:
    """Folder or error message."""
    return lambda call, *cache, **environment: listen(f"resolve({call})", *cache, **environment)[0]


@pytest.mark.parametrize(
    ("call", "weights"),
    [
        ("'house/both'", {"model.safetensors"}),
        ("'house/shards'", set(REPOSITORIES["house/shards"][-3:])),
        ("'house/bin'", set(REPOSITORIES["house/bin"][-4:])),
        ("'house/both', weights=False", set()),
        ("'house/heads', key='method.checkpoint'", {"medusa_lm_head.pt"}),
    ],
)
def test_a_snapshot_holds_what_is_needed_and_no_more(
    resolved: Callable[..., str], hub: Any, call: str, weights: set[str], tmp_path: Path
) -> None:
    folder = Path(resolved(call, tmp_path, HF_ENDPOINT=hub.address))
    assert {file.name for file in folder.iterdir()} == {*TEXT[:3], *weights}
    files = sorted(name for name in hub.fetched if name != "listing")
    assert files == sorted({*TEXT[:3], *weights}), "each file is downloaded once"
    assert str(hub_name(folder)).endswith(f"@{COMMIT}")


def test_a_snapshot_in_the_cache_needs_no_hub(resolved: Callable[..., str], hub: Any, tmp_path: Path) -> None:
    first = resolved("'house/bin'", tmp_path, HF_ENDPOINT=hub.address)
    assert resolved("'house/bin'", tmp_path, HF_HUB_OFFLINE="1") == first
    assert resolved("'house/bin'", tmp_path, HF_ENDPOINT=CLOSED_PORT) == first


def test_a_commit_in_the_cache_is_not_asked_for_again(resolved: Callable[..., str], hub: Any, tmp_path: Path) -> None:
    call = f"'house/shards', '{COMMIT}'"
    first = resolved(call, tmp_path, HF_ENDPOINT=hub.address)
    asked = len(hub.fetched)
    for again in (call, f"'house/shards@{COMMIT}'"):
        assert resolved(again, tmp_path, HF_ENDPOINT=hub.address) == first
    assert len(hub.fetched) == asked


def test_a_branch_in_the_cache_is_asked_for_again(resolved: Callable[..., str], hub: Any, tmp_path: Path) -> None:
    """It may have moved."""
    first = resolved("'house/heads', 'main'", tmp_path, HF_ENDPOINT=hub.address)
    asked = len(hub.fetched)
    assert resolved("'house/heads', 'main'", tmp_path, HF_ENDPOINT=hub.address) == first
    assert len(hub.fetched) > asked


def test_a_revision_that_is_given_comes_before_one_in_the_name(
    resolved: Callable[..., str], hub: Any, tmp_path: Path
) -> None:
    assert Path(resolved("'house/heads@lost', 'main'", tmp_path, HF_ENDPOINT=hub.address)).name == COMMIT
    assert "no revision lost" in resolved("'house/heads@lost'", tmp_path, HF_ENDPOINT=hub.address)


def test_a_download_that_fails_is_no_older_snapshot(resolved: Callable[..., str], hub: Any, tmp_path: Path) -> None:
    first = resolved("'house/heads'", tmp_path, HF_ENDPOINT=hub.address)
    hub.commit, hub.lost = COMMIT[::-1], ["medusa_lm_head.pt"]
    message = resolved("'house/heads'", tmp_path, HF_ENDPOINT=hub.address)
    assert message.startswith("model.path=house/heads: the download failed (") and "model.path=/folder" in message
    assert "hub cannot be reached" not in message
    hub.lost = []
    assert Path(resolved("'house/heads'", tmp_path, HF_ENDPOINT=hub.address)) == Path(first).with_name(hub.commit)


def test_what_is_still_to_be_downloaded(listen: Listen, hub: Any, tmp_path: Path) -> None:
    sizes = {name: len(content(name, REPOSITORIES["house/shards"])) for name in REPOSITORIES["house/shards"]}
    sizes.pop("README.md")
    call = "pending_bytes('house/shards')"
    assert listen(call, tmp_path, HF_ENDPOINT=hub.address)[0] == str(sum(sizes.values()))
    listen("resolve('house/shards', weights=False)", tmp_path, HF_ENDPOINT=hub.address)
    weights = sum(size for name, size in sizes.items() if name.startswith("model") and not name.endswith(".json"))
    assert listen(call, tmp_path, HF_ENDPOINT=hub.address)[0] == str(weights)
    listen("resolve('house/shards')", tmp_path, HF_ENDPOINT=hub.address)
    assert listen(call, tmp_path, HF_ENDPOINT=hub.address)[0] == "0"
    assert listen("pending_bytes('house/shards@lost')", tmp_path, HF_ENDPOINT=hub.address)[0] == "None"
    assert listen(call, tmp_path, HF_ENDPOINT=CLOSED_PORT)[0] == "None"


def test_weights_that_are_not_in_the_cache_need_the_hub(resolved: Callable[..., str], hub: Any, tmp_path: Path) -> None:
    resolved("'house/shards', weights=False", tmp_path, HF_ENDPOINT=hub.address)
    message = resolved("'house/shards'", tmp_path, HF_ENDPOINT=CLOSED_PORT)
    assert "house/shards is not in the local cache, and the hub cannot be reached" in message


def test_a_download_is_one_line_and_what_is_cached_none(listen: Listen, hub: Any, tmp_path: Path) -> None:
    heard = [listen("resolve('house/shards')", tmp_path, HF_ENDPOINT=hub.address)[1] for _ in range(2)]
    assert heard[0].startswith("house/shards: downloading ") and heard[0].count("\n") == 1
    assert heard[1] == ""


def test_a_lora_is_to_be_merged_first(resolved: Callable[..., str], hub: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match="merge it first"):
        resolve(str(tmp_path))
    assert "merge it first" in resolved("'house/lora'", tmp_path, HF_ENDPOINT=hub.address)


def test_a_folder_has_no_name_on_the_hub(tmp_path: Path) -> None:
    assert hub_name(tmp_path) is None and hub_name(Path(COMMIT)) is None
    assert hub_name(Path("hub/models--house--both/snapshots") / COMMIT) == f"house/both@{COMMIT}"
    assert hub_name(Path("hub/datasets--house--both/snapshots") / COMMIT) is None
    assert hub_name(Path("hub/models--house--both/snapshots/mine")) is None


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        ("'house/unknown'", ["model.path=house/unknown", "neither a folder nor a hub repository"]),
        ("'house/gated'", ["model.path=house/gated", "gated", "hf auth login"]),
        ("'house/both', 'lost'", ["model.path=house/both", "no revision lost"]),
        ("'house/unknown', key='method.checkpoint'", ["method.checkpoint=house/unknown", "method.checkpoint=/folder"]),
    ],
)
def test_what_the_hub_refuses_is_said(
    resolved: Callable[..., str], hub: Any, call: str, parts: list[str], tmp_path: Path
) -> None:
    message = resolved(call, tmp_path, HF_ENDPOINT=hub.address)
    assert all(part in message for part in [*parts, "config.json", "/folder"]), message


def test_repository_without_a_config(resolved: Callable[..., str], hub: Any, tmp_path: Path) -> None:
    message = resolved("'house/empty'", tmp_path, HF_ENDPOINT=hub.address)
    assert "no config.json" in message and "model.path=/folder" in message


@pytest.mark.parametrize(
    "environment",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": CLOSED_PORT}, {"HF_ENDPOINT": "http://no-such-hub.invalid"}],
)
def test_a_hub_out_of_reach(resolved: Callable[..., str], environment: dict[str, str], tmp_path: Path) -> None:
    message = resolved("'house/both'", tmp_path, **environment)
    parts = ["model.path=house/both", "hub cannot be reached", "config.json", "model.safetensors", "model.path=/folder"]
    assert all(part in message for part in parts), message


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(tmp_path)) == tmp_path
    (tmp_path / "house" / "both").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("house/both") == Path("house/both"), "a folder that exists comes before a hub id"


@pytest.mark.parametrize("path", ["/no/such/folder", "./missing", "~/no-such-folder", "checkpoints/a/b", "vicuna", ""])
def test_a_missing_folder_is_no_hub_id(path: str) -> None:
    with pytest.raises(UserError, match="no such folder") as caught:
        resolve(path, key="method.checkpoint")
    assert str(caught.value).startswith(f"method.checkpoint={path}: ")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="this is a file"):
        resolve(str(tmp_path / "model.safetensors"))


def test_a_gguf_file_is_a_target_and_no_draft_and_a_folder_may_be_called_so(tmp_path: Path) -> None:
    (file := tmp_path / "model.gguf").touch()
    assert resolve(str(file)) == file
    with pytest.raises(UserError, match=r"method\.checkpoint=.*: this is a file"):
        resolve(str(file), key="method.checkpoint")
    with pytest.raises(UserError, match="no such folder"):
        resolve(str(tmp_path / "missing.gguf"))


def test_a_name_no_hub_would_take() -> None:
    with pytest.raises(UserError, match="neither a folder nor a valid hub id"):
        resolve("a b/c d")


@pytest.mark.parametrize("path", ["a\0b", "house/bo\0th", "/tmp/a\nb"])
def test_a_path_with_control_characters_is_shown_readably(path: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(path)
    assert f"model.path={path!r}: a path without control characters" in str(caught.value)


def test_a_path_that_the_disk_refuses(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path, why in {str(tmp_path / "loop"): "Too many levels", "/" + "a" * 300: "File name too long"}.items():
        with pytest.raises(UserError, match=f"not readable .{why}"):
            resolve(path)


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve("~/model") == tmp_path / "model"
