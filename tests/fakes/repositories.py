"""What the Hub on loopback holds: repositories with their commits and files, and who may read and write them.

Large files lie on disk by their sha256, or in a local store of Xet.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

TOKEN = "hf_writer"
USER = "writer"
LARGE = "7z arrow avro bin bmp gif gz jpeg jpg npy npz parquet pdf png pt tar tiff webp zip zst".split()  # noqa: SIM905
GIT_ATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE)
LARGE_BYTES = 10 * 1024 * 1024
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


class Repositories:
    """The state of a Hub. ``storage`` is lfs or xet."""

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
        self.multipart: int | None = None
        self.url = self.cdn = ""
        self._uploaded: set[str] = set()
        self._parts: dict[str, dict[int, bytes]] = {}
        self._count = 0
        self._lock = threading.RLock()

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
                    files[path] = large_file(sha256, len(content))
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
            return large_file(sha256, size)
        stored = xet_files(self.cas).get(sha256)
        if stored is None:
            raise Refused(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
        return large_file(sha256, size, stored)


def large_file(sha256: str, size: int, xet: str | None = None) -> File:
    return File(git_oid(git_pointer(sha256, size)), size, sha256, xet)


def git_oid(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def git_pointer(sha256: str, size: int) -> str:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"


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
