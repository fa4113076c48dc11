"""A stand-in for the Hugging Face Hub on a local port: what huggingface_hub needs to fetch and to publish a model.

Downloads can be cut in the middle; everything asked for is kept in `requests`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "a" * 40


@dataclass
class Hub:
    """State of the stand-in.

    Attributes:
        models: folder of each model's files.
        cut_after: bytes of one answer after which the connection breaks; None for never.
        cuts: how many connections are still to break.
        requests: method and path, with `bytes=…` behind those that asked for a range.
        uploads: files of each repository that was published, and whether it is private.
    """

    models: dict[str, Path] = field(default_factory=dict)
    token: str = "hf_secret"
    cut_after: int | None = None
    cuts: int = 0
    requests: list[str] = field(default_factory=list)
    uploads: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    address: str = ""

    def fetched(self) -> set[str]:
        """Names of the files whose content was asked for."""
        return {r.split(COMMIT + "/")[1].split(" ")[0] for r in self.requests if r.startswith("GET") and COMMIT in r}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def answer(self, content: bytes | dict[str, Any], status: int = 200, **headers: str) -> None:
        body = json.dumps(content).encode() if isinstance(content, dict) else content
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cuts and self.hub.cut_after is not None and len(body) > self.hub.cut_after and headers:
            self.hub.cuts -= 1
            self.wfile.write(body[: self.hub.cut_after])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.hub.requests.append(f"{self.command} {self.path} {asked}".strip())
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.answer({"error": "Invalid credentials"}, 401, X_Error_Message="Invalid credentials")
            return
        for model, folder in self.hub.models.items():
            if self.path.startswith(f"/api/models/{model}/revision/"):
                names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
                siblings = [{"rfilename": name} for name in names]
                self.answer({"id": model, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
                return
            prefix = f"/{model}/resolve/{COMMIT}/"
            if self.path.startswith(prefix) and (folder / self.path.removeprefix(prefix)).is_file():
                self.file((folder / self.path.removeprefix(prefix)).read_bytes(), asked)
                return
        self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    def file(self, content: bytes, asked: str) -> None:
        headers = {"X_Repo_Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if asked:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(content[start:], 206, **headers)
        else:
            self.answer(content, 200, **headers)

    def do_POST(self) -> None:
        self.hub.requests.append(f"POST {self.path}")
        body = self.body()
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}" and "validate-yaml" not in self.path:
            self.answer({"error": "Invalid credentials"}, 401, X_Error_Message="Invalid credentials")
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.hub.private[name] = asked["private"]
            self.hub.uploads[name] = {}
            self.answer({"url": f"{self.hub.address}/{name}"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in files}
            answers = [{"path": n, "uploadMode": m, "shouldIgnore": False, "oid": None} for n, m in modes.items()]
            self.answer({"files": answers})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for item in objects:
                item["actions"] = {"upload": {"href": f"{self.hub.address}/lfs/{item['oid']}"}}
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            name = "/".join(self.path.split("/")[3:5])
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.hub.uploads[name][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.hub.uploads[name][value["path"]] = self.hub.large[value["oid"]]
            url = f"{self.hub.address}/{name}/commit/{COMMIT}"
            self.answer({"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self.answer({"error": "not here"}, 404)

    def do_PUT(self) -> None:
        self.hub.requests.append(f"PUT {self.path}")
        self.hub.large[self.path.removeprefix("/lfs/")] = self.body()
        self.answer(b"")


@contextmanager
def stand_in() -> Iterator[Hub]:
    """Serve a Hub until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
