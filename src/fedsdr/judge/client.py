"""The judge's endpoint: the only file that speaks HTTP.

The key stays in this file: it is removed from everything that a server sends back, errors included,
and no exception of the client library, which holds the request's headers, leaves it.
"""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

from fedsdr.core.errors import UserError
from fedsdr.judge.prompts import Messages

OPENAI: Final = "https://api.openai.com/v1"
RESUME_HINT: Final = "nothing is lost: give the same command again later to go on"
SHORTEST_SECRET: Final = 8  # shorter "keys" (EMPTY, none) are for servers without keys
UNREACHABLE: Final = "cannot be reached"
FATAL: Final = (UNREACHABLE, "HTTP 401", "HTTP 403")
LONGEST_WAIT: Final = 600.0  # seconds that a server may ask us to wait


@dataclass(frozen=True)
class Endpoint:
    """The address of a judge, and how it is called.

    reasoning: the model takes max_completion_tokens and no temperature.
    max_tokens: of a reply. timeout, backoff, longest_backoff: seconds. retries: of one request.
    requests_per_minute: 0 is without bound. concurrency: requests under way at a time.
    """

    base_url: str
    model: str
    key: str = field(repr=False)
    max_tokens: int = 1024
    reasoning: bool = False
    timeout: float = 120.0
    retries: int = 6
    backoff: float = 1.0
    longest_backoff: float = 60.0
    requests_per_minute: float = 0.0
    concurrency: int = 8

    @property
    def host(self) -> str:
        """Host and port, without anything secret."""
        return host_of(self.base_url)


@dataclass(frozen=True)
class JudgeReply:
    """Token counts are the server's, 0 where it reports none."""

    text: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Failure:
    """A request without a reply. wait: seconds that the server asks for."""

    words: str
    retry: bool
    wait: float = 0.0


def endpoint_from(
    environment: Mapping[str, str], key_variable: str, base_url: str, model: str, **options: Any
) -> Endpoint:
    """Take the key out of the environment and check what can be checked without a request."""
    import_openai()
    host_of(base_url or OPENAI)
    if not model:
        raise UserError("no judge is named: give --judge MODEL, as the endpoint calls the model")
    key = environment.get(key_variable, "").strip()
    if not key:
        raise UserError(
            f"the environment variable {key_variable} holds no key for "
            f"{host_of(base_url or OPENAI)}: set it, or name another one by --key-variable (any "
            "text does for a server without keys)"
        )
    if not key.isascii() or not key.isprintable():
        raise UserError(f"the key in {key_variable} has characters that no HTTP header may hold")
    return Endpoint(base_url or OPENAI, model, key, **options)


def host_of(base_url: str) -> str:
    """Host and port of an http(s) address; one that holds credentials is refused, unquoted."""
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UserError(f"the judge's base URL is not an address ({error})") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            "the judge's base URL holds credentials or a query: give the bare address "
            f"({OPENAI} say), and the key in its environment variable"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"the judge's base URL {base_url!r} is not like {OPENAI}")
    return host if port is None else f"{host}:{port}"


def import_openai() -> Any:
    """The openai module; `UserError` where it is not installed."""
    try:
        import openai
    except ImportError:
        raise UserError("judging needs the openai client: pip install 'fedsdr[judge]'") from None
    return openai


class RateLimiter:
    """Starts requests at a steady rate, and none before the end of a server's Retry-After."""

    def __init__(self, requests_per_minute: float, clock: Callable[[], float]) -> None:
        self._gap = 60 / requests_per_minute if requests_per_minute else 0.0
        self._clock = clock
        self._next = -math.inf

    def reserve(self) -> float:
        """Reserve the next start; returns the seconds until then."""
        now = self._clock()
        start = max(now, self._next)
        self._next = start + self._gap
        return start - now

    def hold(self, seconds: float) -> None:
        """Delay all further requests by so many seconds."""
        self._next = max(self._next, self._clock() + seconds)


class JudgeClient:
    """Asks an OpenAI-compatible endpoint, in one event loop: `async with JudgeClient(...)`."""

    def __init__(
        self,
        endpoint: Endpoint,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """sleep, clock: seconds, to be replaced in tests."""
        self.endpoint = endpoint
        self._openai = import_openai()
        # The client library's retries are off: they ignore our rate limit, and that a Retry-After
        # applies to all requests of an account.
        self._client = self._openai.AsyncOpenAI(
            api_key=endpoint.key,
            base_url=endpoint.base_url,
            timeout=endpoint.timeout,
            max_retries=0,
        )
        self._sleep = sleep
        self._limiter = RateLimiter(
            endpoint.requests_per_minute, clock or asyncio.get_running_loop().time
        )

    async def __aenter__(self) -> "JudgeClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def check(self) -> None:
        """Raise unless the endpoint is there and takes the key, before any long work.

        Not every server lists its models: other refusals say nothing about the judge.
        """
        failure = await self._attempt(lambda: self._client.models.list(timeout=10.0))
        if isinstance(failure, Failure) and failure.words.startswith(FATAL):
            raise self._failed(replace(failure, retry=False))

    async def ask(self, messages: Messages) -> JudgeReply:
        """One reply. Transient faults are retried with backoff; others raise `UserError`."""
        failure = Failure("", retry=True)
        attempt = 0
        while failure.retry and attempt <= self.endpoint.retries:
            await self._wait(failure, attempt)
            answer = await self._attempt(lambda: self._create(messages))
            reply = answer if isinstance(answer, Failure) else self._reply(answer)
            if isinstance(reply, JudgeReply):
                return reply
            failure, attempt = reply, attempt + 1
        raise self._failed(failure)

    async def _wait(self, failure: Failure, attempt: int) -> None:
        """Wait for this request's turn; after failures with exponential backoff and jitter."""
        seconds = 0.0
        if attempt:
            longest = self.endpoint.backoff * 2.0 ** (attempt - 1)
            seconds = min(longest, self.endpoint.longest_backoff) * random.uniform(0.5, 1)
        if failure.wait > LONGEST_WAIT:
            raise self._failed(Failure(f"it asks to wait {failure.wait:.0f} s", retry=False))
        if failure.wait:
            self._limiter.hold(failure.wait)
        if seconds := max(seconds, failure.wait):
            await self._sleep(seconds)
        if (turn := self._limiter.reserve()) > 0:
            await self._sleep(turn)

    async def _create(self, messages: Messages) -> Any:
        e = self.endpoint
        options: dict[str, Any] = (
            {"max_completion_tokens": e.max_tokens}
            if e.reasoning
            else {"max_tokens": e.max_tokens, "temperature": 0}
        )
        return await self._client.chat.completions.create(
            model=e.model, messages=messages, **options
        )

    async def _attempt(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """What the server answers, or a `Failure`; never an exception of the client's."""
        openai = self._openai
        try:
            return await call()
        except openai.APITimeoutError:
            return Failure(f"{UNREACHABLE}: no answer within the time-out", retry=True)
        except openai.APIConnectionError as error:
            return Failure(
                f"{UNREACHABLE}: {self._clean(str(error.__cause__ or error))}", retry=True
            )
        except openai.APIStatusError as error:
            return self._refusal(error)
        except (openai.OpenAIError, ValueError) as error:  # a body that is not JSON
            return Failure(f"not a chat completion ({type(error).__name__})", retry=True)

    def _refusal(self, error: Any) -> Failure:
        status = int(error.status_code)
        fleeting = status in (408, 409, 425, 429) or status >= 500
        spent = error.code == "insufficient_quota"  # comes as a 429 too, and does not pass
        words = f"HTTP {status}: {self._clean(str(error))[:300]}"
        return Failure(words, fleeting and not spent, _retry_after(error.response.headers))

    def _reply(self, answer: Any) -> JudgeReply | Failure:
        try:
            text = answer.choices[0].message.content
            usage = answer.usage
            if not isinstance(text, str | None):
                raise TypeError
            return JudgeReply(
                self._clean(text or ""),
                int(usage.prompt_tokens or 0) if usage else 0,
                int(usage.completion_tokens or 0) if usage else 0,
            )
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            return Failure("not a chat completion", retry=True)

    def _clean(self, text: str) -> str:
        """Without the key, should a server repeat it."""
        key = self.endpoint.key
        return text.replace(key, "[key]") if len(key) >= SHORTEST_SECRET else text

    def _failed(self, failure: Failure) -> UserError:
        tried = f" after {self.endpoint.retries + 1} attempts" if failure.retry else ""
        return UserError(
            f"the judge {self.endpoint.model!r} at {self.endpoint.host} fails{tried} "
            f"({failure.words}): {RESUME_HINT}"
        )


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a response asks to wait: Retry-After as a number or a date, else 0."""
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return max(0.0, seconds) if not math.isnan(seconds) else 0.0
