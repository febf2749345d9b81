"""Stand-ins for the Hugging Face hub and for Google Drive, served from this machine."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GOOGLE = "https://drive.google.com"


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], **facts: Any) -> Iterator[Any]:
    """A server for the time being: the handler's class with `facts` as attributes, its `address`, and what it gave.

    fetched: names of files, and "listing" for each question what there is.
    """
    served: Any = type("Served", (handler,), {"fetched": [], **facts})
    server = ThreadingHTTPServer(("127.0.0.1", 0), served)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    served.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Answering(BaseHTTPRequestHandler):
    """What both have in common."""

    fetched: list[str]

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Hub(Answering):
    """As much of the hub's HTTP interface as downloading a snapshot, or a file of a dataset, needs."""

    repositories: Mapping[str, Mapping[str, bytes]]  # owner/name or datasets/owner/name: content of each file
    commit = COMMIT  # of main
    lost: Collection[str] = ()  # files that are listed and not to be had

    def do_GET(self) -> None:
        route = self.path.partition("?")[0].strip("/").removeprefix("api/").removeprefix("models/")
        name = "/".join(route.split("/")[: 3 if route.startswith("datasets/") else 2])
        files = self.repositories.get(name)
        if files is None:
            code = "GatedRepo" if name == "house/gated" else "RepoNotFound"
            self.answer(b"{}", 403 if code == "GatedRepo" else 404, X_Error_Code=code)
            return
        named = re.search("/([0-9a-f]{40})(/|$)", route)
        commit = named[1] if named else self.commit
        if "/revision/lost" in self.path:
            self.answer(b"{}", 404, X_Error_Code="RevisionNotFound")
        elif "/revision/" in self.path:
            self.fetched.append("listing")
            siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
            listing = {"id": name.removeprefix("datasets/"), "sha": commit, "siblings": siblings}
            self.answer(json.dumps(listing).encode(), Content_Type="application/json")
        elif "/tree/" in self.path:
            tree = [{"type": "file", "path": f, "size": len(content), "oid": f} for f, content in files.items()]
            self.answer(json.dumps(tree).encode(), Content_Type="application/json")
        else:
            file = route.rpartition("/")[2]
            if file in self.lost:
                self.answer(b"{}", 404, X_Error_Code="EntryNotFound")
                return
            if self.command == "GET":
                self.fetched.append(file)
            self.answer(files[file], ETag=f'"{file}"', X_Repo_Commit=commit)

    do_HEAD = do_GET


class Drive(Answering):
    """As much of Google Drive as gdown asks for."""

    folders: Mapping[str, tuple[str, Mapping[str, tuple[str, bool]]]]  # id: name, {entry: (id, is a folder)}
    contents: Mapping[str, bytes] = {}  # of files by id; of any other file its id
    full = False  # whether too many people have had the weights today

    def do_GET(self) -> None:
        name = self.path.rpartition("id=")[2]
        if self.path.startswith("/embeddedfolderview"):
            title, entries = self.folders[name]
            kinds = {True: "drive/folders/{}", False: "file/d/{}/view"}
            links = [
                f'<a href="{GOOGLE}/{kinds[folder].format(key)}">{entry}</a>'
                for entry, (key, folder) in entries.items()
            ]
            self.answer(f"<html><title>{title}</title>{''.join(links)}</html>".encode(), Content_Type="text/html")
            return
        self.fetched.append(name[0])
        if self.full and name.startswith("w"):
            page = b'<p class="uc-error-subcaption">Too many users have viewed this file</p>'
            self.answer(page, Content_Type="text/html")
        else:
            body = self.contents.get(name, name.encode())
            kind = {"Content_Type": "application/octet-stream"}
            self.answer(body, **kind, Content_Disposition=f'attachment; filename="{name}"')
