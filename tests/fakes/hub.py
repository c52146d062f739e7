"""A Hub on loopback for datasets: repositories, rights, uploads by LFS or Xet, commits, and faults on demand.

It is written from what ``huggingface_hub`` and ``datasets`` send and accept, and was never compared with the real one.
Large files live on a second port, as they live on another host at the real Hub, which refuses a Hub token.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
import yaml

TOKEN = "hf_writer"
USER = "writer"
LARGE = "7z arrow avro bin bmp gif gz jpeg jpg npy npz parquet pdf png pt tar tiff webp zip zst".split()  # noqa: SIM905
GIT_ATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE)
LARGE_BYTES = 10 * 1024 * 1024
PAGE = 1000
NAME = re.compile(r"(?!.*(--|\.\.))(?!.*\.git$)[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?")
BAD_TOKEN = "Invalid credentials in Authorization header"
WEB_DATE = "%Y-%m-%dT%H:%M:%S.000Z"


@dataclass(frozen=True)
class Token:
    """An access token; ``scope`` is write or read."""

    user: str
    scope: str = "write"
    expired: bool = False


@dataclass(frozen=True)
class File:
    """A file of a commit: ``oid`` as git has it, ``sha256`` where it is a large one, ``xet`` where it lies in Xet."""

    oid: str
    size: int
    sha256: str | None = None
    xet: str | None = None


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    sha: str
    parent: str | None
    files: Mapping[str, File]
    title: str
    user: str
    date: str


@dataclass
class Repository:
    """A dataset repository; a full ref name gives the commit."""

    name: str
    private: bool
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[int, str] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.name.split("/")[0]

    def ref(self, revision: str) -> str | None:
        """The full name of a branch, tag or pull request."""
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def at(self, revision: str) -> Commit | None:
        ref = self.ref(revision)
        return self.commits.get(self.refs[ref] if ref else revision)


@dataclass(frozen=True)
class Call:
    """A request that came in, and what it was answered; status 0 where the connection was dropped."""

    route: str
    method: str
    path: str
    user: str | None
    status: int


@dataclass
class Fault:
    """What goes wrong at a route; ``after`` as many good requests, ``times`` times (-1: always)."""

    route: str
    status: int
    times: int
    after: int
    lost: bool
    message: str
    headers: Mapping[str, str]


@dataclass
class Request:
    """A parsed request."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    token: Token | None = None

    @property
    def user(self) -> str | None:
        return self.token.user if self.token else None

    def json(self) -> Mapping:
        return json.loads(self.body or b"{}")


@dataclass
class Reply:
    """An answer; ``file`` is sent instead of ``body``."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    file: Path | None = None


class Refused(Exception):
    """An answer that says no."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: object) -> None:
        super().__init__(message)
        if status == 401 and message != BAD_TOKEN:
            code = "RepoNotFound"  # what the library makes of such a 401 itself, but only of one that came by https
        headers = {"X-Error-Message": message.encode("ascii", "replace").decode(), "X-Request-Id": "Root=1-loopback"}
        if code:
            headers["X-Error-Code"] = code
        body = json.dumps({"error": message, **more}).encode()
        self.reply = Reply(status, body, {"Content-Type": "application/json", **headers})


class Hub:
    """A running Hub. ``storage`` is lfs or xet."""

    def __init__(self, folder: Path, storage: str = "lfs") -> None:
        self.storage = storage
        self.blobs, self.cas = folder / "blobs", folder / "cas"
        self.blobs.mkdir(parents=True)
        self.cas.mkdir()
        self.home = folder / "home"
        self.tokens: dict[str, Token] = {TOKEN: Token(USER)}
        self.members: dict[str, dict[str, str]] = {}
        self.repositories: dict[str, Repository] = {}
        self.small: dict[str, bytes] = {}
        self.log: list[Call] = []
        self.multipart: int | None = None
        self._uploaded: set[str] = set()
        self._parts: dict[str, dict[int, bytes]] = {}
        self._faults: list[Fault] = []
        self._hooks: list[tuple[str, Callable[[], object]]] = []
        self._count = 0
        self._lock = threading.RLock()
        self._servers = [_serve(self, ROUTES), _serve(self, STORAGE_ROUTES)]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def close(self) -> None:
        """Stop both servers."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    # What a test sets up and looks at.

    def user(self, name: str, token: str, scope: str = "write", *, expired: bool = False) -> str:
        """Another user, or another token of one; gives the token."""
        self.tokens[token] = Token(name, scope, expired)
        return token

    def organization(self, name: str, **members: str) -> None:
        """An organization whose members have the role write or read."""
        self.members[name] = members

    def repository(self, name: str, *, private: bool = False, readers: tuple[str, ...] = ()) -> Repository:
        """Make a repository with the first commit that the Hub makes itself."""
        with self._lock:
            made = self.repositories[name] = Repository(name, private, set(readers))
            self.commit(name, {".gitattributes": GIT_ATTRIBUTES.encode()}, "initial commit")
            return made

    def commit(
        self, name: str, changes: Mapping[str, bytes | None], title: str = "edit", revision: str = "main"
    ) -> str:
        """Commit behind everybody's back; ``None`` removes a file. Gives the sha."""
        with self._lock:
            repository = self.repositories[name]
            parent = repository.at(revision)
            files = dict(parent.files) if parent else {}
            for path, content in changes.items():
                if content is None:
                    del files[path]
                elif self._mode(path, len(content)) == "lfs":
                    sha256 = hashlib.sha256(content).hexdigest()
                    (self.blobs / sha256).write_bytes(content)
                    files[path] = _large(sha256, len(content))
                else:
                    files[path] = self._small(content)
            return self._record(repository, repository.ref(revision) or f"refs/heads/{revision}", files, title, USER)

    def head(self, name: str, revision: str = "main") -> Commit:
        """The newest commit of a branch."""
        commit = self.repositories[name].at(revision)
        assert commit is not None
        return commit

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """The content of every file."""
        return {path: self._content(file) for path, file in self.head(name, revision).files.items()}

    def calls(self, route: str) -> list[Call]:
        """The requests of a route so far."""
        return [call for call in self.log if call.route == route]

    def fail(
        self,
        route: str,
        status: int = 503,
        *,
        times: int = 1,
        after: int = 0,
        lost: bool = False,
        message: str = "Service Unavailable",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer a route with an error; status 0 drops the connection, ``lost`` does the work before that."""
        assert route in NAMES, f"no such route: {route}"
        self._faults.append(Fault(route, status, times, after, lost, message, headers or {}))

    def before(self, route: str, function: Callable[[], object]) -> None:
        """Run a function once, before the next request of a route is looked at."""
        assert route in NAMES, f"no such route: {route}"
        self._hooks.append((route, function))

    def environment(self, token: str | None = TOKEN) -> dict[str, str]:
        """The environment of a process that is to talk to this Hub, and of which nothing else is kept."""
        dropped = ("HF_", "HUGGING", "XDG_CACHE", "TRANSFORMERS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        more = {"HF_TOKEN": token} if token else {}
        return {
            **kept,
            **more,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "0" if self.storage == "xet" else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        }

    # Rights.

    def _authenticate(self, request: Request) -> None:
        given = request.headers.get("Authorization")
        if given is None:
            return
        token = self.tokens.get(given.removeprefix("Bearer "))
        if token is None:
            raise Refused(401, BAD_TOKEN)
        if token.expired:
            raise Refused(401, 'User Access Token "test" is expired')
        request.token = token

    def _role(self, namespace: str, token: Token | None) -> str | None:
        if token is None:
            return None
        return "write" if token.user == namespace else self.members.get(namespace, {}).get(token.user)

    def _readable(self, request: Request, name: str) -> Repository:
        found = self.repositories.get(name)
        if found and (
            not found.private or request.user in found.readers or self._role(found.namespace, request.token) is not None
        ):
            return found
        if request.token is None:  # an absent repository is not told from a private one
            raise Refused(401, "Invalid username or password.")
        raise Refused(404, "Repository not found", "RepoNotFound")

    def _writable(self, request: Request, name: str) -> Repository:
        found = self._readable(request, name)
        if request.token is None:
            raise Refused(401, "Invalid username or password.")
        if request.token.scope != "write":
            raise Refused(403, f"Forbidden: you must use a write token to upload to a repository: {name}")
        if self._role(found.namespace, request.token) != "write":
            if request.query.get("create_pr") or "/info/lfs/" in request.path:
                return found
            raise Refused(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return found

    def _commit_at(self, repository: Repository, revision: str) -> Commit:
        commit = repository.at(revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # Content.

    def _mode(self, path: str, size: int) -> str:
        large = size >= LARGE_BYTES or any(fnmatch.fnmatch(path, f"*.{suffix}") for suffix in LARGE)
        return "lfs" if large else "regular"

    def _small(self, content: bytes) -> File:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.small[oid] = content
        return File(oid, len(content))

    def _content(self, file: File) -> bytes:
        return self._path(file).read_bytes() if file.sha256 else self.small[file.oid]

    def _path(self, file: File) -> Path:
        """A large file on disk; one that lies in Xet is put together when it is first asked for over HTTP."""
        path = self.blobs / str(file.sha256)
        if not path.exists() and file.xet:
            import hf_xet

            partial = path.with_suffix(".partial")
            session = hf_xet.XetSession()
            with session.new_file_download_group(endpoint=f"local://{self.cas}") as group:
                group.start_download_file(hf_xet.XetFileInfo(file.xet, file.size), str(partial))
            partial.rename(path)
        return path

    def _record(
        self,
        repository: Repository,
        ref: str,
        files: Mapping[str, File],
        title: str,
        user: str,
        parent: str | None = None,
    ) -> str:
        self._count += 1
        parent = parent or repository.refs.get(ref)
        tree = sorted((path, file.oid) for path, file in files.items())
        sha = hashlib.sha1(repr((self._count, parent, tree, title)).encode()).hexdigest()
        date = datetime.now(timezone.utc).strftime(WEB_DATE)
        repository.commits[sha] = Commit(sha, parent, dict(files), title, user, date)
        repository.refs[ref] = sha
        return sha

    def _upload(self, sha256: str, size: int) -> File:
        """The large file that a commit names: it has to be there already."""
        if (self.blobs / sha256).exists():
            return _large(sha256, size)
        stored = xet_files(self.cas).get(sha256)
        if stored is None:
            raise Refused(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
        return _large(sha256, size, stored)

    # Routes.

    def create(self, request: Request) -> Reply:
        wanted = request.json()
        if request.token is None:
            raise Refused(401, "Invalid username or password.")
        namespace = wanted.get("organization") or request.user
        name = f"{namespace}/{wanted['name']}"
        if not NAME.fullmatch(wanted["name"]) or wanted.get("type") != "dataset":
            raise Refused(400, f"Invalid name or type: {wanted}")
        if self._role(namespace, request.token) != "write" or request.token.scope != "write":
            text = f'You don\'t have the rights to create a dataset under the namespace "{namespace}"'
            raise Refused(403, text)
        url = f"{self.url}/datasets/{name}"
        if name in self.repositories:
            raise Refused(409, "You already created this dataset repo", url=url)
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.repository(name, private=bool(private))
        return _json({"url": url, "name": name, "id": name})

    def delete(self, request: Request) -> Reply:
        wanted = request.json()
        name = f"{wanted.get('organization') or request.user}/{wanted['name']}"
        self._writable(request, name)
        del self.repositories[name]
        return _json({})

    def validate(self, request: Request) -> Reply:
        errors = []
        match = re.match(r"---\r?\n(.*?)\r?\n---", request.json()["content"], re.DOTALL)
        try:
            data = yaml.safe_load(match[1]) if match else {}
        except yaml.YAMLError as error:
            data, errors = {}, [{"message": f"YAML: {error}"}]
        for key, kinds in CARD_TYPES.items():
            if isinstance(data, dict) and not isinstance(data.get(key, kinds[0]()), kinds):
                errors.append({"message": f'"{key}" must be {" or ".join(kind.__name__ for kind in kinds)}'})
        for config in (data or {}).get("configs", []) if not errors else []:
            if not isinstance(config, dict) or not isinstance(config.get("config_name"), str):
                errors.append({"message": '"configs[].config_name" must be a string'})
        warnings = [] if match else [{"message": "empty or missing yaml metadata in repo card"}]
        return _json({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    def whoami(self, request: Request) -> Reply:
        if request.token is None:
            raise Refused(401, "Invalid username or password.")
        orgs = [
            {"name": name, "type": "org", "roleInOrg": members[request.user]}
            for name, members in self.members.items()
            if request.user in members
        ]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": request.token.scope}}
        return _json({"type": "user", "name": request.user, "fullname": request.user, "orgs": orgs, "auth": auth})

    def info(self, request: Request, name: str, revision: str = "main") -> Reply:
        repository = self._readable(request, name)
        commit = self._commit_at(repository, revision)
        siblings = [
            {"rfilename": path, **({"size": f.size, "blobId": f.oid, **_lfs(f)} if request.query.get("blobs") else {})}
            for path, f in sorted(commit.files.items())
        ]
        return _json(
            {
                "_id": hashlib.md5(name.encode()).hexdigest()[:24],
                "id": name,
                "author": repository.namespace,
                "sha": commit.sha,
                "createdAt": next(iter(repository.commits.values())).date,
                "lastModified": commit.date,
                "private": repository.private,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "cardData": self._card(commit),
                "siblings": siblings,
            }
        )

    def _card(self, commit: Commit) -> object:
        if "README.md" not in commit.files:
            return None
        match = re.match(r"---\r?\n(.*?)\r?\n---", self._content(commit.files["README.md"]).decode(), re.DOTALL)
        return yaml.safe_load(match[1]) if match else None

    def settings(self, request: Request, name: str) -> Reply:
        wanted = request.json()
        self._writable(request, name).private = wanted.get("private") or wanted.get("visibility") == "private"
        return _json({})

    def tree(self, request: Request, name: str, revision: str, path: str = "") -> Reply:
        commit = self._commit_at(self._readable(request, name), revision)
        prefix = f"{path.strip('/')}/" if path.strip("/") else ""
        below = {p: f for p, f in commit.files.items() if p.startswith(prefix)}
        if prefix and not below:
            raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
        recursive = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        expand = request.query.get("expand", ["false"])[0].lower() in ("true", "1")
        entries: dict[str, dict] = {}
        for file_path, file in below.items():
            parts = file_path[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                if depth == 1 or recursive:
                    folder = prefix + "/".join(parts[:depth])
                    entries[folder] = {"type": "directory", "oid": _oid(folder), "size": 0, "path": folder}
            if recursive or len(parts) == 1:
                entries[file_path] = _entry(file_path, file)
        listed = [{**entry, **(_expanded(commit) if expand else {})} for _, entry in sorted(entries.items())]
        start = int(request.query.get("cursor", ["0"])[0])
        limit = int(request.query.get("limit", [str(PAGE)])[0])
        reply = _json(listed[start : start + limit])
        if start + limit < len(listed):
            query = {"recursive": str(recursive), "expand": str(expand), "limit": str(limit)}
            text = "&".join(f"{key}={value}" for key, value in {**query, "cursor": str(start + limit)}.items())
            reply.headers["Link"] = f'<{self.url}{quote(request.path)}?{text}>; rel="next"'
        return reply

    def paths(self, request: Request, name: str, revision: str) -> Reply:
        commit = self._commit_at(self._readable(request, name), revision)
        form = parse_qs(request.body.decode())
        wanted = form.get("paths") or json.loads(request.body or b"{}").get("paths", [])
        more = _expanded(commit) if form.get("expand", ["False"])[0] == "True" else {}
        found = []
        for path in (p.strip("/") for p in wanted):
            if path in commit.files:
                found.append({**_entry(path, commit.files[path]), **more})
            elif any(p.startswith(f"{path}/") for p in commit.files):
                found.append({"type": "directory", "oid": _oid(path), "size": 0, "path": path, **more})
        return _json(found)

    def refs(self, request: Request, name: str) -> Reply:
        repository = self._readable(request, name)
        listed: dict[str, list] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        kinds = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}
        for ref, sha in repository.refs.items():
            _, kind, short = ref.split("/", 2)
            listed[kinds[kind]].append({"name": ref if kind == "pr" else short, "ref": ref, "targetCommit": sha})
        if not request.query.get("include_prs"):
            del listed["pullRequests"]
        return _json(listed)

    def commits(self, request: Request, name: str, revision: str) -> Reply:
        repository = self._readable(request, name)
        commit: Commit | None = self._commit_at(repository, revision)
        listed = []
        while commit:
            item = {"id": commit.sha, "title": commit.title, "message": "", "date": commit.date}
            listed.append({**item, "authors": [{"user": commit.user}]})
            commit = repository.commits.get(commit.parent or "")
        return _json(listed)

    def branch(self, request: Request, name: str, branch: str) -> Reply:
        repository = self._writable(request, name)
        ref = f"refs/heads/{branch}"
        if request.method == "DELETE":
            if repository.refs.pop(ref, None) is None:
                raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            return _json({})
        if ref in repository.refs:
            raise Refused(409, f"Reference already exists: {ref}")
        repository.refs[ref] = self._commit_at(repository, request.json().get("startingPoint") or "main").sha
        return _json({})

    def tag(self, request: Request, name: str, revision: str) -> Reply:
        repository = self._writable(request, name)
        repository.refs[f"refs/tags/{request.json()['tag']}"] = self._commit_at(repository, revision).sha
        return _json({})

    def preupload(self, request: Request, name: str, revision: str) -> Reply:
        commit = self._commit_at(self._writable(request, name), revision)
        files = []
        for wanted in request.json()["files"]:
            base64.b64decode(wanted["sample"], validate=True)
            there = commit.files.get(wanted["path"])
            mode = self._mode(wanted["path"], wanted["size"])
            oid = {"oid": there.sha256 or there.oid} if there else {}
            files.append({"path": wanted["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
        return _json({"files": files})

    def lfs(self, request: Request, name: str) -> Reply:
        self._writable(request, name)
        wanted = request.json()
        if wanted["operation"] != "upload" or wanted["hash_algo"] != "sha256":
            raise Refused(400, f"Unsupported: {wanted}")
        objects = []
        for item in wanted["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if not (self.blobs / item["oid"]).exists():
                verify = {"href": f"{self.url}/datasets/{name}.git/info/lfs/objects/verify"}
                answer["actions"] = {"upload": self._upload_action(item), "verify": verify}
            objects.append(answer)
        return _json({"transfer": "multipart" if self.multipart else "basic", "objects": objects})

    def _upload_action(self, item: Mapping) -> dict:
        if not self.multipart or item["size"] <= self.multipart:
            return {"href": f"{self.cdn}/lfs/{item['oid']}?signature=1"}
        parts = range(1, -(-item["size"] // self.multipart) + 1)
        header = {f"{part:05d}": f"{self.cdn}/lfs/{item['oid']}/{part}?signature=1" for part in parts}
        return {
            "href": f"{self.url}/api/complete_multipart?oid={item['oid']}",
            "header": {"chunk_size": str(self.multipart), **header},
        }

    def verify(self, request: Request, name: str) -> Reply:
        self._writable(request, name)
        wanted = request.json()
        path = self.blobs / wanted["oid"]
        if not path.exists() or path.stat().st_size != wanted["size"]:
            raise Refused(404, "The object is not there")
        return _json({})

    def complete(self, request: Request) -> Reply:
        wanted = request.json()
        parts = self._parts.pop(wanted["oid"])
        assert [part["partNumber"] for part in wanted["parts"]] == sorted(parts)
        self._store(wanted["oid"], b"".join(parts[number] for number in sorted(parts)))
        return _json({})

    def put(self, request: Request, oid: str, part: str | None = None) -> Reply:
        if part is None:
            self._store(oid, request.body)
        else:
            self._parts.setdefault(oid, {})[int(part)] = request.body
        return Reply(headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})

    def _store(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refused(400, "BadDigest: the content is not what its name says")
        (self.blobs / oid).write_bytes(content)

    def blob(self, request: Request, oid: str) -> Reply:
        return _ranged(request, Reply(file=self.blobs / oid, headers={"ETag": f'"{oid}"'}))

    def xet(self, request: Request, name: str, kind: str, revision: str) -> Reply:
        if self.storage != "xet":
            raise Refused(404, "Not Found")
        repository = self._writable(request, name) if kind == "write" else self._readable(request, name)
        if revision != "None":
            self._commit_at(repository, revision)
        url, expiry = f"local://{self.cas}", int(time.time()) + 3600
        reply = _json({"casUrl": url, "exp": expiry, "accessToken": "xet"})
        reply.headers |= {
            "X-Xet-Cas-Url": url,
            "X-Xet-Access-Token": "xet",
            "X-Xet-Token-Expiration": str(expiry),
        }
        return reply

    def push(self, request: Request, name: str, revision: str) -> Reply:
        repository = self._writable(request, name)
        as_pull_request = bool(request.query.get("create_pr"))
        commit = self._commit_at(repository, revision)
        lines = [json.loads(line) for line in request.body.splitlines()]
        header = lines[0]["value"]
        if lines[0]["key"] != "header" or not header.get("summary"):
            raise Refused(400, "The first line has to be a header with a summary")
        if as_pull_request and "parentCommit" in header:
            commit = self._commit_at(repository, header["parentCommit"])
        if header.get("parentCommit", commit.sha) != commit.sha:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        ref = repository.ref(revision)
        if ref is None and not as_pull_request:
            raise Refused(400, f"{revision} is no branch")
        files = dict(commit.files)
        for line in lines[1:]:
            self._change(files, line["key"], line["value"])
        user = str(request.user)
        if not as_pull_request:
            sha = self._record(repository, str(ref), files, header["summary"], user)
            return _json(self._committed(name, sha))
        number = len(repository.pull_requests) + 1
        sha = self._record(repository, f"refs/pr/{number}", files, header["summary"], user, commit.sha)
        repository.pull_requests[number] = str(ref or revision)
        url = f"{self.url}/datasets/{name}/discussions/{number}"
        return _json({**self._committed(name, sha), "pullRequestUrl": url})

    def _committed(self, name: str, sha: str) -> dict:
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/datasets/{name}/commit/{sha}"}

    def _change(self, files: dict[str, File], key: str, value: Mapping) -> None:
        path = value["path"]
        if key == "file":
            files[path] = self._small(base64.b64decode(value["content"], validate=True))
        elif key == "lfsFile":
            files[path] = self._upload(value["oid"], value["size"])
        elif key == "deletedFile" and path in files:
            del files[path]
        elif key == "deletedFolder" and any(p.startswith(path.rstrip("/") + "/") for p in files):
            for inner in [p for p in files if p.startswith(path.rstrip("/") + "/")]:
                del files[inner]
        elif key in ("deletedFile", "deletedFolder"):
            raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        else:
            raise Refused(400, f"Unknown operation {key}")

    def merge(self, request: Request, name: str, number: str) -> Reply:
        repository = self._writable(request, name)
        proposed = repository.commits[repository.refs[f"refs/pr/{number}"]]
        target = repository.pull_requests[int(number)]
        title = f"{proposed.title} (#{number})"
        self._record(repository, target, proposed.files, title, str(request.user))
        return _json({})

    def resolve(self, request: Request, name: str, revision: str, path: str) -> Reply:
        commit = self._commit_at(self._readable(request, name), revision)
        file = commit.files.get(path)
        if file is None:
            refused = Refused(404, "Entry not found", "EntryNotFound")
            refused.reply.headers["X-Repo-Commit"] = commit.sha
            raise refused
        etag = f'"{file.sha256 or file.oid}"'
        headers = {"X-Repo-Commit": commit.sha, "ETag": etag, "Content-Disposition": f'inline; filename="{file.oid}"'}
        if request.headers.get("If-None-Match") == etag:
            return Reply(304, headers=headers)
        if file.sha256 is None:
            headers["Content-Type"] = "text/plain; charset=utf-8"
            return _ranged(request, Reply(body=self.small[file.oid], headers=headers))
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(file.size)}
        if file.xet:
            headers["X-Xet-Hash"] = file.xet
            headers["Link"] = f'<{self.url}/api/datasets/{name}/xet-read-token/{commit.sha}>; rel="xet-auth"'
        if request.method == "GET":
            self._path(file)
        return Reply(302, headers={**headers, "Location": f"{self.cdn}/lfs/{file.sha256}?signature=1"})

    # Dispatch.

    def answer(self, request: Request, routes: Routes) -> Reply | None:
        """The reply to a request; ``None`` drops the connection."""
        for pattern, methods, name in routes:
            if request.method in methods and (match := re.fullmatch(pattern, request.path)):
                return self._answer(request, name, match, routes is ROUTES)
        self.log.append(Call("unknown", request.method, request.path, None, 404))
        return Refused(404, "Not Found").reply

    def _answer(self, request: Request, name: str, match: re.Match[str], authenticated: bool) -> Reply | None:
        for index, (route, function) in enumerate(self._hooks):
            if route == name:
                del self._hooks[index]
                function()
                break
        fault = self._fault(name)
        reply: Reply | None = None
        if fault is None or fault.lost:
            reply = self._reply(request, name, match, authenticated)
        if fault and fault.status:
            reply = _broken(fault)
        elif fault:
            reply = None
        self.log.append(Call(name, request.method, request.path, request.user, reply.status if reply else 0))
        return reply

    def _fault(self, name: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.route != name or not fault.times:
                    continue
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    def _reply(self, request: Request, name: str, match: re.Match[str], authenticated: bool) -> Reply:
        groups = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
        try:
            with self._lock:
                if authenticated:
                    self._authenticate(request)
                elif "Authorization" in request.headers:
                    raise Refused(400, "Only one auth mechanism allowed")
                return getattr(self, HANDLERS.get(name, name))(request, **groups)
        except Refused as refused:
            return refused.reply


REPO = r"(?P<name>[^/]+/[^/]+)"
API = rf"/api/datasets/{REPO}"
REV = r"(?P<revision>[^/]+)"
Routes = list[tuple[str, tuple[str, ...], str]]
ROUTES: Routes = [
    (r"/api/repos/create", ("POST",), "create"),
    (r"/api/repos/delete", ("DELETE",), "delete"),
    (r"/api/validate-yaml", ("POST",), "validate"),
    (r"/api/whoami-v2", ("GET",), "whoami"),
    (r"/api/complete_multipart", ("POST",), "complete"),
    (API, ("GET",), "info"),
    (rf"{API}/settings", ("PUT",), "settings"),
    (rf"{API}/revision/{REV}", ("GET",), "info"),
    (rf"{API}/tree/{REV}(?:/(?P<path>.*))?", ("GET",), "tree"),
    (rf"{API}/paths-info/{REV}", ("POST",), "paths"),
    (rf"{API}/refs", ("GET",), "refs"),
    (rf"{API}/commits/{REV}", ("GET",), "commits"),
    (
        rf"{API}/branch/(?P<branch>[^/]+)",
        (
            "POST",
            "DELETE",
        ),
        "branch",
    ),
    (rf"{API}/tag/{REV}", ("POST",), "tag"),
    (rf"{API}/preupload/{REV}", ("POST",), "preupload"),
    (rf"{API}/commit/{REV}", ("POST",), "commit"),
    (rf"{API}/xet-(?P<kind>write|read)-token/{REV}", ("GET",), "xet"),
    (rf"{API}/discussions/(?P<number>\d+)/merge", ("POST",), "merge"),
    (rf"/datasets/{REPO}\.git/info/lfs/objects/batch", ("POST",), "lfs"),
    (rf"/datasets/{REPO}\.git/info/lfs/objects/verify", ("POST",), "verify"),
    (
        rf"/datasets/{REPO}/resolve/{REV}/(?P<path>.+)",
        (
            "GET",
            "HEAD",
        ),
        "resolve",
    ),
]
STORAGE_ROUTES: Routes = [
    (r"/lfs/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?", ("PUT",), "put"),
    (
        r"/lfs/(?P<oid>[0-9a-f]{64})",
        (
            "GET",
            "HEAD",
        ),
        "blob",
    ),
]
NAMES = {name for routes in (ROUTES, STORAGE_ROUTES) for _, _, name in routes}
HANDLERS = {"commit": "push"}
CARD_TYPES: Mapping[str, tuple[type, ...]] = {
    "license": (str, list),
    "language": (str, list),
    "tags": (list,),
    "task_categories": (list,),
    "task_ids": (list,),
    "source_datasets": (list,),
    "size_categories": (str, list),
    "annotations_creators": (list,),
    "configs": (list,),
    "dataset_info": (dict, list),
    "pretty_name": (str,),
}


def _json(content: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(content).encode(), {"Content-Type": "application/json; charset=utf-8"})


def _broken(fault: Fault) -> Reply:
    """The page of a gateway for a failure of the server, JSON for the rest."""
    if fault.status < 500:
        reply = Refused(fault.status, fault.message).reply
    else:
        page = f"<html><body><h1>{fault.status} {fault.message}</h1></body></html>"
        reply = Reply(fault.status, page.encode(), {"Content-Type": "text/html"})
    reply.headers |= fault.headers
    return reply


def _oid(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def _large(sha256: str, size: int, xet: str | None = None) -> File:
    return File(_oid(_pointer(sha256, size)), size, sha256, xet)


def _pointer(sha256: str, size: int) -> str:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"


def _lfs(file: File) -> dict:
    if file.sha256 is None:
        return {}
    pointer = len(_pointer(file.sha256, file.size))
    return {"lfs": {"oid": file.sha256, "sha256": file.sha256, "size": file.size, "pointerSize": pointer}}


def _entry(path: str, file: File) -> dict:
    xet = {"xetHash": file.xet} if file.xet else {}
    return {"type": "file", "oid": file.oid, "size": file.size, "path": path, **_lfs(file), **xet}


def _expanded(commit: Commit) -> dict:
    return {"lastCommit": {"id": commit.sha, "title": commit.title, "date": commit.date}}


def _ranged(request: Request, reply: Reply) -> Reply:
    """The part of a reply that a request asks for."""
    reply.headers["Accept-Ranges"] = "bytes"
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if not match or not any(match.groups()):
        return reply
    size = reply.file.stat().st_size if reply.file else len(reply.body)
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last), size - 1) if first and last else size - 1
    if start >= size or start > end:
        refused = Refused(416, "Range Not Satisfiable").reply
        refused.headers["Content-Range"] = f"bytes */{size}"
        return refused
    if reply.file:
        with reply.file.open("rb") as file:
            file.seek(start)
            body = file.read(end - start + 1)
    else:
        body = reply.body[start : end + 1]
    return Reply(206, body, {**reply.headers, "Content-Range": f"bytes {start}-{end}/{size}"})


def xet_files(cas: Path) -> dict[str, str]:
    """The Xet hash of every file by its sha256, read from the shards that uploads left in a local store."""
    found = {}
    for shard in (cas / "xet" / "xorbs" / "shards").glob("*.mdb"):
        data = shard.read_bytes()
        position = 48  # behind the header
        while (name := data[position : position + 32]) != b"\xff" * 32:
            flags, entries = struct.unpack_from("<II", data, position + 32)
            position += 48 * (1 + entries * (2 if flags >> 31 & 1 else 1))
            if flags >> 30 & 1:
                found[_hex(data[position : position + 32])] = _hex(name)
                position += 48
    return found


def _hex(name: bytes) -> str:
    """The text of a hash as Xet writes it: four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", name))


def _serve(hub: Hub, routes: Routes) -> ThreadingHTTPServer:  # noqa: C901
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _any(self) -> None:
            url = urlsplit(self.path)
            request = Request(
                self.command, url.path, parse_qs(url.query, keep_blank_values=True), self.headers, self._body()
            )
            reply = hub.answer(request, routes)
            if reply is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(reply.status)
            size = reply.file.stat().st_size if reply.file else len(reply.body)
            for key, value in {**reply.headers, "Content-Length": str(size)}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD" or reply.status == 304:
                return
            if reply.file:
                with reply.file.open("rb") as file:
                    while block := file.read(1 << 20):
                        self.wfile.write(block)
            else:
                self.wfile.write(reply.body)

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            blocks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                blocks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(blocks)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _any

        def handle(self) -> None:
            try:
                super().handle()
            except (ConnectionError, OSError):
                """The client has gone; a killed one is what some tests are about."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


def point_at(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the libraries of this process, which read their environment when they were imported, use a Hub.

    Their caches become its own: `datasets` serves a cached copy where access is denied. Nothing sleeps between
    the library's own retries.
    """
    import datasets
    import huggingface_hub
    import huggingface_hub.utils._http as http
    from huggingface_hub import HfFileSystem, constants, file_download, hf_api

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    home = hub.home
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_DISABLE_XET": hub.storage != "xet",
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value, raising=False)
    # Before 1.0 this module had a copy of it.
    monkeypatch.setattr(
        file_download, "HUGGINGFACE_CO_URL_TEMPLATE", constants.HUGGINGFACE_CO_URL_TEMPLATE, raising=False
    )
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    for name, value in {
        "HF_ENDPOINT": hub.url,
        "HUB_DATASETS_URL": hub.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_CACHE_HOME": str(home),
        "HF_DATASETS_CACHE": home / "datasets",
        "HF_MODULES_CACHE": home / "modules",
        "DOWNLOADED_DATASETS_PATH": home / "datasets" / "downloads",
        "EXTRACTED_DATASETS_PATH": home / "datasets" / "downloads" / "extracted",
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_OFFLINE": False,
    }.items():
        monkeypatch.setattr(datasets.config, name, value, raising=False)
    clock = SimpleNamespace(**{name: getattr(time, name) for name in dir(time) if not name.startswith("_")})
    clock.sleep = lambda _: None
    monkeypatch.setattr(http, "time", clock)
    HfFileSystem.clear_instance_cache()
    assert huggingface_hub.HfApi().endpoint == hub.url


def log_in(token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a token, or none, for whatever this process asks of the Hub from now on."""
    from huggingface_hub import HfFileSystem

    HfFileSystem.clear_instance_cache()
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)


def _no_xet() -> bool:
    try:
        from hf_xet import XetSession  # noqa: F401
    except ImportError:
        return True
    return False


STORAGES = ["lfs", pytest.param("xet", marks=pytest.mark.skipif(_no_xet(), reason="no hf_xet with sessions"))]
both_storages = pytest.mark.parametrize("hub", STORAGES, indirect=True)
"""Runs a test that uses the fixture ``hub`` in both storage modes."""


@contextmanager
def running(folder: Path, storage: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub to which this process is logged in as its writer."""
    hub = Hub(folder, storage)
    try:
        point_at(hub, monkeypatch)
        log_in(TOKEN, monkeypatch)
        yield hub
    finally:
        from huggingface_hub import HfFileSystem

        HfFileSystem.clear_instance_cache()
        hub.close()
