"""Conversations: the model's chat template before the answer."""

from cli.errors import UserError
from serve.errors import ApiError
from serve.models import Model
from serve.schema import ChatRequest
from tokenizer.chat import encode_turns


def encode_messages(model: Model, request: ChatRequest) -> list[int]:
    """Ids up to the assistant's turn. Raises ApiError without a template, and for content that is not text."""
    messages = []
    for number, message in enumerate(request.messages):
        content = message.content
        if isinstance(content, list):
            if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in content):
                raise ApiError(400, f"messages.{number}: only text is supported", "messages", "unsupported_parameter")
            content = "".join(part["text"] for part in content)
        messages.append({"role": message.role, "content": content})
    try:
        return encode_turns(model.tokenizer, messages, "messages")
    except UserError as error:
        raise ApiError(400, str(error), "messages") from None
