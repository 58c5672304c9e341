"""
What the processes of the tests of joblib's adapter run: cached functions that count themselves, called all at once.

Functions live in a module that each test writes, because joblib looks at their source and children import them.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
import uuid
from pathlib import Path
from typing import Any

#: The module of cached functions. Each call adds a line to `log`; `once` is true for the first caller of all.
FUNCTIONS = """
import os, time

def log(text):
    with open("log", "a") as file:
        file.write(f"{text} {os.getpid()}\\n")

def once(name):
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

def work(x):
    log(f"work-{VERSION} {x}")
    time.sleep(0.4)
    return [x, VERSION]

def meets(x):
    log(f"meets {x}")
    end = time.monotonic() + 10
    while open("log").read().count(f"meets {x} ") < 2 and time.monotonic() < end:
        time.sleep(0.02)
    return x

def fails_once(x):
    log(f"fails_once {x}")
    time.sleep(0.4)
    if once("failed"):
        raise ArithmeticError("the first one")
    return [x, VERSION]

def hangs_once(x):
    log(f"hangs_once {x}")
    time.sleep(600 if once("hung") else 0.4)
    return [x, VERSION]

VERSION = 1
"""

#: As above, with another `work`; the name of its module stays.
CHANGED = FUNCTIONS.replace("return [x, VERSION]", "return [x, VERSION, 'changed']").replace(
    "VERSION = 1", "VERSION = 2"
)

#: Leases that no busy machine breaks, and looks often enough for tests.
SETTINGS = {"poll_interval": 0.1, "heartbeat_interval": 10, "stale_threshold": 60}


def memory_of(kind: str, location: str = "cache", **options: Any) -> Any:
    if kind == "joblib":
        import joblib

        return joblib.Memory(location, verbose=0)
    from nfsrwlock.joblib import Memory

    granularity = "function" if kind == "function" else "item"
    return Memory(location, verbose=0, granularity=granularity, **SETTINGS, **options)


def cached(kind: str, name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")
    return memory_of(kind).cache(getattr(importlib.import_module("functions"), name))


def pause_before(function: Any, step: str) -> None:
    """Let a cached function, once, say that it has come to this method of its store, and wait until it may go on."""
    store = function.store_backend
    go_on = getattr(store, step)

    def wait(*args: Any, **options: Any) -> Any:
        setattr(store, step, go_on)
        Path("waits").touch()
        deadline = time.monotonic() + 60
        while not os.path.exists("go") and time.monotonic() < deadline:
            time.sleep(0.005)
        return go_on(*args, **options)

    setattr(store, step, wait)


def meet(meeting: str, callers: int) -> None:
    """Wait until so many have come."""
    os.makedirs(meeting, exist_ok=True)
    me = uuid.uuid4().hex
    Path(meeting, me).touch()
    deadline = time.monotonic() + 60
    while (come := sum(not name.startswith(".") for name in os.listdir(meeting))) < callers:
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {come} have come")
        time.sleep(0.005)
        look = Path(meeting, f".{me}")  # an NFSv3 client may show an old listing until it makes a change of its own
        look.mkdir()
        look.rmdir()


def attempt(directory: str, kind: str, name: str, x: int, meeting: str, callers: int) -> Any:
    """Call a cached function together with others; its result, or the name of what it raised."""
    os.chdir(directory)
    function = cached(kind, name)
    meet(meeting, callers)
    try:
        return function(x)
    except ArithmeticError:
        return "raised"
    except Exception:
        return traceback.format_exc()


def together(backend: str, directory: str, kind: str, name: str, x: int, callers: int = 8) -> list[Any]:
    """Call a cached function in so many workers of a joblib backend at once."""
    from joblib import Parallel, delayed

    meeting = f"meeting-{uuid.uuid4().hex}"
    parallel = Parallel(n_jobs=callers, backend=backend, batch_size=1, pre_dispatch="all")
    return list(parallel(delayed(attempt)(directory, kind, name, x, meeting, callers) for _ in range(callers)))
