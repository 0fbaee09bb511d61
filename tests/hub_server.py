# Copyright 2026 The transformers-tokenflow authors. Licensed under the Apache License, Version 2.0.
"""A Hub on loopback: what huggingface_hub needs of it to create, upload, list and download repositories.

Everything is in memory. Files of weights go through LFS, everything else into the commit, as on the real Hub; there is
no Xet, so that clients need `HF_HUB_DISABLE_XET=1`.
"""

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

DATE = "2026-01-01T00:00:00.000Z"
LFS_SUFFIXES = (".safetensors", ".bin", ".pt")
TOKENS = {"hf_test_owner": "owner", "hf_test_guest": "guest"}


class HubError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Repository:
    """Files by path of each commit, and the commits that branches and pull requests are at."""

    name: str
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    pulls: list[str] = field(default_factory=list)

    def commit(self, ref: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{self.name} {ref} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        return sha

    def find(self, revision: str) -> str:
        """The commit of a branch, of a pull request, or of its own id."""
        sha = self.refs.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.find(revision)]

    def open_pull(self, title: str) -> int:
        self.pulls.append(title)
        self.refs[f"refs/pr/{len(self.pulls)}"] = self.refs["main"]
        return len(self.pulls)


class Hub(ThreadingHTTPServer):
    """
    The server and all that it holds; `url` is its address.

    `log` has method and path of every request, `uploads` the paths and digests that came with content. `cuts` times the
    connection breaks after `cut_at` bytes of a file that is put and has more; `refuses_cards` lets the validation of
    cards fail; `status`, if set, is the answer to everything.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lock = Lock()
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[str] = []
        self.uploads: list[str] = []
        self.cut_at = 0
        self.cuts = 0
        self.refuses_cards = False
        self.status: int | None = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no matter."""


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def describe(path: str, content: bytes) -> dict[str, Any]:
    """A file as listings have it."""
    entry: dict[str, Any] = {"size": len(content), "oid": git_hash(content)}
    if is_large(path):
        entry["lfs"] = {"oid": digest(content), "sha256": digest(content), "size": len(content), "pointerSize": 130}
    return entry


def card_data(files: dict[str, bytes]) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---", files.get("README.md", b"").decode(), flags=re.S)
    return yaml.safe_load(match[1]) if match else {}


REPO = r"(?P<repo>[\w.-]+(?:/[\w.-]+)?)"
MODEL = rf"/api/models/{REPO}"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_card"),
    ("POST", rf"{MODEL}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", rf"/lfs/{REPO}/(?P<oid>[0-9a-f]{{64}})", "lfs_put"),
    ("POST", rf"{MODEL}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"{MODEL}/branch/(?P<branch>[^/]+)", "create_branch"),
    ("GET", rf"{MODEL}/tree/(?P<revision>[^/]+)", "tree"),
    ("GET", rf"{MODEL}/revision/(?P<revision>[^/]+)", "info"),
    ("GET", MODEL, "info"),
    ("HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ("GET", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class Handler(BaseHTTPRequestHandler):
    """One method per endpoint, named in `ROUTES`."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: Any) -> None:
        """Nothing: the server keeps a log of its own."""

    def dispatch(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        with self.server.lock:
            self.server.log.append(f"{self.command} {url.path}")
        try:
            if self.server.status is not None:
                raise HubError(self.server.status, "not today")
            for method, pattern, name in ROUTES:
                match = re.fullmatch(pattern, url.path)
                if method == self.command and match:
                    getattr(self, name)(**{key: unquote(value) for key, value in match.groupdict().items()})
                    return
            raise HubError(404, f"no such endpoint: {self.command} {url.path}")
        except HubError as error:
            headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
            self.read()
            is_text = self.headers.get("Accept") == "text/plain"
            answer = str(error).encode() if is_text else {"error": str(error), "errors": [{"message": str(error)}]}
            self.answer(answer, error.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = dispatch

    # ---- Reading and answering ----

    def read(self) -> bytes:
        """The body that was not read yet."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            return b"".join(self.chunks())
        length = int(self.headers.get("Content-Length") or 0)
        del self.headers["Content-Length"]
        return self.rfile.read(length)

    def chunks(self) -> Iterator[bytes]:
        """The pieces of a body whose length is not known beforehand."""
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        del self.headers["Transfer-Encoding"]

    def read_json(self) -> dict[str, Any]:
        return json.loads(self.read() or b"{}")

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # ---- Who may do what ----

    def user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise HubError(401, "Invalid credentials in Authorization header")
        return TOKENS.get(token)

    def readable(self, name: str) -> Repository:
        repository, user = self.server.repositories.get(name), self.user()
        if repository is None or (repository.private and user != name.split("/")[0]):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        return repository

    def writable(self, name: str, as_pull: bool = False) -> Repository:
        repository, user = self.readable(name), self.user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if user != name.split("/")[0] and not as_pull:
            raise HubError(403, "you have no write permission on this repository")
        return repository

    def is_pull(self, revision: str = "") -> bool:
        return self.query.get("create_pr") == ["1"] or revision.startswith("refs/pr/")

    # ---- Endpoints ----

    def whoami(self) -> None:
        user = self.user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        self.answer({"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})

    def create(self) -> None:
        body, user = self.read_json(), self.user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        owner = body.get("organization") or user
        name = f"{owner}/{body['name']}"
        if owner != user:
            raise HubError(403, f"you don't have the rights to create a model under the namespace {owner}")
        if name in self.server.repositories:
            self.answer({"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409)
            return
        repository = Repository(name, body.get("visibility") == "private" or bool(body.get("private")))
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self.server.repositories[name] = repository
        self.answer({"url": f"{self.server.url}/{name}", "name": name})

    def validate_card(self) -> None:
        self.read()
        if self.server.refuses_cards:
            raise HubError(400, '"license" must be one of apache-2.0, mit, ...')
        self.answer({"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        files = self.writable(repo, self.is_pull(revision)).files(revision)
        answers = []
        for entry in self.read_json()["files"]:
            path, mode = entry["path"], "lfs" if is_large(entry["path"]) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
            if path in files:
                answers[-1]["oid"] = digest(files[path]) if mode == "lfs" else git_hash(files[path])
        self.answer({"files": answers})

    def lfs_batch(self, repo: str) -> None:
        body = self.read_json()
        self.writable(repo, as_pull=True)
        answers = []
        for entry in body["objects"]:
            answer = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.server.objects:
                answer["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{repo}/{entry['oid']}", "header": {}}}
            answers.append(answer)
        self.answer({"transfer": "basic", "objects": answers})

    def lfs_put(self, repo: str, oid: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.server.cuts > 0 and length > self.server.cut_at:
            self.server.cuts -= 1
            self.rfile.read(self.server.cut_at)
            self.close_connection = True
            self.connection.close()
            return
        content = self.read()
        if digest(content) != oid:
            raise HubError(400, "the content is not what its digest says")
        with self.server.lock:
            self.server.objects[oid] = content
            self.server.uploads.append(oid)
        self.answer(b"")

    def commit(self, repo: str, revision: str) -> None:
        repository = self.writable(repo, self.is_pull(revision))
        files = dict(repository.files(revision))
        header, *changes = (json.loads(line) for line in self.read().splitlines())
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                self.server.uploads.append(value["path"])
            elif change["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    raise HubError(400, f"the object of {value['path']} was not uploaded")
                files[value["path"]] = self.server.objects[value["oid"]]
            else:
                raise HubError(400, f"unknown change {change['key']}")
        answer = {}
        if self.query.get("create_pr") == ["1"]:
            number = repository.open_pull(header["value"]["summary"])
            revision = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.server.url}/{repo}/discussions/{number}"
        sha = repository.commit(revision, files)
        self.answer(answer | {"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{repo}/commit/{sha}"})

    def create_branch(self, repo: str, branch: str) -> None:
        repository, start = self.writable(repo), self.read_json().get("startingPoint", "main")
        if branch in repository.refs:
            raise HubError(409, f"Reference already exists: {branch}")
        repository.refs[branch] = repository.find(start)
        self.answer({})

    def tree(self, repo: str, revision: str) -> None:
        files = self.readable(repo).files(revision)
        self.answer([{"type": "file", "path": path, **describe(path, content)} for path, content in files.items()])

    def info(self, repo: str, revision: str = "main") -> None:
        repository = self.readable(repo)
        files = repository.files(revision)
        siblings = [{"rfilename": path, **describe(path, content)} for path, content in files.items()]
        answer = {"id": repo, "modelId": repo, "sha": repository.find(revision), "private": repository.private}
        self.answer(answer | {"lastModified": DATE, "cardData": card_data(files), "siblings": siblings, "tags": []})

    def resolve(self, repo: str, revision: str, path: str) -> None:
        repository = self.readable(repo)
        sha = repository.find(revision)
        content = repository.commits[sha].get(path)
        if content is None:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{git_hash(content)}"', "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream"
        if is_large(path):
            headers |= {"X-Linked-Etag": f'"{digest(content)}"', "X-Linked-Size": str(len(content))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self.answer(content, 200, headers)
            return
        start, end = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self.answer(content[start : end + 1], 206, headers)
