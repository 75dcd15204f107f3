"""Conversations as a model's own chat template writes them."""

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
LARGE = 2**63
_MARK = re.compile("\ue000(\\d+)\ue001")  # where a message's text will stand


def encode_chat(tokenizer: Tokenizer, messages: Any, place: str) -> tuple[list[int], list[bool]]:
    """Ids of a conversation, after the separator, and which are scored: what the assistant says,

    with the special token that ends its turn. Special tokens come from the template only: text
    that contains them is text. Raises UserError, naming `place`, for anything but a list of
    {"role", "content"} that ends with the assistant, or without a template.
    """
    if tokenizer.chat is None:
        raise UserError(f"{place}: this model has no chat template; use prompt and completion")
    if not isinstance(messages, list) or not messages:
        raise UserError(f'{place}: "messages" is not a list of messages')
    for number, message in enumerate(messages):
        if not (
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
        ):
            shown = json.dumps(message)[:60]
            raise UserError(f'{place}: message {number + 1} has no "role" and "content": {shown}')
    if messages[-1]["role"] != "assistant":
        raise UserError(f"{place}: the last message is not the assistant's: nothing to learn")
    marked = [m | {"content": f"\ue000{i}\ue001"} for i, m in enumerate(messages)]
    pieces = _MARK.split(_render(tokenizer.chat, marked, place))
    if [int(piece) for piece in pieces[1::2]] != list(range(len(messages))):
        raise UserError(f"{place}: the model's chat template leaves out or moves a message")
    said = _as_written(_render(tokenizer.chat, messages, place), pieces[::2], messages, place)
    ids, scored = [tokenizer.separator_id], [False]

    def add(found: list[int], count: bool) -> None:
        ids.extend(found)
        scored.extend([count] * len(found))

    speaks = False
    for at, piece in enumerate(pieces):
        if at % 2 == 0:
            found = tokenizer.encode_with_special(piece)
            ends = [i for i, token in enumerate(found, 1) if token in tokenizer.special_ids]
            turn = ends[0] if speaks and ends else 0
            add(found[:turn], True)
            add(found[turn:], False)
        else:
            speaks = messages[int(piece)]["role"] == "assistant"
            add(tokenizer.encode(said[int(piece)]), speaks)
    return ids, scored


def _as_written(text: str, around: list[str], messages: list[dict], place: str) -> list[str]:
    # What the template makes of each message: itself, or itself without white space around it.
    said, at = [], len(around[0])
    for message, after in zip(messages, around[1:], strict=True):
        ways = [change(message["content"]) for change in (str, str.strip, str.lstrip, str.rstrip)]
        fitting = [way for way in ways if text.startswith(way + after, at)]
        if not fitting:
            raise UserError(f"{place}: the model's chat template rewrites what a message says")
        said.append(fitting[0])
        at += len(fitting[0] + after)
    return said


def _render(chat: ChatTemplate, messages: list[dict], place: str) -> str:
    try:
        from jinja2 import Template
    except ImportError:
        raise UserError("chat messages need: pip install jinja2") from None
    values = {
        "bos_token": chat.bos_token,
        "eos_token": chat.eos_token,
        "messages": messages,
        "add_generation_prompt": False,
    }

    def render() -> str:
        template: Template = _compiled(chat.template)
        return template.render(values)

    try:
        return _within(TEMPLATE_SECONDS, render)
    except Exception as error:  # a template is a program of others: it may fail in any way
        reason = " ".join(f"{error}".split())[:200] or type(error).__name__
        raise UserError(f"{place}: the model's chat template: {reason}") from None


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what the model says; here the messages' roles tell."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Bounded(ImmutableSandboxedEnvironment):
        """No power, no repeated or formatted text, no large product: one could take minutes."""

        intercepted_binops = frozenset(("*", "**", "%"))

        def call_binop(self, context, operator, left, right):
            numbers = all(isinstance(x, int | float) for x in (left, right))
            if operator == "**" or not numbers or abs(left) > LARGE or abs(right) > LARGE:
                raise TemplateError(f"{operator} is not supported for these values")
            return left * right if operator == "*" else left % right

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _within(seconds: float, call: Callable[[], str]) -> str:
    # Raises TimeoutError. Templates are compiled to Python: every line of them is traced.
    end = time.monotonic() + seconds

    def check(frame, event, argument):
        if time.monotonic() > end:
            raise TimeoutError(f"takes more than {seconds:g} s")
        return check

    before = sys.gettrace()
    sys.settrace(check)
    try:
        return call()
    finally:
        sys.settrace(before)
