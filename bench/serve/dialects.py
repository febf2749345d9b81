"""How each engine is asked and answers: a request's body, and what one event of its stream says.

Written from the engines' documentation and source, in the versions that WRITTEN_FROM names. Only llama.cpp's has been
run against the engine itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.serve.acceptance import Acceptance, of_llama_cpp, of_sglang, of_vllm

# What each form was written from, as the page says it.
WRITTEN_FROM = {
    "vllm": "vLLM 0.32's documentation; not run against vLLM itself",
    "sglang": "SGLang 0.5's source; not run against SGLang itself",
    "llama_cpp": "xllamacpp 2026.10's llama.cpp, and run against it",
    "openai": "the OpenAI API's documentation",
}
ENDINGS = {"stop": "eos", "eos": "eos", "word": "eos", "length": "length", "limit": "length"}


@dataclass(frozen=True)
class Request:
    """One turn to be answered. prompt: token ids, or messages as the OpenAI API has them.

    salt: differs from request to request, for engines that keep prompts apart by it; None: they may share them.
    """

    model: str
    prompt: Sequence[int] | Sequence[Mapping[str, str]]
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    salt: str | None = None
    top: int = 0  # how many log-probabilities of each token are wanted
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chat(self) -> bool:
        """Whether the prompt is a conversation."""
        return bool(self.prompt) and isinstance(self.prompt[0], Mapping)


@dataclass(slots=True)
class Piece:
    """What an event says. total: tokens of the answer up to it; whole: text and ids may be the answer's so far.

    None: it does not say.
    """

    text: str = ""
    ids: list[int] | None = None
    total: int | None = None
    whole: bool = False
    stop: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    model: str | None = None
    acceptance: Acceptance | None = None
    top: list[float] | None = None  # log-probabilities of the most likely tokens at the event's first place


class OpenAI:
    """/v1/completions with token ids and /v1/chat/completions, as every server has them; other engines' begin with it.

    `read` raises what Python does for an event of another form, or ValueError.
    """

    completions = "/v1/completions"  # where token ids go
    own: Mapping[str, Any] = {}
    sampling: Mapping[str, Any] = {"top_p": 1.0}  # temperature alone shapes the distribution

    def path(self, request: Request) -> str:
        return "/v1/chat/completions" if request.chat else self.completions

    def body(self, request: Request) -> dict[str, Any]:
        prompt = {"messages": list(request.prompt)} if request.chat else {"prompt": list(request.prompt)}
        body = {
            "model": request.model,
            **prompt,
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.own,
        }
        if request.temperature:
            body |= {"seed": request.seed, **self.sampling}
        if request.top:
            body |= {"logprobs": True, "top_logprobs": request.top} if request.chat else {"logprobs": request.top}
        return body | dict(request.extra)

    def read(self, event: Mapping[str, Any]) -> Piece:
        piece = Piece(model=event.get("model"))
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            thought = delta.get("reasoning") or delta.get("reasoning_content") or ""  # vLLM's name; the others'
            piece.text = choice.get("text") or thought + (delta.get("content") or "")
            piece.ids = choice.get("token_ids")
            piece.stop = _ending(choice.get("finish_reason"))
            piece.top = _top(choice.get("logprobs"))
        if usage := event.get("usage"):
            piece.total, piece.prompt_tokens = usage["completion_tokens"], usage.get("prompt_tokens")
            piece.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        if found := (event.get("metrics") or {}).get("speculative_decoding"):
            piece.acceptance = of_vllm(found)
        elif timings := event.get("timings"):
            piece.acceptance = of_llama_cpp(timings)
        return piece


class VLLM(OpenAI):
    """The same with token ids in the answer, and a salt that keeps a prompt from the prefix cache."""

    own: Mapping[str, Any] = {"return_token_ids": True}
    sampling: Mapping[str, Any] = {"top_p": 1.0, "top_k": -1, "min_p": 0.0}

    def body(self, request: Request) -> dict[str, Any]:
        salt = {} if request.salt is None else {"cache_salt": request.salt}
        return super().body(request) | salt | dict(request.extra)


class LlamaCpp(OpenAI):
    """/completion, llama.cpp's own, which alone gives token ids; conversations through the OpenAI API."""

    completions = "/completion"
    sampling: Mapping[str, Any] = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}  # it has defaults of its own

    def body(self, request: Request) -> dict[str, Any]:
        cache = {"cache_prompt": request.salt is None}
        if request.chat:
            return super().body(request) | cache | dict(request.extra)
        body = {
            "prompt": list(request.prompt),
            "n_predict": request.max_new_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            "samplers": ["temperature"] if request.temperature else ["top_k"],
            "top_k": 0 if request.temperature else 1,
            "stream": True,
            "return_tokens": True,
            **cache,
        }
        return body | ({"n_probs": request.top} if request.top else {}) | dict(request.extra)

    def read(self, event: Mapping[str, Any]) -> Piece:
        if "choices" in event:
            return super().read(event)
        piece = Piece(event["content"], event.get("tokens") or [], model=event.get("model"))
        if found := event.get("completion_probabilities"):
            piece.top = [one["logprob"] for one in found[0]["top_logprobs"]]
        if event["stop"]:
            piece.stop = _ending(event.get("stop_type"))
            piece.total, piece.prompt_tokens = event["tokens_predicted"], event.get("tokens_evaluated")
            timings = event.get("timings") or {}
            piece.cached_tokens, piece.acceptance = timings.get("cache_n"), of_llama_cpp(timings)
        return piece


class SGLang(OpenAI):
    """/generate, SGLang's own, which gives token ids and meta_info; conversations through the OpenAI API.

    The salt goes under two names: extra_key keeps prompts apart in the prefix cache, and later so does cache_salt.
    """

    completions = "/generate"
    sampling: Mapping[str, Any] = {"top_p": 1.0, "top_k": -1, "min_p": 0.0}

    def body(self, request: Request) -> dict[str, Any]:
        salt = {} if request.salt is None else {"extra_key": request.salt, "cache_salt": request.salt}
        if request.chat:
            return super().body(request) | salt | dict(request.extra)
        sampling = {"max_new_tokens": request.max_new_tokens, "temperature": request.temperature}
        if request.temperature:
            sampling |= {**self.sampling, "sampling_seed": request.seed}
        top = {"return_logprob": True, "top_logprobs_num": request.top} if request.top else {}
        return {
            "input_ids": list(request.prompt),
            "sampling_params": sampling,
            "stream": True,
            **top,
            **salt,
            **request.extra,
        }

    def read(self, event: Mapping[str, Any]) -> Piece:
        if "choices" in event:
            return super().read(event)
        found = event["meta_info"]
        ending = found.get("finish_reason")
        piece = Piece(event.get("text") or "", event.get("output_ids"), found["completion_tokens"], whole=True)
        piece.stop = _ending(ending["type"] if isinstance(ending, Mapping) else ending)
        piece.prompt_tokens, piece.cached_tokens = found.get("prompt_tokens"), found.get("cached_tokens")
        piece.acceptance = of_sglang(found)
        if top := found.get("output_top_logprobs"):
            piece.top = [entry[0] for entry in top[0]]
        return piece


DIALECTS: dict[str, OpenAI] = {"openai": OpenAI(), "vllm": VLLM(), "sglang": SGLang(), "llama_cpp": LlamaCpp()}
OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama_cpp"}  # owned_by of /v1/models


def _ending(reason: Any) -> str | None:
    """`eos` or `length`; None while an answer goes on. Raises ValueError for an ending that is no answer's."""
    if not reason or reason == "none":
        return None
    if reason not in ENDINGS:
        raise ValueError(f"the server ended the answer with {reason}")
    return ENDINGS[reason]


def _top(found: Any) -> list[float] | None:
    """Log-probabilities of the most likely tokens at the first place of an event: completions' form, or chat's."""
    if not found:
        return None
    if found.get("content"):
        return sorted((one["logprob"] for one in found["content"][0]["top_logprobs"]), reverse=True)
    places = found.get("top_logprobs")
    return sorted(places[0].values(), reverse=True) if places else None
