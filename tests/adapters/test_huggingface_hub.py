"""huggingface_hub with our FileLock in the place of filelock's, in the ways that the documentation gives."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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


@dataclass
class Hub:
    """A hub, and what was asked of it."""

    address: str = ""
    looks: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)
    #: Whether a download that has begun may come to its end.
    may_end: Callable[[], object] = lambda: True


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.hub.looks.append(self.path)
        self._begin()

    def do_GET(self) -> None:
        if not self.path.endswith("/resolve/main/weights.bin"):
            self.send_error(404)
            return
        self.hub.downloads.append(self.path)
        self._begin()
        wait_until(self.hub.may_end)
        time.sleep(0.5)  # so that others may go further than to look
        self.wfile.write(CONTENT)

    def _begin(self) -> None:
        self.send_response(200)
        for name, value in {"ETag": '"abc"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(CONTENT))}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that is killed
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


def caller(stage: Stage, code: str, hub: Hub) -> Actor:
    settings = {"HF_HOME": os.fspath(stage.directory / "home"), "HF_ENDPOINT": hub.address, "NO_PROXY": "*"}
    # A busy machine is no reason to ask again.
    settings |= {"HF_HUB_ETAG_TIMEOUT": "60", "HF_HUB_DOWNLOAD_TIMEOUT": "60", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return stage.actor(code, **settings)  # type: ignore[arg-type]  # none of them is a host or a path


def download(actor: Actor) -> None:
    actor.tell("open(hf_hub_download('me/model', 'weights.bin', cache_dir='cache'), 'rb').read() == b'weights' * 1000")


@pytest.mark.parametrize("code", [BEFORE_IMPORT, AFTER_IMPORT], ids=["before import", "after import"])
def test_a_file_is_downloaded_once_by_processes_that_share_a_cache(
    stage: Stage, tmp_path: Path, hub: Hub, code: str
) -> None:
    hub.may_end = lambda: len(hub.looks) >= CALLERS
    callers = [caller(stage, code, hub) for _ in range(CALLERS)]
    for actor in callers:
        download(actor)
    assert [actor.answer() for actor in callers] == [True] * CALLERS
    assert len(hub.downloads) == 1
    locks = [path for path in (tmp_path / "cache" / ".locks").rglob("*") if path.parent.name == "models--me--model"]
    assert [path.name for path in locks] == ["abc.lock.rwlock"]


def test_if_the_downloading_process_is_killed_the_next_one_downloads(stage: Stage, hub: Hub) -> None:
    killed = threading.Event()
    hub.may_end = killed.is_set
    victim, heir = (caller(stage, AFTER_IMPORT, hub) for _ in range(2))
    download(victim)
    wait_until(lambda: hub.downloads)
    download(heir)
    victim.kill()
    killed.set()
    assert heir.answer() is True
    assert len(hub.downloads) == 2


def test_where_flock_lets_everybody_in_it_is_downloaded_by_each(stage: Stage, hub: Hub) -> None:
    hub.may_end = lambda: len(hub.downloads) > 1
    callers = [caller(stage, NO_LOCK, hub) for _ in range(CALLERS)]
    for actor in callers:
        download(actor)
    assert [actor.answer() for actor in callers] == [True] * CALLERS
    assert len(hub.downloads) > 1
