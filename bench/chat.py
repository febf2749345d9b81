"""Conversations -> prompt ids, through the model's tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods.errors import UserError, nearest, reason

OWN_ARGUMENTS = ("conversation", "messages", "chat_template", "tokenize", "add_generation_prompt", "return_dict")
TEMPLATES = Path(__file__).parent / "assets" / "templates"
CHAT_FILES = (  # of a model's folder: all that decides what a prompt is and which tokens end an answer
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: role is user, assistant or system."""

    role: str
    content: str


class Chat:
    """How a model reads and writes conversations.

    template: None for the tokenizer's own, the name of a template that ships with the project, or a Jinja file.
    system_prompt: what every conversation begins with; arguments: what the template takes besides, such as
    enable_thinking. Raises UserError when there is no such template or it cannot be rendered, or no tokenizer in the
    folder.
    """

    def __init__(
        self,
        folder: Path,
        template: str | None = None,
        system_prompt: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        from methods.hf import load_tokenizer  # imports torch

        for name in arguments or ():
            if name in OWN_ARGUMENTS:
                raise UserError(f"model.template_arguments.{name}: set by the harness itself; leave it out")
        self.arguments = dict(arguments or {})
        self.system = [] if system_prompt is None else [Message("system", system_prompt)]
        try:
            self.tokenizer: Any = load_tokenizer(folder)
            self.encode("?")
        except UserError:
            raise
        except Exception as error:  # whatever a file of another shape makes the libraries raise: all end the same way
            raise UserError(f"model.path={folder}: no usable tokenizer ({reason(error)})") from error
        self.given = "the tokenizer's own" if template is None else template
        self.template = self.tokenizer.chat_template if template is None else read_template(template)
        if not self.template:
            names = ", ".join(sorted(file.stem for file in TEMPLATES.glob("*.jinja")))
            raise UserError(
                f"model.chat_template: the tokenizer in {folder} has none; give one of {names}, or a Jinja file"
            )
        self.render([Message("user", "?")])

    def render(self, messages: Sequence[Message], *, open_turn: bool = True) -> str:
        """The conversation as text; open_turn: up to where the assistant's next answer begins.

        Raises UserError when the template is broken, or does not take this conversation.
        """
        system = [] if messages[:1] and messages[0].role == "system" else self.system
        chat = [{"role": message.role, "content": message.content} for message in (*system, *messages)]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    chat, chat_template=self.template, tokenize=False, add_generation_prompt=open_turn, **self.arguments
                )
            )
        except Exception as error:  # a template is a program, and may raise anything
            raise UserError(f"model.chat_template={self.given}: cannot be rendered ({reason(error)})") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text, with the BOS token exactly once where the model has one."""
        return list(self.tokenizer(text, add_special_tokens=lacks_bos(self.tokenizer, text), verbose=False).input_ids)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation whose next turn is the assistant's."""
        return self.encode(self.render(messages))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, special tokens left out."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def lacks_bos(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer may add its own: a template that writes the BOS token itself must not get a second one."""
    return not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))


def chat_files(folder: Path, template: str | None = None) -> list[Path]:
    """The files that a Chat of this checkpoint and template is made of. Raises UserError where there is no template."""
    files = [folder] if folder.is_file() else [folder / name for name in CHAT_FILES if (folder / name).is_file()]
    return files if template is None else [*files, template_file(template)]


def read_template(template: str) -> str:
    """A Jinja template by name or path. Raises UserError when there is none."""
    try:
        return template_file(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"model.chat_template={template}: not readable ({reason(error)})") from error


def template_file(template: str) -> Path:
    """Where a template lies that is given by name or path. Raises UserError when there is none."""
    named = TEMPLATES / f"{template}.jinja"
    file = named if named.is_file() else Path(template).expanduser()
    if not file.is_file():
        names = [known.stem for known in TEMPLATES.glob("*.jinja")]
        raise UserError(f"model.chat_template={template}: no such file or template; {nearest(template, names)}")
    return file
