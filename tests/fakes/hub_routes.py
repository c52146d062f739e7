"""The HTTP routes of the Hub on loopback, written from what ``huggingface_hub`` and ``datasets`` send and accept."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Mapping
from urllib.parse import parse_qs, quote

import yaml

from tests.fakes.repositories import Commit, File, Refused, Reply, Repositories, Request, git_oid, git_pointer

PAGE = 1000
NAME = re.compile(r"(?!.*(--|\.\.))(?!.*\.git$)[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?")


class Api(Repositories):
    """A method for each route; a reply, or `Refused`."""

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
                    entries[folder] = {"type": "directory", "oid": git_oid(folder), "size": 0, "path": folder}
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
                found.append({"type": "directory", "oid": git_oid(path), "size": 0, "path": path, **more})
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


def _lfs(file: File) -> dict:
    if file.sha256 is None:
        return {}
    pointer = len(git_pointer(file.sha256, file.size))
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
