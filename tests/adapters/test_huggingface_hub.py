"""huggingface_hub with our FileLock in the place of filelock's, in the ways that the documentation gives."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from actors import Actor, Stage, wait_until

pytest.importorskip("huggingface_hub")

CONTENT = b"weights" * 1000
COMMIT = "0" * 40
CALLERS = 3

#: The two ways in `docs/how-to/plain-python.md`, and what stands for a file system whose flock(2) lets everybody in.
BEFORE_IMPORT = """
import filelock
from nfsrwlock import FileLock
filelock.FileLock = filelock.SoftFileLock = FileLock
from huggingface_hub import hf_hub_download
"""
AFTER_IMPORT = """
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import _fixes, _shared_blobs
from nfsrwlock import FileLock
for module in (_fixes, _shared_blobs):
    module.FileLock = module.SoftFileLock = FileLock
"""
NO_LOCK = """
import fcntl
fcntl.flock = lambda fd, operation: None
from huggingface_hub import hf_hub_download
"""


class _Hub(BaseHTTPRequestHandler):
    downloads: list[str]

    def do_HEAD(self) -> None:
        self._begin()

    def do_GET(self) -> None:
        if not self.path.endswith("/resolve/main/weights.bin"):
            self.send_error(404)
            return
        self.downloads.append(self.path)
        self._begin()
        time.sleep(1)
        self.wfile.write(CONTENT)

    def _begin(self) -> None:
        self.send_response(200)
        for name, value in {"ETag": '"abc"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(CONTENT))}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """A hub's address, and what was downloaded from it."""
    downloads: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"downloads": downloads}))
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that is killed
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", downloads
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path) as stage:
        yield stage


def caller(stage: Stage, code: str, endpoint: str) -> Actor:
    home = os.fspath(stage.directory / "home")
    return stage.actor(code, HF_HOME=home, HF_ENDPOINT=endpoint, NO_PROXY="*", HF_HUB_DISABLE_PROGRESS_BARS="1")


def download(actor: Actor) -> None:
    actor.tell("open(hf_hub_download('me/model', 'weights.bin', cache_dir='cache'), 'rb').read() == b'weights' * 1000")


@pytest.mark.parametrize("code", [BEFORE_IMPORT, AFTER_IMPORT], ids=["before import", "after import"])
def test_a_file_is_downloaded_once_by_processes_that_share_a_cache(
    stage: Stage, tmp_path: Path, hub: tuple[str, list[str]], code: str
) -> None:
    endpoint, downloads = hub
    callers = [caller(stage, code, endpoint) for _ in range(CALLERS)]
    for actor in callers:
        download(actor)
    assert [actor.answer() for actor in callers] == [True] * CALLERS
    assert len(downloads) == 1
    locks = [path for path in (tmp_path / "cache" / ".locks").rglob("*") if path.parent.name == "models--me--model"]
    assert [path.name for path in locks] == ["abc.lock.rwlock"]


def test_if_the_downloading_process_is_killed_the_next_one_downloads(stage: Stage, hub: tuple[str, list[str]]) -> None:
    endpoint, downloads = hub
    victim, heir = (caller(stage, AFTER_IMPORT, endpoint) for _ in range(2))
    download(victim)
    wait_until(lambda: downloads)
    download(heir)
    victim.kill()
    assert heir.answer() is True
    assert len(downloads) == 2


def test_where_flock_lets_everybody_in_it_is_downloaded_by_each(stage: Stage, hub: tuple[str, list[str]]) -> None:
    endpoint, downloads = hub
    callers = [caller(stage, NO_LOCK, endpoint) for _ in range(CALLERS)]
    for actor in callers:
        download(actor)
    assert [actor.answer() for actor in callers] == [True] * CALLERS
    assert len(downloads) > 1
