"""JSON to and from a server that is not believed: a deadline for each request, a bound on its size, retries."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import weakref
from concurrent.futures import CancelledError
from threading import Thread
from typing import Any

import aiohttp
from yarl import URL

from common.errors import ConfigurationError, LaunchError
from common.values import one_line, size_text
from serving.address import Address

KEY = "OPENAI_API_KEY"
CONNECT_SECONDS = 10
LARGEST = 64 * 2**20
"""Bytes of an answer; ten labels scored by echo after a prompt of 4,096 tokens are a twentieth of it."""
RETRIES, FIRST_RETRIES = 6, 2
"""How often a busy or restarting server is asked again, and one that has not answered yet."""
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_OF_PROMPT = (400, 413, 422)


class RefusedError(LaunchError):
    """The server refused a request; `of_request` is set where it understood it and found fault with it."""

    of_request = False


class NoAnswerError(LaunchError):
    """What the server sent is no answer; `final` where it is not to be asked again, since it took all its time."""

    final = False


class Connection:
    """Requests to one server, from any number of threads.

    A key is read from OPENAI_API_KEY where that is set. Requests that fail on the way, or find the server busy, are
    sent again at growing intervals; one that ran out of time is not.

    Args:
        seconds: the time for a request and its whole answer.
        backoff: seconds before the first retry, twice as long before each further one.
        most: requests at a time.
    """

    def __init__(self, address: Address, seconds: float, backoff: float, most: int) -> None:
        self.address = address
        self._seconds, self._backoff = seconds, backoff
        self._answered = False
        headers = _headers(address)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=_run, args=(self._loop,), daemon=True, name="connection")
        self._thread.start()
        self._session = asyncio.run_coroutine_threadsafe(_open(headers, most), self._loop).result()
        # whoever drops the last reference may be the thread itself: it only asks it to end
        self._finish = weakref.finalize(self, self._loop.call_soon_threadsafe, _close, self._loop, self._session)

    def close(self) -> None:
        """Give up what is under way, and close."""
        self._finish()
        self._thread.join()

    def cancel(self) -> None:
        """Give up what is under way: its callers get a CancelledError."""

        async def cancel_all() -> None:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        if self._finish.alive:
            asyncio.run_coroutine_threadsafe(cancel_all(), self._loop).result()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON that a path answers with.

        Raises:
            LaunchError: the server cannot be reached. RefusedError: it refuses. NoAnswerError: its answer is none.
        """
        if not self._finish.alive:
            raise CancelledError
        asked = asyncio.run_coroutine_threadsafe(self._ask_again(method, path, body), self._loop)
        return asked.result()

    async def _ask_again(self, method: str, path: str, body: Any) -> Any:
        wait = self._backoff
        tried = 0
        while True:
            try:
                status, wanted_wait, data = await self._ask_once(method, path, body)
            except TimeoutError:
                raise self._too_slow() from None
            except (aiohttp.InvalidURL, aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError) as error:
                raise self._unreachable(error) from None
            except (aiohttp.ClientError, OSError) as error:
                failure: LaunchError = self._unreachable(error)
            else:
                self._answered = True
                if status not in _BUSY:
                    return self._parse(path, status, data)
                wait = max(wait, wanted_wait)
                failure = NoAnswerError(f"{self.address.url}/{path} answers {status}: {_words(data)}")
                failure.final = True
            tried += 1
            if tried > (RETRIES if self._answered else FIRST_RETRIES):
                raise failure
            await asyncio.sleep(wait)
            wait *= 2

    async def _ask_once(self, method: str, path: str, body: Any) -> tuple[int, float, bytes]:
        """Status, the seconds that the server wants us to wait, and the bytes of one answer."""
        url = URL(self.address.join(path), encoded=True)
        timeout = aiohttp.ClientTimeout(total=self._seconds, sock_connect=CONNECT_SECONDS)
        async with self._session.request(method, url, json=body, timeout=timeout, allow_redirects=False) as response:
            data = bytearray()
            async for piece in response.content.iter_any():
                data += piece
                if len(data) > LARGEST:
                    raise NoAnswerError(f"{self.address.url}/{path} answers with more than {size_text(LARGEST)}.")
            return response.status, _seconds_of(response.headers.get("Retry-After", "")), bytes(data)

    def _parse(self, path: str, status: int, data: bytes) -> Any:
        url = self.address.url
        if status in (401, 403):
            raise LaunchError(f"{url} refuses access: put its key into the environment variable {KEY}.")
        if 300 <= status < 400:
            raise RefusedError(f"{url} sends its callers elsewhere ({status}): name the address where it sends them.")
        if status >= 400:
            refused = RefusedError(f"{url}/{path} answers {status}: {_words(data)}")
            refused.of_request = status in _OF_PROMPT
            raise refused
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise NoAnswerError(f"{url}/{path} answers no JSON: it is no OpenAI-compatible server.") from None

    def _too_slow(self) -> LaunchError:
        url = self.address.url
        if self._answered:
            late = NoAnswerError(f"{url} gave no whole answer within {self._seconds:g} s.")
            late.final = True
            return late
        return LaunchError(f"{url} cannot be reached: no whole answer within {self._seconds:g} s.")

    def _unreachable(self, error: Exception) -> LaunchError:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if isinstance(number, int) and number > 0 else type(error).__name__
        return LaunchError(f"{self.address.url} cannot be reached ({reason}): is the server up, and the address right?")


def _headers(address: Address) -> dict[str, str]:
    """What goes with every request: the login of the address, or else the key."""
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}  # what is compressed has no bound
    if address.login is not None:
        login = base64.b64encode(":".join(address.login).encode()).decode()
        return headers | {"Authorization": f"Basic {login}"}
    key = os.environ.get(KEY, "").strip()
    if not key.isprintable():
        raise ConfigurationError(f"the environment variable {KEY} holds a control character: set it anew.")
    return headers | ({"Authorization": f"Bearer {key}"} if key else {})


async def _open(headers: dict[str, str], most: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=most),
        headers=headers,
        auto_decompress=False,
        trust_env=True,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


_closing: set[asyncio.Task[None]] = set()  # asyncio itself holds its tasks weakly


def _close(loop: asyncio.AbstractEventLoop, session: aiohttp.ClientSession) -> None:
    async def close() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await session.close()
        loop.stop()

    task = loop.create_task(close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


def _seconds_of(retry_after: str) -> float:
    """Retry-After in seconds, at most a minute; 0 for a date or none."""
    return min(60.0, float(retry_after)) if retry_after.isascii() and retry_after.isdigit() else 0.0


def _words(data: bytes) -> str:
    """What a server says of a refusal, on one line: its `message` where it sends OpenAI's error objects."""
    text = data[:4096].decode("utf-8", "replace")
    try:
        error = json.loads(data[: 2**16])
        message = error.get("error", error)
        message = message.get("message", message.get("detail")) if isinstance(message, dict) else message
        text = message if isinstance(message, str) else text
    except (ValueError, RecursionError, AttributeError):
        pass
    return one_line(text, 200) if text.strip() else "nothing"
