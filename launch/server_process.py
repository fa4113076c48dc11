"""A server that runs as long as this process: started, watched until it answers, ended with everything it started."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import FrameType

import requests

from common.errors import LaunchError

POLL = 0.5
REMIND = 60
GRACE = 30
"""Seconds for a server to end by itself."""


class ServerProcess:
    """The process, and what it has printed that matters: `node` is the text behind `mark`."""

    def __init__(self, command: list[str], environment: Mapping[str, str], mark: str) -> None:
        self.node = ""
        self._mark = mark
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for this process, which ends the server
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if line.startswith(self._mark):
                    self.node = line.removeprefix(self._mark).strip()
                else:
                    print(line, end="", file=sys.stderr, flush=True)

    def wait_until_ready(self, url_of: Callable[[], str | None]) -> str:
        """The address, as soon as the server there says that it is healthy.

        Raises:
            LaunchError: the process ended before.
        """
        reminded = time.monotonic()
        while not (url := url_of()) or not _healthy(url):
            if (status := self._process.poll()) is not None:
                self._reader.join(GRACE)
                raise LaunchError(f"the server ended with status {status} before it was ready: see above why.")
            if time.monotonic() - reminded > REMIND:
                reminded = time.monotonic()
                print(f"waiting for {url or 'a node'}", file=sys.stderr, flush=True)
            time.sleep(POLL)
        return url

    def wait(self) -> None:
        """Return when the server ends.

        Raises:
            LaunchError: it does, without being told.
        """
        status = self._process.wait()
        raise LaunchError(f"the server ended with status {status}: see above why.")

    def end(self) -> None:
        """End it and what it started."""
        for what in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, what)
            except ProcessLookupError:
                break
            try:
                self._process.wait(GRACE)
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()
        self._reader.join(GRACE)


@contextmanager
def running(command: list[str], environment: Mapping[str, str], mark: str) -> Iterator[ServerProcess]:
    """The process until the block ends, however it ends: SIGTERM and SIGHUP count as Ctrl-C.

    SIGINT is handled too, which a shell has the commands that it runs in the background ignore.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        server = ServerProcess(command, environment, mark)
        try:
            yield server
        finally:
            for number in before:
                signal.signal(number, signal.SIG_IGN)  # an impatient second Ctrl-C would leave processes behind
            server.end()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ensure_free(host: str, port: int) -> None:
    """Refuse a port that another program has: it would answer in the server's place.

    Raises:
        LaunchError: it is taken.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise LaunchError(f"port {port} of {host} cannot be had ({error.strerror}): name another --port.") from None


def find(command: str) -> str:
    """The whole path of vLLM's command.

    Raises:
        LaunchError: there is none; the message says how to get one.
    """
    if found := shutil.which(command):
        return str(Path(found).absolute())
    raise LaunchError(
        f"there is no {command} here: install vllm in an environment of its own (python -m venv vllm; vllm/bin/pip "
        "install vllm; without a GPU, make serving-env) and name its command with --vllm vllm/bin/vllm, or choose "
        "another --executor."
    )


def _healthy(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=5).status_code == 200
    except requests.RequestException:
        return False
