"""Bodies of requests, as OpenAI's API defines them; fields that change nothing here are taken and ignored."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tony.serve.errors import ApiError

# Fields that would change an answer elsewhere and can't here, with the values that change nothing; nor does null.
NEUTRAL: dict[str, tuple] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "suffix": ("",),
    "stream_format": ("", "audio"),
    "speed": (1,),
    "stream": (False,),  # of speech and pictures; chats and completions have it
}


class Body(BaseModel):
    """A request's body; unknown fields are let through, as newer clients send more of them."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    audio: dict[str, Any] | None = None


class AudioOut(Body):
    voice: str | dict[str, Any] = "heart"
    format: str = "wav"


class StreamOptions(Body):
    include_usage: bool = False


class Sampled(Body):
    model: str = ""
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int = Field(default=1, ge=1, le=16)
    stream: bool = False
    stream_options: StreamOptions | None = None


class ChatBody(Sampled):
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    modalities: list[Literal["text", "audio", "image"]] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    audio: AudioOut | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Any] | None = None
    functions: list[Any] | None = None  # what tools were called before
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None


class CompletionBody(Sampled):
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int = Field(default=16, ge=0)
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=20)


class SpeechBody(Body):
    model: str = ""
    input: str = Field(min_length=1, max_length=4096)
    voice: str | dict[str, Any] = "heart"
    response_format: str = "mp3"
    temperature: float | None = Field(default=None, ge=0, le=2)
    seed: int = 0


class ImageBody(Body):
    model: str = ""
    prompt: str = Field(min_length=1, max_length=4000)
    n: int = Field(default=1, ge=1, le=10)
    size: str = "auto"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    temperature: float | None = Field(default=None, ge=0, le=2)
    seed: int | None = None


def refuse_what_is_not_offered(body: Body) -> None:
    """ApiError if a field of NEUTRAL asks for what would change the answer: leaving it out would look like a bug."""
    for name, neutral in NEUTRAL.items():
        value = (body.model_extra or {}).get(name)
        if value is not None and value not in neutral:
            said = f"{name} is not offered (got {str(value)[:60]!r}); leave it out"
            raise ApiError(400, said, name, "unsupported_parameter")
