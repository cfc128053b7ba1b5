"""What an OpenAI-compatible endpoint sent back, read as a stranger's words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

_REFUSALS = frozenset(
    {
        *("invalid_request_error", "invalid_api_key", "insufficient_quota", "model_not_found"),
        *("authentication_error", "permission_error", "permission_denied_error"),
        *("not_found_error", "billing_error"),
    }
)
"""Names that OpenAI and those who follow it give to errors that asking again does not mend."""


class Busy(Exception):  # noqa: N818 - a state of the endpoint, and asked again, not an error
    """No answer this time; asking again may help.

    Attributes:
        why: What happened.
        wait: Seconds that the endpoint asks to wait, or None.
        paid: Whether the endpoint may have worked, and charge for it.
        fault: Whether it counts as a failure; not where the next call is made in another way.
    """

    def __init__(
        self, why: str, wait: float | None = None, *, paid: bool = True, fault: bool = True
    ) -> None:
        super().__init__(why)
        self.why, self.wait, self.paid, self.fault = why, wait, paid, fault


class ErrorInside(Exception):  # noqa: N818 - named by where it stands
    """An answer of status 200 that is an error.

    Attributes:
        code: The HTTP status that it stands for.
        said: Its message.
        whole: All of the body, for what stands elsewhere in it.
    """

    def __init__(self, code: int, said: str, whole: str) -> None:
        super().__init__(said)
        self.code, self.said, self.whole = code, said, whole


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    Attributes:
        text: The model's own words, whatever they are.
        problem: Why they are no whole answer (cut off, refused); empty if they are one.
        tokens_in: Tokens of the prompt, None where the endpoint does not say.
        tokens_out: Tokens of the answer, its reasoning included, None where the endpoint does not
            say.
        written: Bytes of UTF-8 that the model wrote and that came, its reasoning included.
    """

    text: str
    problem: str
    tokens_in: int | None
    tokens_out: int | None
    written: int


def read_reply(body: str) -> Reply:
    """Read a chat completion, also one sent as a stream of events that nobody asked for.

    Text is ``content``, or the texts of its parts where it is a list; reasoning is no answer.

    Raises:
        ErrorInside: It is an error, whatever the status said.
        Busy: It is no chat completion.
    """
    try:
        whole = _streamed(body) if body.lstrip().startswith(("data:", ":")) else json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Busy(f"the answer is no chat completion ({type(error).__name__})") from error
    _check_error(whole, body)
    try:
        choice = whole["choices"][0]
        message = choice["message"]
    except (KeyError, IndexError, TypeError) as error:
        raise Busy(f"the answer is no chat completion ({type(error).__name__})") from error
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise Busy("the answer is no chat completion")
    text = _text(message.get("content"))
    problem = ""
    if message.get("refusal"):
        problem = "the model refused"
    elif choice.get("finish_reason") == "length":
        problem = "the answer was cut off at --max-tokens"
    elif not text.strip():
        thought = _thought(message).strip()
        problem = "the answer is empty" + (", all of it is reasoning" if thought else "")
    written = len((text + _thought(message)).encode("utf-8", "surrogatepass"))
    return Reply(text, problem, *_usage(whole.get("usage"), bool(written)), written)


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(
        part["text"]
        for part in parts
        if isinstance(part, dict)
        and part.get("type", "text") in ("text", "output_text")
        and isinstance(part.get("text"), str)
    )


def _thought(message: Mapping[str, Any]) -> str:
    """What a model wrote for itself, wherever servers put it."""
    found = (message.get(name) for name in ("reasoning_content", "reasoning"))
    return next((text for text in found if isinstance(text, str)), "")


def _usage(usage: object, wrote: bool) -> tuple[int | None, int | None]:
    """Tokens in and out; a count of 0 for what there is none of is no count."""
    counts = usage if isinstance(usage, dict) else {}
    came, went, both = (
        _count(counts.get(f"{name}_tokens")) for name in ("prompt", "completion", "total")
    )
    if came is not None and both is not None and both > came:
        # some leave reasoning out of the one and not of the other
        went = max(went or 0, both - came)
    return came or None, went if went or not wrote else None


def _count(value: object) -> int | None:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9
    return value if isinstance(value, int) and good else None


# --- errors -----------------------------------------------------------------------------------


def _check_error(whole: object, body: str) -> None:
    """Raise what a body of status 200 tells of an error: in its place, or in the first choice's."""
    if not isinstance(whole, dict):
        return
    choices = whole.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    choice = first if isinstance(first, dict) else {}
    error = whole.get("error") or choice.get("error")
    broken = choice.get("finish_reason") == "error"
    if not error and not broken and (choice or whole.get("object") != "error"):
        return
    fields = error if isinstance(error, dict) else {} if error or broken else whole
    said = message_of({"error": error} if error else fields) or "an error without a message"
    raise ErrorInside(_code(fields), said, body)


def _code(error: Mapping[str, Any]) -> int:
    """The HTTP status that an error stands for; 500 where it does not say."""
    told = [error.get(name) for name in ("code", "status", "status_code", "type")]
    for value in told:
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if isinstance(number, int) and 400 <= number < 600:
            return number
    if any(isinstance(value, str) and value in _REFUSALS for value in told):
        return 400
    return 429 if "rate_limit_exceeded" in told else 500


def message_of(body: object) -> str:
    """The message in an error's body, wherever servers put it."""
    inner = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(inner, dict):
        inner = inner.get("message") or inner.get("detail") or ""
    if isinstance(inner, dict | list):
        return json.dumps(inner)
    return inner if isinstance(inner, str) else ""


# --- streams ----------------------------------------------------------------------------------


def _streamed(body: str) -> dict[str, Any]:
    """Server-sent events with pieces of a chat completion, as the completion that they make."""
    texts: dict[str, list[str]] = {"content": [], "reasoning": [], "refusal": []}
    finish, usage = None, None
    for line in body.split("\n"):
        data = line.strip().removeprefix("data:").strip()
        if not line.strip().startswith("data:") or data in ("", "[DONE]"):
            continue
        piece = json.loads(data)
        _check_error(piece, body)
        if not isinstance(piece, dict):
            raise ValueError("a piece that is no object")
        usage = piece.get("usage") or usage
        for choice in filter(lambda c: isinstance(c, dict), piece.get("choices") or ()):
            finish = choice.get("finish_reason") or finish
            delta = choice.get("delta") or choice.get("message") or {}
            texts["content"].append(_text(delta.get("content")))
            texts["refusal"].append(_text(delta.get("refusal")))
            texts["reasoning"].append(_thought(delta))
    if finish is None:
        raise Busy("the stream of the answer broke off")
    message = {name: "".join(parts) for name, parts in texts.items()}
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}
