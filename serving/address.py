"""The address of a server as people type it; its password and its query go to the server and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from common.errors import ConfigurationError

_EXAMPLE = "write for example http://localhost:8000"


@dataclass(frozen=True)
class Address:
    """Where a server's OpenAI-compatible API begins.

    Attributes:
        url: scheme, host, port and path, up to and with `/v1`: what may be printed and written.
        query: what stood behind `?`; it goes with every request.
        login: user name and password that stood before the host.
    """

    url: str
    query: str = field(default="", repr=False)
    login: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def root(self) -> str:
        """The server's own root, above `/v1`."""
        return self.url.removesuffix("/v1")

    def join(self, path: str) -> str:
        """The address of a path below `/v1`, or of one that begins with a slash below the root, with the query."""
        whole = self.root + path if path.startswith("/") else f"{self.url}/{path}"
        return f"{whole}?{self.query}" if self.query else whole


def parse_address(text: str) -> Address:
    """`http://host:port`, with or without scheme, path, `/v1`, user:password@ and query.

    Raises:
        ConfigurationError: it is no address of a server; the message repeats no password.
    """
    text = text.strip()
    if "://" not in text:
        text = "http://" + text
    try:
        parts = urlsplit(text)
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError as error:
        raise ConfigurationError(f"--endpoint is no address of a server ({error}): {_EXAMPLE}.") from None
    host = parts.hostname or ""
    if not host or any(not sign.isprintable() or sign in ' "<>\\^`{|}' for sign in text):
        raise ConfigurationError(f"--endpoint names no host: {_EXAMPLE}.")
    if parts.scheme not in ("http", "https"):
        raise ConfigurationError(f"--endpoint begins with {parts.scheme}://, which is not http: {_EXAMPLE}.")
    if parts.fragment:
        raise ConfigurationError(f"--endpoint has a part behind #, which no server sees: {_EXAMPLE}.")
    host = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    login = (unquote(parts.username or ""), unquote(parts.password or "")) if "@" in parts.netloc else None
    return Address(f"{parts.scheme}://{host}{port}{path}/v1", parts.query, login)
