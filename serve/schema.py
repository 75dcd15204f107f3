"""Requests of the endpoints, as OpenAI's API defines them. What is not listed is refused by name."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MOST_PROMPTS, MOST_STOPS, MOST_CHOICES = 128, 16, 32
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=1_000_000)]


def _check_unicode(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("a lone surrogate is not text")
    return text


Text = Annotated[str, AfterValidator(_check_unicode)]
Prompts = (
    Text
    | Annotated[list[Text], Field(max_length=MOST_PROMPTS)]
    | Ids
    | Annotated[list[Ids], Field(max_length=MOST_PROMPTS)]
)
Stops = Text | Annotated[list[Text], Field(max_length=MOST_STOPS)] | None


class Body(BaseModel):
    """A request body: unknown fields are refused, numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class StreamOptions(Body):
    """Of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Generation(Body):
    """What completions and chat completions share."""

    model: str
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stops = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(1.0, ge=0, le=100)
    top_p: float | None = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    """Extension: keep the k likeliest tokens; 0 keeps all."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Extension: drop tokens below this fraction of the highest probability."""
    user: str | None = None
    """Accepted and not used."""

    # Accepted at the value that changes nothing, because clients send it.
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None


class CompletionRequest(Generation):
    """/v1/completions."""

    prompt: Prompts
    max_tokens: int | None = Field(16, ge=0)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = Field(None, ge=1, le=MOST_CHOICES)
    suffix: None = None


class Message(Body):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]  # the template writes it: not free text
    content: Text | list[dict[str, Any]]


class ChatRequest(Generation):
    """/v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)


class EmbeddingRequest(Body):
    """/v1/embeddings."""

    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


class TokenizeRequest(Body):
    """/tokenize, as vLLM and lm-eval have it."""

    model: str | None = None
    prompt: Text
    add_special_tokens: bool = True


class DetokenizeRequest(Body):
    """/detokenize."""

    model: str | None = None
    tokens: Ids
