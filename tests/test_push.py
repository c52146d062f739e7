"""Publishing, against a small hub on loopback that takes repositories and commits."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from arhn_datasets import cli
from arhn_datasets.errors import ConfigurationError
from arhn_datasets.push import files_to_push
from tests.conftest import SAMPLE


@pytest.fixture
def refined(tmp_path, capsys):
    """A refined folder."""
    out = tmp_path / "refined"
    assert cli.refine_command([str(SAMPLE), "--annotator", "lexical", "--output", str(out), "--limit", "6"]) == 0
    return out


class Hub(BaseHTTPRequestHandler):
    """The requests of create_repo and upload_folder; small files come inside the commit."""

    repositories, commits = {}, []
    token = "hf_right"

    def log_message(self, *_):
        """Say nothing."""

    def _reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if "/tree/" in self.path:
            return self._reply(200, [{"type": "file", "path": "data/train-old.parquet", "size": 1, "oid": "0"}])
        return self._reply(
            200, {"id": "user/name", "sha": "1" * 40, "siblings": [{"rfilename": "data/train-old.parquet"}]}
        )

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            return self._reply(401, {"error": "Invalid credentials"})
        if self.path == "/api/repos/create":
            self.repositories[json.loads(body)["name"]] = json.loads(body)
            return self._reply(200, {"url": f"http://{self.headers['Host']}/datasets/user/name", "name": "user/name"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._reply(200, {"files": files})
        if "/commit/" in self.path:
            self.commits.append([json.loads(line) for line in body.splitlines()])
            return self._reply(
                200, {"commitUrl": f"http://{self.headers['Host']}/datasets/user/name/commit/2", "commitOid": "2" * 40}
            )
        return self._reply(200, {"errors": [], "warnings": []})


@pytest.fixture
def hub():
    """A running hub."""
    Hub.repositories, Hub.commits = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def push(hub, folder, *options, token="hf_right"):
    """``arhn-push`` in a process of its own, since the hub's client reads its endpoint when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1"}
    code = "import sys; from arhn_datasets.cli import push_command; sys.exit(push_command(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(folder), "user/name", "--token", token, *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_one_commit_carries_everything(hub, refined):
    """A private repository is made, and one commit holds data, card and run.json and removes the old shards."""
    done = push(hub, refined)
    assert done.returncode == 0, done.stderr
    assert f"published {hub}/datasets/user/name/commit/2" in done.stdout
    [made] = Hub.repositories.values()
    assert made.get("private") is True or made.get("visibility") == "private"
    [[header, *operations]] = Hub.commits
    assert header["value"]["summary"] == "Refine hard negatives with ARHN"
    files = {o["value"]["path"]: o["value"] for o in operations if o["key"] == "file"}
    assert set(files) == {file.path for file in files_to_push(refined)}
    assert base64.b64decode(files["README.md"]["content"]) == (refined / "README.md").read_bytes()
    deleted = [o["value"]["path"] for o in operations if o["key"] == "deletedFile"]
    assert deleted == ["data/train-old.parquet"]


def test_a_refused_push_exits_with_1_and_says_what_to_do(hub, refined):
    """A wrong token: no traceback, nothing published."""
    done = push(hub, refined, token="hf_wrong")
    assert done.returncode == 1
    assert "hf auth login" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hf_wrong" not in done.stderr
    assert Hub.commits == []


def test_only_a_refined_folder_is_published(tmp_path):
    """Anything else is refused before any network."""
    with pytest.raises(ConfigurationError, match=r"no run\.json"):
        files_to_push(tmp_path)
