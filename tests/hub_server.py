"""A small Hugging Face Hub on the loopback: one made repository, and answers that can be made to go wrong."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

MODEL_ID = "google/paligemma2-3b-mix-224"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_right"
LFS_SUFFIXES = (".safetensors", ".npz", ".model")


def digest_of(path: str, content: bytes) -> str:
    """SHA-256 of what Git LFS would hold, and of the rest Git's SHA-1 of a blob."""
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass
class Hub:
    """The repository, what is wrong with the server, and what was asked of it."""

    files: dict[str, bytes]
    commit: str = COMMIT
    gated: bool = False
    accepted: bool = False  # whether TOKEN's account has accepted the licence
    private: bool = False
    status: int | None = None  # for files, instead of an answer
    cut_after: dict[str, list[int]] = field(default_factory=dict)  # path -> bytes sent before each cut
    stall_after: dict[str, int] = field(default_factory=dict)  # path -> bytes sent before silence
    served: dict[str, bytes] = field(default_factory=dict)  # path -> other content than is stated
    ignores_ranges: bool = False
    moved_to: str = ""  # another host that files are sent from
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)

    def headers_of(self, path: str) -> list[dict[str, str]]:
        """The headers of each request for a file."""
        return [headers for asked, headers in self.requests if asked.endswith(f"/{path}")]


class Handler(BaseHTTPRequestHandler):
    """Two routes: what a model is, and a file of it."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        if not path.startswith("/api/") or path.startswith("/api/models/"):  # huggingface_hub asks for more on its own
            self.hub.requests.append((path, headers))
        token = headers.get("authorization", "").removeprefix("Bearer ")
        moved = path.startswith("/moved/")
        if not moved and token and token != TOKEN:
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if path.startswith("/api/models/"):
            return self.describe(path.removeprefix("/api/models/"), token)
        if not moved and not path.startswith(f"/{MODEL_ID}/resolve/"):
            return self.refuse(404, "EntryNotFound")
        if not moved and self.hub.gated and not self.hub.accepted:
            return self.refuse(403 if token else 401, "GatedRepo", "Access to model is restricted")
        if self.hub.status is not None:
            return self.refuse(self.hub.status, "")
        name = path.rsplit("/", 1)[1]
        if self.hub.moved_to and not moved:
            return self.redirect(f"{self.hub.moved_to}/moved/{name}")
        return self.send_file(name, headers.get("range", ""))

    def describe(self, rest: str, token: str) -> None:
        model_id, _, revision = rest.partition("/revision/")
        if model_id != MODEL_ID or (self.hub.private and not token):
            return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        if revision not in ("", "main", "v1", self.hub.commit):
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        siblings = []
        for path, content in self.hub.files.items():
            sibling = {"rfilename": path, "size": len(content), "blobId": digest_of("", content)}
            if path.endswith(LFS_SUFFIXES):
                sibling["lfs"] = {"sha256": digest_of(path, content), "size": len(content), "pointerSize": 134}
            siblings.append(sibling)
        described = {"id": MODEL_ID, "modelId": MODEL_ID, "sha": self.hub.commit, "siblings": siblings}
        content = json.dumps(described | {"gated": "manual" if self.hub.gated else False, "tags": []}).encode()
        self.start(200, {"Content-Type": "application/json", "Content-Length": str(len(content))})
        self.wfile.write(content)

    def send_file(self, name: str, wanted: str) -> None:
        if name not in self.hub.files:
            return self.refuse(404, "EntryNotFound")
        content = self.hub.served.get(name, self.hub.files[name])
        begin = int(wanted.removeprefix("bytes=").partition("-")[0] or 0) if wanted else 0
        begin = 0 if self.hub.ignores_ranges else begin
        headers = {"Content-Length": str(len(content) - begin), "ETag": f'"{digest_of(name, self.hub.files[name])}"'}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self.start(206 if begin else 200, headers)
        cuts = self.hub.cut_after.get(name)
        if cuts:
            self.wfile.write(content[begin : begin + cuts.pop(0)])
            self.close_connection = True
            return None
        if name in self.hub.stall_after:
            self.wfile.write(content[begin : begin + self.hub.stall_after[name]])
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.closing.wait(30)
            self.close_connection = True
            return None
        self.wfile.write(content[begin:])
        return None

    def redirect(self, url: str) -> None:
        self.start(302, {"Location": url, "Content-Length": "0"})

    def refuse(self, status: int, code: str, message: str = "") -> None:
        headers = {"Content-Length": "0"}
        if code:
            headers["X-Error-Code"] = code
        if message:
            headers["X-Error-Message"] = message
        self.start(status, headers)

    def start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def serve(hub: Hub, host: str = "127.0.0.1") -> Iterator[str]:
    """The server in threads of its own; gives its address."""
    server = ThreadingHTTPServer((host, 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
