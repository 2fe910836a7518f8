"""A stub of the hub's HTTP API on 127.0.0.1: repositories of datasets, and commits to them.

As much of it as huggingface_hub's client calls to make a repository, look at it and commit files.
"""

import base64
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_a_test"


class Hub:
    def __init__(self):
        self.repos, self.commits, self.requests, self.url = {}, [], [], None

    def answer(self, method, path, body, headers):
        self.requests.append(f"{method} {path}")
        if headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials"}
        if file := re.fullmatch(r"/datasets/([\w.-]+/[\w.-]+)/resolve/\w+/(.+)", path):
            content = self.repos[file[1]]["files"].get(file[2])
            return (404, {}) if content is None else (200, content)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        repo, rest = re.match(r"/api/datasets/([\w.-]+/[\w.-]+)(.*)", path).groups()
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}
        if rest == "/preupload/main":
            files = json.loads(body)["files"]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {"files": [{"path": one["path"], **plain} for one in files]}
        if rest == "/commit/main":
            return self.commit(repo, [json.loads(line) for line in body.splitlines()])
        return 200, self.info(repo)

    def create(self, asked):
        repo = asked["name"] if asked.get("organization") is None else (
            f"{asked['organization']}/{asked['name']}"
        )  # fmt: skip
        repo = repo if "/" in repo else f"me/{repo}"
        if repo in self.repos:
            return 409, {"error": "You already created this dataset repo", "url": self.of(repo)}
        private = asked.get("private", asked.get("visibility") == "private")
        self.repos[repo] = {"private": private, "files": {".gitattributes": b""}}
        return 200, {"url": self.of(repo), "name": repo}

    def of(self, repo):
        return f"{self.url}/datasets/{repo}"

    def info(self, repo):
        files = self.repos[repo]["files"]
        card = files.get("README.md", b"").decode().replace("\r\n", "\n")
        tags = re.findall(r"^- ([\w-]+)$", card.partition("---\n")[2].partition("---\n")[0], re.M)
        return {
            "id": repo,
            "private": self.repos[repo]["private"],
            "tags": self.repos[repo].get("tags", tags),
            "siblings": [{"rfilename": name} for name in files],
            "sha": "0" * 40,
        }

    def commit(self, repo, lines):
        files = {}
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.repos[repo]["files"].update(files)
        self.commits.append((repo, lines[0]["value"], files))
        url = f"{self.of(repo)}/commit/{'1' * 40}"
        return 200, {"success": True, "commitOid": "1" * 40, "commitUrl": url}


@contextmanager
def serving():
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, value = hub.answer(self.command, self.path, body, self.headers)
            text = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("etag", '"0"')
            self.send_header("x-repo-commit", "0" * 40)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        do_GET = do_HEAD = do_POST = do

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
