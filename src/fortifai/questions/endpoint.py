"""One question to an OpenAI-compatible endpoint, and every way in which the answer can fail."""

from __future__ import annotations

import dataclasses
import email.utils
import os
import re
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from fortifai.errors import InputError
from fortifai.questions.reply import Busy, ErrorInside, Reply, message_of, read_reply

NEW, OLD = "max_completion_tokens", "max_tokens"
"""The field of the longest answer: OpenAI's, and the one before, which many others know alone."""

_AGAIN = frozenset({408, 409, 425, 429})
LONGEST_WAIT = 300.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where and how to ask.

    Attributes:
        model: Name of the model at the endpoint.
        base_url: Address, such as ``http://localhost:8000/v1``; None for OpenAI's.
        key_env: Environment variable that holds the key.
        timeout: Seconds to wait for one answer.
        temperature: None leaves it to the endpoint.
        max_tokens: Longest answer.
    """

    model: str
    base_url: str | None = None
    key_env: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    temperature: float | None = None
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        if self.base_url is not None and not _is_address(self.base_url):
            raise InputError(
                f"--base-url is {self.base_url!r}; it must be an address such as "
                "http://localhost:8000/v1"
            )


def _is_address(url: str) -> bool:
    try:
        address = urllib.parse.urlsplit(url)
        # a port out of range shows only when it is asked for, a host's faults when it is encoded
        sound = address.port != 0 and bool((address.hostname or "").encode("idna"))
        return sound and address.scheme in ("http", "https")
    except ValueError:
        return False


class Endpoint:
    """A client of one endpoint; several threads may ask.

    The key is read from the environment, sent to the endpoint, and told to nobody else: it is
    struck out of every message.
    """

    def __init__(self, settings: Settings) -> None:
        """Make the client; nothing is sent yet.

        Raises:
            InputError: openai is not installed, key or address cannot be used, or OpenAI's own
                endpoint is asked without a key.
        """
        try:
            import openai
        except ImportError as error:
            raise InputError(
                "the writer llm needs the package openai; pip install 'fortifai[writer]'"
            ) from error
        self.settings = settings
        # who does not know one of the two may pass over it in silence: OpenAI's own knows the first
        # and refuses to have both, others get both until they refuse
        self._fields = (NEW,) if settings.base_url is None else (NEW, OLD)
        self._refused: set[tuple[str, ...]] = set()
        self._lock = threading.Lock()
        given = os.environ.get(settings.key_env, "")
        self._key = given.strip()  # a .env file with CRLF leaves its CR
        sound = self._key.isascii() and self._key.isprintable()
        if given and not (self._key and sound):
            # sent as it is, it would come back in the client's own error
            raise InputError(
                f"the key in {settings.key_env} is blank or holds a character that no header can "
                "carry; set it anew"
            )
        if not self._key and settings.base_url is None:
            raise InputError(
                f"the environment variable {settings.key_env} is not set; set it to your key, name "
                "another with --key-env, or give --base-url for an endpoint that needs none"
            )
        try:
            # retries are the caller's, who counts and pays for each
            self._client = openai.OpenAI(
                api_key=self._key or "none",
                base_url=settings.base_url or "https://api.openai.com/v1",
                timeout=settings.timeout,
                max_retries=0,
            )
        except Exception as error:  # what it says of addresses is its HTTP library's own
            raise InputError(
                f"no client can be made for the endpoint {self.name} ({self._safe(str(error))}); "
                "check --base-url and the proxy in the environment"
            ) from error

    @property
    def name(self) -> str:
        """The endpoint's host, without what may be secret in an address."""
        address = urllib.parse.urlsplit(self.settings.base_url or "https://api.openai.com/v1")
        port = f":{address.port}" if address.port else ""
        return f"{address.hostname}{port}"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any]) -> Reply:
        """Ask once, for an answer that follows a JSON schema.

        Raises:
            Busy: No answer came, or it was broken: time ran out, 429, 5xx, a cut connection, no
                JSON, no chat completion; or it is to be asked with another field for the longest
                answer.
            InputError: The endpoint refuses: wrong key, unknown model, a request that it does not
                take.
        """
        import openai

        fields = self._fields
        own: dict[str, Any] = dict.fromkeys(fields, self.settings.max_tokens)
        if self.settings.temperature is not None:
            own["temperature"] = self.settings.temperature
        try:
            # raw: whatever the body is, it is read here, as a stranger's
            create: Any = self._client.chat.completions.with_raw_response.create
            raw = create(
                model=self.settings.model,
                messages=list(messages),
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "questions", "strict": True, "schema": dict(schema)},
                },
                **own,
            )
            body: str = raw.http_response.text
        except openai.APITimeoutError as error:
            raise Busy(f"no answer within {self.settings.timeout:g} s") from error
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise Busy(f"the connection failed ({self._safe(str(cause))})") from error
        except openai.APIStatusError as error:
            said = message_of(error.body) or str(error)
            wait = retry_after(error.response.headers.get("retry-after"), time.time())
            told = self._told(error.status_code, said, error.response.text, fields, wait)
            raise told from error
        try:
            return read_reply(body)
        except ErrorInside as inside:
            # something may have been written before it went wrong
            told = self._told(inside.code, inside.said, inside.whole, fields, None, worked=True)
            raise told from inside

    def _told(
        self,
        code: int,
        said: str,
        body: str,
        fields: tuple[str, ...],
        wait: float | None,
        *,
        worked: bool = False,
    ) -> Exception:
        """What an error of the endpoint is to us."""
        shown = f"HTTP {code} ({self._safe(said)})"
        spent = "insufficient_quota" in body
        if code >= 500 or (code in _AGAIN and not spent):
            return Busy(shown, wait, paid=worked and code >= 500)
        if code in (400, 422) and self._renamed(body, fields):
            return Busy(shown, 0.0, paid=False, fault=False)
        return InputError(
            f"the endpoint {self.name} refuses with {shown}; check --base-url, "
            f"--model and the key in {self.settings.key_env}"
        )

    def _renamed(self, body: str, sent: tuple[str, ...]) -> bool:
        """Whether a refusal is of the field for the longest answer, and another can be sent."""
        named = set(re.findall(f"{NEW}|{OLD}", body))
        if not named:
            return False
        with self._lock:
            self._refused.add(sent)
            if self._fields != sent:
                return True  # another thread has chosen already
            order = ((OLD,), (NEW,)) if named == {NEW} else ((NEW,), (OLD,))
            left = [fields for fields in order if fields not in self._refused]
            self._fields = left[0] if left else sent
            return bool(left)

    def _safe(self, text: str) -> str:
        """A message of the endpoint on one short line, without the key."""
        if self._key:
            # as it is, and as Python quotes it in its own errors
            for form in (self._key, repr(self._key)[1:-1]):
                text = text.replace(form, "***")
        shown = "".join(c if c.isprintable() else " " for c in text)
        return " ".join(shown.split())[:200]


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait by a ``Retry-After`` header: a number, or an HTTP date; at most five minutes.

    Args:
        value: The header.
        now: Seconds since the epoch.
    """
    if not value:
        return None
    try:
        wait = float(value)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(wait, 0.0), LONGEST_WAIT) if wait == wait else None
