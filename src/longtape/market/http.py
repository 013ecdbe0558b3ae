"""JSON over HTTP from services that fail: tried again with back-off, within their rate, in bounded memory."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from longtape.core.errors import ServiceError, UserError

TRIES = 8
LONGEST_BACKOFF = 5.0
LONGEST_WAIT = 15 * 60.0
ANSWER_LIMIT = 16 << 20
ANSWER_SECONDS = 60.0
_TIMEOUT = httpx.Timeout(15.0, connect=5.0)
_TOO_MANY = frozenset({403, 418, 429})
_TRANSIENT = _TOO_MANY | {408, 425}
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

T = TypeVar("T")
Sleep = Callable[[float], object]


@dataclass(frozen=True)
class Answer:
    """What a service said: status, headers (names in lower case) and the JSON body."""

    status: int
    headers: Mapping[str, str]
    body: Any


class RetryableError(Exception):
    """An answer that may be better next time. `wait`: seconds that the service asks for; `busy`: all should wait."""

    def __init__(self, reason: str, wait: float | None = None, busy: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.busy = wait, busy


class NotFound(ServiceError):
    """The service has nothing at that path (HTTP 404)."""


class RateLimiter:
    """At most `rate` calls a second over all threads, and none before a time that the service set."""

    def __init__(self, rate: float, sleep: Sleep) -> None:
        self._gap, self._sleep = 1.0 / rate, sleep
        self._next, self._lock = 0.0, threading.Lock()

    def wait(self) -> None:
        """Return when the caller may call."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        if turn > now:
            self._sleep(turn - now)

    def hold(self, seconds: float) -> None:
        """Nobody calls for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def retry(call: Callable[[], T], where: str, tries: int, pause: Callable[[float, bool], object]) -> T:
    """What `call` gives, tried again after RetryableError with back-off of 0.25, 0.5, 1, 2, 4, 5, 5 s or as it asks.

    `pause(seconds, everybody)` waits. Raises ServiceError naming `where` and the reason when no try succeeds.
    """
    for attempt in range(tries):
        try:
            return call()
        except RetryableError as failure:
            reason, told, busy = str(failure), failure.wait or 0.0, failure.busy
        if told > LONGEST_WAIT:
            raise ServiceError(f"{where}: {reason}; it asks to wait {told:,.0f} s: try again then")
        if attempt + 1 < tries:
            pause(max(told, min(0.25 * 2**attempt, LONGEST_BACKOFF)), busy)
    raise ServiceError(f"{where}: {reason} ({tries} tries); what came before is kept, run it again later")


class Client:
    """GET JSON from one base URL, tried `tries` times (see `retry`). Safe to share between threads.

    `readable` are the HTTP statuses whose body is an answer; `sleep` is what waits, tests give one that does not.
    """

    def __init__(
        self,
        base_url: str,
        *,
        rate: float = 50.0,
        tries: int = TRIES,
        sleep: Sleep | None = None,
        readable: frozenset[int] = frozenset({200}),
    ) -> None:
        self._url = _checked_url(base_url)
        self.host = self._url.netloc.decode().rpartition("@")[2]
        self._closing = threading.Event()
        self._sleep = sleep or self._closing.wait
        self._tries, self._readable = tries, readable
        self._limiter = RateLimiter(rate, self._sleep)
        self._client = httpx.Client(
            base_url=self._url,
            timeout=_TIMEOUT,
            trust_env=self._url.host not in _LOOPBACK,
            headers={"Accept": "application/json", "User-Agent": "longtape"},
        )

    def close(self) -> None:
        """End all waiting and close the connections."""
        self._closing.set()
        self._client.close()

    def get(self, path: str, params: Mapping[str, str | int], judge: Callable[[Answer], T]) -> T:
        """What `judge` makes of the answer; it raises RetryableError for one worth another try."""

        def call() -> T:
            self._limiter.wait()
            if self._closing.is_set():
                raise ServiceError(f"{self.host}{path}: stopped")
            return judge(self._read(path, *self._send(path, params)))

        return retry(call, f"{self.host}{path}", self._tries, self._pause)

    def hold(self, seconds: float) -> None:
        """No call for so long, in any thread."""
        self._limiter.hold(seconds)

    def _pause(self, seconds: float, busy: bool) -> None:
        if busy:
            self.hold(seconds)
        self._sleep(seconds)

    def _send(self, path: str, params: Mapping[str, str | int]) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body; RetryableError if the connection fails."""
        try:
            with self._client.stream("GET", path, params=dict(params)) as response:
                return response.status_code, dict(response.headers), _bounded(response)
        except httpx.TransportError as failure:
            raise RetryableError(_transport_reason(failure)) from failure

    def _read(self, path: str, status: int, named: Mapping[str, str], raw: bytes) -> Answer:
        headers = {name.lower(): value for name, value in named.items()}
        if status in _TRANSIENT or status >= 500:
            raise RetryableError(_status_reason(status, raw), retry_after(headers), busy=status in _TOO_MANY)
        if status not in self._readable:
            kind_of_error = NotFound if status == 404 else ServiceError
            raise kind_of_error(f"{self.host}{path}: {_status_reason(status, raw)}; check the base URL")
        kind = headers.get("content-type", "nothing").partition(";")[0]
        if "json" not in kind:
            raise RetryableError(f"answered {kind} instead of JSON")
        try:
            return Answer(status, headers, json.loads(raw))
        except (ValueError, RecursionError):
            raise RetryableError(f"answered broken JSON ({len(raw):,} bytes)") from None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110 §10.2.3: seconds or a date), None without one."""
    text = headers.get("retry-after", "").strip()
    if text.isdigit():
        return float(text)
    until, now = http_date(text), http_date(headers.get("date", ""))
    return max((until - now).total_seconds(), 0.0) if until and now else None


def http_date(text: str) -> datetime | None:
    """A date as HTTP headers write it, None where it is not one."""
    try:
        return parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None


def _checked_url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise UserError(f"base URL is not understood: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(
            f"base URL must begin with https:// or http:// and name a host, not '{url.host or base_url}'"
        )
    return url


def _bounded(response: httpx.Response) -> bytes:
    parts, size, deadline = [], 0, time.monotonic() + ANSWER_SECONDS
    for part in response.iter_bytes():
        parts.append(part)
        size += len(part)
        if size > ANSWER_LIMIT:
            raise RetryableError(f"answered more than {ANSWER_LIMIT >> 20} MiB")
        if time.monotonic() > deadline:
            raise RetryableError(f"was still answering after {ANSWER_SECONDS:g} s")
    return b"".join(parts)


def _transport_reason(failure: httpx.TransportError) -> str:
    if isinstance(failure, httpx.TimeoutException):
        return "no answer in time"
    if isinstance(failure, httpx.ConnectError):
        return "out of reach"
    return "the connection broke"


def _status_reason(status: int, raw: bytes) -> str:
    text = " ".join(raw[:2_000].decode("utf-8", "replace").split())
    readable = "" if text.startswith("<") else "".join(c for c in text if c.isprintable())[:120]
    return f"HTTP {status}" + (f" ({readable})" if readable else "")
