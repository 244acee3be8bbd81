"""A small Hugging Face Hub over HTTP: the parts of its protocol that huggingface_hub and diffusers use.

Repositories are lists of commits in memory, a commit is a mapping of paths to files. As on the real Hub, a push is

    POST /api/repos/create                          the repository; 409 if it exists
    POST /api/validate-yaml                         the card's metadata
    POST /api/models/ME/NAME/preupload/main         which files go through LFS, which inside the commit
    POST /ME/NAME.git/info/lfs/objects/batch        where to PUT those that are not stored yet
    PUT  /lfs/SHA256                                each of them
    POST /api/models/ME/NAME/commit/main            NDJSON: nothing of a push can be seen before this line

and a download

    GET  /api/models/ME/NAME/revision/main          the commit, and the names of its files
    GET  /api/models/ME/NAME/tree/COMMIT            the same with sizes and hashes
    HEAD /ME/NAME/resolve/COMMIT/PATH               etag and size of one file; LFS files redirect to /lfs/SHA256
    GET  the same, or the redirect's target         its content

It runs inside `with HubServer(tokens={"hf_me": "me"}) as hub`; a client needs what `hub.environment()` says.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pkl", "*.png", "*.npz")  # .gitattributes of a new repository
KINDS = {"model": "models", "space": "spaces"}
# what the Hub's own rules ask of a card (huggingface.co/docs/hub/model-cards) that can be told offline
PIPELINE_TAGS = {"unconditional-image-generation", "image-to-image", "image-classification", "text-to-image"}
LICENSES = {"apache-2.0", "mit", "openrail", "cc-by-4.0", "unknown", "other"}
SDKS = {"gradio", "docker", "static"}
REPO_NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass(frozen=True)
class File:
    """One version of one file."""

    content: bytes
    lfs: bool

    @property
    def blob_id(self) -> str:
        """Git's hash of the blob; of an LFS file, that of its pointer."""
        content = self.content
        if self.lfs:
            content = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n"
            content = content.encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id


@dataclass
class Commit:
    sha: str
    files: dict[str, File]


@dataclass
class Repo:
    kind: str
    name: str
    private: bool
    commits: list[Commit] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit({}, ())

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def commit(self, added: dict[str, File], deleted: tuple[str, ...]) -> Commit:
        """Adds and deletes files at once; a deleted folder ends in a slash."""
        files = {} if not self.commits else self.head.files
        files = {path: file for path, file in files.items() if path not in deleted}
        folders = tuple(path for path in deleted if path.endswith("/"))
        files = {path: file for path, file in files.items() if not folders or not path.startswith(folders)}
        contents = "".join(f"{path} {file.etag}\n" for path, file in sorted((files | added).items()))
        parent = self.commits[-1].sha if self.commits else self.name
        sha = hashlib.sha1(f"{parent}\n{contents}".encode()).hexdigest()
        self.commits.append(Commit(sha, files | added))
        return self.head

    def at(self, revision: str) -> Commit:
        if revision == "main":
            return self.head
        for commit in self.commits:
            if commit.sha == revision:
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


class HubError(Exception):
    """An answer other than 200: its status, and what the Hub says in headers and body."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict[str, Any] | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({} if code is None else {"X-Error-Code": code})
        self.body = body or {"error": message}


@dataclass
class Failure:
    """An answer to give instead to requests of a method, or of several by a pattern, and a path, once the first `after` of
    them have passed."""

    method: str
    path: str
    status: int
    message: str = "Internal Error - We're working hard to fix this as soon as possible!"
    after: int = 0
    code: str | None = None

    def answers(self, method: str, path: str) -> bool:
        if not re.fullmatch(self.method, method) or not re.search(self.path, path):
            return False
        self.after -= 1
        return self.after < 0


class HubServer:
    """A Hub of its own on a free port.

    Args:
        tokens (`dict[str, str]`): User of every token. A user may write to the namespace of that name only.
    """

    def __init__(self, tokens: dict[str, str]):
        self.tokens = tokens
        self.reset()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{port}"
        self.storage_url = f"http://localhost:{port}/lfs"  # large files live on another host, which gets no token

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def reset(self) -> None:
        """Forgets everything but the users."""
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.failures: list[Failure] = []
        self.requests: list[str] = []  # "METHOD /path" of all that came

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Environment variables of a client: this Hub, an empty cache in `home`, and a token if there is one."""
        environment = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        return environment if token is None else environment | {"HF_TOKEN": token}

    def files(self, name: str, kind: str = "model") -> dict[str, bytes]:
        """What the head of a repository holds."""
        return {path: file.content for path, file in self.repos[kind, name].head.files.items()}

    def put(self, name: str, files: dict[str, bytes], kind: str = "model") -> None:
        """Commits files as if a person had edited them on the Hub's pages."""
        repo = self.repos.setdefault((kind, name), Repo(kind, name, private=False))
        versions = {path: File(content, is_lfs(path)) for path, content in files.items()}
        self.lfs_objects |= {file.sha256: file.content for file in versions.values() if file.lfs}
        repo.commit(versions, ())

    # ------------------------------------------------------------------------------------------------------- answers

    def answer(self, method: str, path: str, query: dict[str, str], user: str | None, body: bytes) -> tuple[int, Any]:
        """Status, and JSON, a [`File`], a redirect's target or None.

        Raises:
            HubError: where the Hub would refuse.
        """
        with self._lock:
            self.requests.append(f"{method} {path}")
            for failure in self.failures:
                if failure.answers(method, path):
                    raise HubError(failure.status, failure.message, failure.code)
            for allowed, pattern, respond in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and method in allowed:
                    return respond(self, Request(query, user, body, **match.groupdict()))
        raise HubError(404, f"Sorry, we can't find the page you are looking for: {method} {path}")

    def whoami(self, request: "Request") -> tuple[int, Any]:
        return 200, {"type": "user", "name": request.writer(), "auth": {"accessToken": {"role": "write"}}, "orgs": []}

    def create_repo(self, request: "Request") -> tuple[int, Any]:
        user, asked = request.writer(), request.json()
        name = f"{asked.get('organization') or user}/{asked['name']}"
        kind = asked.get("type") or "model"
        if not name.startswith(f"{user}/"):
            raise HubError(
                403, f"You don't have the rights to create a {kind} under the namespace {name.split('/')[0]}"
            )
        url = f"{self.url}/{'' if kind == 'model' else KINDS[kind] + '/'}{name}"
        if (kind, name) in self.repos:
            raise HubError(409, f"You already created this {kind} repo", body={"error": "exists", "url": url})
        self.repos[kind, name] = Repo(kind, name, private=asked.get("visibility") == "private")
        return 200, {"url": url, "name": name, "id": name}

    def validate_yaml(self, request: "Request") -> tuple[int, Any]:
        asked = request.json()
        errors = [{"message": message} for message in card_errors(asked["content"], asked.get("repoType") or "model")]
        if errors:
            raise HubError(400, errors[0]["message"], body={"errors": errors, "warnings": []})
        return 200, {"errors": [], "warnings": []}

    def info(self, request: "Request") -> tuple[int, Any]:
        repo = self.readable(request)
        commit = repo.at(request.revision)
        return 200, {
            "_id": "0" * 24,
            "id": repo.name,
            "modelId": repo.name,
            "sha": commit.sha,
            "private": repo.private,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }

    def tree(self, request: "Request") -> tuple[int, Any]:
        entries = []
        for path, file in sorted(self.readable(request).at(request.revision).files.items()):
            entry = {"type": "file", "path": path, "size": len(file.content), "oid": file.blob_id}
            if file.lfs:
                entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}
            entries.append(entry)
        return 200, entries

    def preupload(self, request: "Request") -> tuple[int, Any]:
        head = self.writable(request).head.files
        files = [
            {
                "path": asked["path"],
                "uploadMode": "lfs" if is_lfs(asked["path"]) else "regular",
                "shouldIgnore": False,
                "oid": head[asked["path"]].etag if asked["path"] in head else None,
            }
            for asked in request.json()["files"]
        ]
        return 200, {"files": files}

    def lfs_batch(self, request: "Request") -> tuple[int, Any]:
        self.writable(request)
        objects = []
        for asked in request.json()["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.lfs_objects:
                answer["actions"] = {"upload": {"href": f"{self.storage_url}/{asked['oid']}"}}
            objects.append(answer)
        return 200, {"transfer": "basic", "objects": objects}

    def lfs_put(self, request: "Request") -> tuple[int, Any]:
        if hashlib.sha256(request.body).hexdigest() != request.oid:
            raise HubError(400, "Checksum mismatch")
        self.lfs_objects[request.oid] = request.body
        return 200, None

    def lfs_get(self, request: "Request") -> tuple[int, Any]:
        if request.oid not in self.lfs_objects:
            raise HubError(404, "No such object")
        return 200, File(self.lfs_objects[request.oid], lfs=True)

    def commit(self, request: "Request") -> tuple[int, Any]:
        repo = self.writable(request)
        added, deleted = {}, []
        for line in request.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                if value.get("parentCommit", repo.head.sha) != repo.head.sha:
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                added[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                if value["oid"] not in self.lfs_objects:
                    raise HubError(400, f"LFS pointer {value['oid']} does not exist")
                added[value["path"]] = File(self.lfs_objects[value["oid"]], lfs=True)
            elif key in ("deletedFile", "deletedFolder"):
                deleted.append(value["path"].rstrip("/") + ("/" if key == "deletedFolder" else ""))
            else:
                raise HubError(400, f"Unknown operation {key}")
        commit = repo.commit(added, tuple(deleted))
        return 200, {"commitUrl": f"{self.url}/{repo.name}/commit/{commit.sha}", "commitOid": commit.sha}

    def resolve(self, request: "Request") -> tuple[int, Any]:
        commit = self.readable(request).at(request.revision)
        if request.path not in commit.files:
            raise HubError(404, "Entry not found", code="EntryNotFound")
        return 200, (commit, commit.files[request.path])

    def repo_of(self, request: "Request") -> Repo | None:
        kind = next((kind for kind, plural in KINDS.items() if plural == request.kind), "model")
        return self.repos.get((kind, request.repo))

    def readable(self, request: "Request") -> Repo:
        repo = self.repo_of(request)
        if repo is None or (repo.private and request.user != repo.name.split("/")[0]):
            # the Hub does not tell strangers which private repositories exist
            raise HubError(401 if request.user is None else 404, "Repository not found", code="RepoNotFound")
        return repo

    def writable(self, request: "Request") -> Repo:
        user, repo = request.writer(), self.readable(request)
        if not repo.name.startswith(f"{user}/"):
            raise HubError(403, "You don't have the rights to write to this repository")
        return repo


@dataclass(frozen=True)
class Request:
    """What a route is given: groups of its pattern by name, beside the rest of the request."""

    query: dict[str, str]
    user: str | None
    body: bytes
    kind: str = "models"
    repo: str = ""
    revision: str = "main"
    path: str = ""
    oid: str = ""

    def json(self) -> Any:
        return json.loads(self.body)

    def writer(self) -> str:
        """The user; nobody writes without a token."""
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        return self.user


_API = rf"/api/(?P<kind>models|spaces)/{REPO_NAME}"
_REVISION = r"(?P<revision>[^/]+)"
_PAGE = rf"/(?:(?P<kind>spaces)/)?{REPO_NAME}"
ROUTES: list[tuple[tuple[str, ...], str, Callable]] = [
    (("GET",), "/api/whoami-v2", HubServer.whoami),
    (("POST",), "/api/repos/create", HubServer.create_repo),
    (("POST",), "/api/validate-yaml", HubServer.validate_yaml),
    (("GET",), _API, HubServer.info),
    (("GET",), rf"{_API}/revision/{_REVISION}", HubServer.info),
    (("GET",), rf"{_API}/tree/{_REVISION}", HubServer.tree),
    (("POST",), rf"{_API}/preupload/{_REVISION}", HubServer.preupload),
    (("POST",), rf"{_API}/commit/{_REVISION}", HubServer.commit),
    (("POST",), rf"{_PAGE}\.git/info/lfs/objects/batch", HubServer.lfs_batch),
    (("PUT",), r"/lfs/(?P<oid>[0-9a-f]{64})", HubServer.lfs_put),
    (("GET",), r"/lfs/(?P<oid>[0-9a-f]{64})", HubServer.lfs_get),
    (("GET", "HEAD"), rf"{_PAGE}/resolve/{_REVISION}/(?P<path>.+)", HubServer.resolve),
]


def is_lfs(path: str) -> bool:
    return any(fnmatch(path, pattern) for pattern in LFS_PATTERNS)


def card_errors(content: str, kind: str) -> list[str]:
    """What the Hub would say against the metadata of a card; nothing if they are right."""
    match = re.match(r"---\n(.*?)\n---\n", content, flags=re.DOTALL)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    data = data or {}
    errors = []

    def check(holds: bool, message: str) -> None:
        if not holds:
            errors.append(message)

    if kind == "space":
        check(data.get("sdk") in SDKS, f'"sdk" must be one of {sorted(SDKS)}')
        check(isinstance(data.get("title"), str), '"title" must be a string')
        check(
            data.get("sdk") != "gradio" or isinstance(data.get("sdk_version"), str), '"sdk_version" must be a string'
        )
        return errors
    check(data.get("pipeline_tag", "text-to-image") in PIPELINE_TAGS, '"pipeline_tag" must be one of the Hub\'s tasks')
    check(data.get("license", "mit") in LICENSES, '"license" must be one of the Hub\'s identifiers')
    for name in ("tags", "datasets", "base_model", "library_name"):
        value = data.get(name)
        is_text = isinstance(value, str)
        is_list = isinstance(value, list) and all(isinstance(one, str) for one in value)
        check(value is None or is_text or is_list, f'"{name}" must be text or a list of texts')
    for model in data.get("model-index") or []:
        check(isinstance(model.get("name"), str), '"model-index[].name" must be a string')
        check(bool(model.get("results")), '"model-index[].results" must not be empty')
        for result in model.get("results") or []:
            check("type" in result.get("task", {}), '"model-index[].results[].task.type" is required')
            dataset = result.get("dataset", {})
            check("type" in dataset and "name" in dataset, '"model-index[].results[].dataset" needs type and name')
            for metric in result.get("metrics") or [{}]:
                check(
                    "type" in metric and "value" in metric, '"model-index[].results[].metrics[]" needs type and value'
                )
    return errors


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    """What turns HTTP into calls of [`HubServer.answer`] and back."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or every answer waits for the client's acknowledgement of its headers

        def log_message(self, *_: object) -> None:
            pass

        def respond(self) -> None:
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            body = self.read_body()
            try:
                user = self.user()
                status, answer = hub.answer(self.command, unquote(url.path), query, user, body)
            except HubError as error:
                self.send(error.status, error.headers, json.dumps(error.body).encode())
                return
            if isinstance(answer, tuple):  # a commit, and one of its files
                commit, file = answer
                headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{file.etag}"'}
                if file.lfs:
                    linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
                    self.send(302, headers | linked | {"Location": f"{hub.storage_url}/{file.sha256}"}, b"")
                else:
                    self.send(status, headers, file.content)
            elif isinstance(answer, File):
                self.send(status, {"ETag": f'"{answer.etag}"'}, answer.content)
            else:
                self.send(status, {}, b"" if answer is None else json.dumps(answer).encode())

        do_GET = do_HEAD = do_POST = do_PUT = respond  # noqa: N815 (http.server's names)

        def user(self) -> str | None:
            scheme, _, token = self.headers.get("Authorization", "").partition(" ")
            if scheme and token not in hub.tokens:
                raise HubError(401, "Invalid credentials in Authorization header")
            return hub.tokens.get(token)

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def send(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler
