"""Encode conversations with the chat template of a model."""

import json
import re
import sys
import time
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from cli.errors import UserError
from tokenizer.bpe import ChatTemplate, Tokenizer

TEMPLATE_SECONDS = 5.0
MAX_OPERAND = 2**63
_PLACEHOLDER = re.compile("\ue000(\\d+)\ue001")  # stands for the text of a message


def encode_chat(tokenizer: Tokenizer, messages: Any, place: str) -> tuple[list[int], list[bool]]:
    """Encode a conversation to ids, starting with the separator, and a loss mask.

    The mask selects the assistant's messages, each with the special token that ends its turn. Only
    the template creates special tokens; messages are encoded as plain text. Raises UserError,
    naming `place`, if `messages` is not a list of {"role", "content"} that ends with the
    assistant, or if the tokenizer has no chat template.
    """
    if tokenizer.chat is None:
        raise UserError(f"{place}: this model has no chat template; use prompt and completion")
    if not isinstance(messages, list) or not messages:
        raise UserError(f'{place}: "messages" is not a list of messages, or is empty')
    for number, message in enumerate(messages, 1):
        if not (isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))):
            shown = json.dumps(message)[:60]
            raise UserError(f'{place}: message {number} has no "role" and "content" as text: {shown}')
    if messages[-1]["role"] != "assistant":
        raise UserError(f"{place}: the last message is not the assistant's, so it has no loss; end with the assistant")
    pieces, contents = _split_turns(tokenizer.chat, messages, place, False)
    ids, scored = [tokenizer.separator_id], [False]

    def append(new_ids: list[int], has_loss: bool) -> None:
        ids.extend(new_ids)
        scored.extend([has_loss] * len(new_ids))

    is_assistant = False
    for at, piece in enumerate(pieces):
        if at % 2 == 0:
            template_ids = tokenizer.encode_with_special(piece)
            ends = [i for i, token in enumerate(template_ids, 1) if token in tokenizer.special_ids]
            turn_end = ends[0] if is_assistant and ends else 0
            append(template_ids[:turn_end], True)
            append(template_ids[turn_end:], False)
        else:
            is_assistant = messages[int(piece)]["role"] == "assistant"
            append(tokenizer.encode(contents[int(piece)]), is_assistant)
    return ids, scored


def encode_turns(tokenizer: Tokenizer, messages: Any, place: str) -> list[int]:
    """Encode a conversation up to the assistant's turn, which the model writes.

    As in `encode_chat`, only the template creates special tokens. Raises UserError in the same cases.
    """
    if tokenizer.chat is None:
        raise UserError(f"{place}: this model has no chat template; use a prompt")
    pieces, contents = _split_turns(tokenizer.chat, messages, place, True)
    ids = [tokenizer.separator_id]
    for at, piece in enumerate(pieces):
        ids += tokenizer.encode_with_special(piece) if at % 2 == 0 else tokenizer.encode(contents[int(piece)])
    return ids


def _split_turns(
    chat: ChatTemplate, messages: list[dict], place: str, starts_answer: bool
) -> tuple[list[str], list[str]]:
    # The template's own text with the number of a message at every second place, and the messages' texts.
    with_placeholders = [m | {"content": f"\ue000{i}\ue001"} for i, m in enumerate(messages)]
    pieces = _PLACEHOLDER.split(_render(chat, with_placeholders, place, starts_answer))
    if [int(piece) for piece in pieces[1::2]] != list(range(len(messages))):
        raise UserError(f"{place}: the model's chat template omits or moves a message; use prompt and completion")
    rendered = _render(chat, messages, place, starts_answer)
    return pieces, _rendered_contents(rendered, pieces[::2], messages, place)


def _rendered_contents(text: str, separators: list[str], messages: list[dict], place: str) -> list[str]:
    # A template may strip whitespace around a message, but not change its text otherwise.
    contents, at = [], len(separators[0])
    for message, after in zip(messages, separators[1:], strict=True):
        candidates = [strip(message["content"]) for strip in (str, str.strip, str.lstrip, str.rstrip)]
        matches = [candidate for candidate in candidates if text.startswith(candidate + after, at)]
        if not matches:
            raise UserError(
                f"{place}: the model's chat template changes the text of a message; use prompt and completion"
            )
        contents.append(matches[0])
        at += len(matches[0] + after)
    return contents


def _render(chat: ChatTemplate, messages: list[dict], place: str, starts_answer: bool) -> str:
    try:
        from jinja2 import Template
    except ImportError:
        raise UserError("chat messages need: pip install jinja2") from None

    def render() -> str:
        template: Template = _compiled(chat.template)
        return template.render(
            messages=messages, bos_token=chat.bos_token, eos_token=chat.eos_token, add_generation_prompt=starts_answer
        )

    try:
        return _call_with_timeout(TEMPLATE_SECONDS, render)
    except Exception as error:  # a template is untrusted code and can raise anything
        reason = " ".join(f"{error}".split())[:200] or type(error).__name__
        raise UserError(f"{place}: the model's chat template: {reason}") from None


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Accepts {% generation %}, which marks the model's text; the roles already tell that."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class LimitedSandbox(ImmutableSandboxedEnvironment):
        """Refuses operators that can take minutes: powers, text repetition and formatting, large products."""

        intercepted_binops = frozenset(("*", "**", "%"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            are_numbers = all(isinstance(x, int | float) for x in (left, right))
            if operator == "**" or not are_numbers or abs(left) > MAX_OPERAND or abs(right) > MAX_OPERAND:
                raise TemplateError(f"{operator} is not supported for these values")
            return left * right if operator == "*" else left % right

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = LimitedSandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _call_with_timeout(seconds: float, call: Callable[[], str]) -> str:
    # Raises TimeoutError. Jinja compiles templates to Python, so a trace function sees every line.
    end = time.monotonic() + seconds

    def check(frame: Any, event: str, argument: Any) -> Callable:
        if time.monotonic() > end:
            raise TimeoutError(f"takes more than {seconds:g} s")
        return check

    before = sys.gettrace()
    sys.settrace(check)
    try:
        return call()
    finally:
        sys.settrace(before)
