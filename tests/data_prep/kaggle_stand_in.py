"""A stand-in of Kaggle's API on the address that its client uses with KAGGLE_API_ENVIRONMENT=TEST."""

from __future__ import annotations

import base64
import io
import threading
import time
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ADDRESS = ("localhost", 7777)
USER, KEY, TOKEN = "someone", "0123456789abcdef", "KGAT_0123456789"
DOWNLOAD = "/api/v1/datasets.DatasetApiService/DownloadDataset"
INTROSPECT = "/api/v1/security.OAuthService/IntrospectToken"
ETAG = '"version-5"'


def zipped(files: dict[str, bytes]) -> bytes:
    """An archive, stored and not compressed, so that its size and where it is cut can be chosen."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


@dataclass
class StandIn:
    """What the server gives, and what it was asked.

    Attributes:
        cuts: after so many bytes of its body each of the next answers breaks off.
        stalls: the next answers hang there instead, until the client goes away.
        asked: the Range of every download, None for a whole one.
    """

    archive: bytes
    cuts: list[int] = field(default_factory=list)
    stalls: bool = False
    asked: list[str | None] = field(default_factory=list)
    refused: int = 0

    def authorized(self, header: str | None) -> bool:
        basic = "Basic " + base64.b64encode(f"{USER}:{KEY}".encode()).decode()
        return header in (basic, f"Bearer {TOKEN}")


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not stand_in.authorized(self.headers.get("Authorization")):
                stand_in.refused += 1
                self._answer(401, b'{"code": 401, "message": "Unauthenticated"}', "application/json")
            elif self.path == INTROSPECT:
                self._answer(200, b'{"active": true, "username": "%s"}' % USER.encode(), "application/json")
            elif self.path != DOWNLOAD:
                self._answer(404, b'{"code": 404, "message": "Not found"}', "application/json")
            else:
                self.send_response(302)
                self.send_header("Location", "/storage/archive.zip")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def do_GET(self):
            asked = self.headers.get("Range")
            stand_in.asked.append(asked)
            # now: once the client has the header it may ask again, and be answered by another thread
            cut = stand_in.cuts.pop(0) if stand_in.cuts else None
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            body = stand_in.archive[start:]
            self.send_response(206 if asked else 200)
            if asked:
                whole = len(stand_in.archive)
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            for name, value in (
                ("Content-Type", "application/zip"),
                ("Content-Length", str(len(body))),
                ("Accept-Ranges", "bytes"),
                ("ETag", ETAG),
                ("Last-Modified", "Mon, 06 Jan 2025 10:00:00 GMT"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[:cut])
            self.wfile.flush()
            while cut is not None and stand_in.stalls:
                time.sleep(0.05)
            self.close_connection = True

        def _answer(self, status: int, body: bytes, kind: str):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Handler


class Server:
    """Serves a stand-in in a thread until closed. Waits for the port, which another checkout's tests may hold."""

    def __init__(self, stand_in: StandIn, patience: float = 120) -> None:
        deadline = time.monotonic() + patience
        while True:
            try:
                self._server = ThreadingHTTPServer(ADDRESS, _handler(stand_in))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
