"""
Readers and writers of one store beside somebody who clears it all the time: `python joblib_storm.py --seconds 60`.

Each reader calls cached functions at random. Some results are mapped into memory, and some are small enough to be
loaded without a lock. It looks at every result, at mapped ones again after a while. Half of the readers keep the
shared holds of repeated hits. Two cleaners call `reduce_size` and `clear`. Exit code 1, with what went wrong, if a
call raised or warned, a result was wrong, a mapped result changed, or a lock was removed. `computed` says how often
what the cleaners had removed was made anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from joblib_scene import meet, memory_of

READERS = 8
ROLES = ["reader"] * READERS + ["reducer", "clearer"]
KEYS = 12
MODULE = """
import numpy as np

computed = []

def array(x):
    computed.append(x)
    return np.full(2000, x, dtype=np.int64)

def text(x):
    computed.append(x)
    return str(x) * (100 if x % 2 else 1 << 20)
"""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--directory", help="where; default: a temporary one")
    options.add_argument("--kind", default="item", choices=["item", "function", "joblib"])
    options.add_argument("--role", choices=["reader", "reducer", "clearer"], help=argparse.SUPPRESS)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--meet", type=int, default=len(ROLES), help=argparse.SUPPRESS)
    given = options.parse_args()
    with contextlib.ExitStack() as stack:
        here = given.directory or stack.enter_context(tempfile.TemporaryDirectory())
        if given.role is None:
            return conduct(given, Path(here))
        os.chdir(here)
        sys.path.insert(0, here)
        draft = Path(f"{uuid.uuid4().hex}.py")
        draft.write_text(MODULE)
        draft.rename("storm_functions.py")  # each of them makes it, so nobody need wait for it
        memory(given)  # imports joblib, which takes a while, and not the same for all
        meet("begun", given.meet)
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Persisting input arguments took")  # a slow disk, or a busy machine
        logging.getLogger().addHandler(_Complaint())
        print(json.dumps(globals()[given.role](given, random.Random(given.seed))))
        return 0


class _Complaint(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "Exception while loading" in text or record.name.startswith("nfsrwlock"):
            raise AssertionError(text)


def conduct(given: argparse.Namespace, here: Path) -> int:
    locks: set[str] = set()
    troubles: list[str] = []
    processes = []
    for number, role in enumerate(ROLES):
        command = [sys.executable, __file__, "--role", role, "--directory", str(here), "--kind", given.kind]
        command += ["--seconds", str(given.seconds), "--seed", str(given.seed + number)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    try:
        while any(process.poll() is None for process in processes) and not any(p.returncode for p in processes):
            locks.update(locks_below(str(here / "cache")))
            time.sleep(0.25)
        outcomes = []
        for process in processes:
            if process.poll() is None:
                continue  # another one has failed: that is enough
            out, _ = process.communicate(timeout=30)
            if process.returncode:
                troubles.append(f"process {process.args} ended with code {process.returncode}")
            else:
                outcomes.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    if not troubles and (left := sorted(locks_below(str(here / "cache")))):
        troubles.append(f"locks were left: {[(name, os.listdir(name)) for name in left[:3]]}")
    total: dict[str, int] = {}
    for outcome in outcomes:
        for name, count in outcome.items():
            total[name] = total.get(name, 0) + count
    print(json.dumps({**total, "locks": len(locks), "troubles": troubles}, indent=1))
    return 1 if troubles else 0


def locks_below(top: str) -> Iterator[str]:
    for directory, names, _ in os.walk(top):
        for name in names:
            if name.endswith(".rwlock"):
                yield os.path.join(directory, name)
        names[:] = [name for name in names if not name.endswith(".rwlock") and len(name) != 32]


def memory(given: argparse.Namespace, **options: Any) -> Any:
    made = memory_of(given.kind, **({} if given.kind == "joblib" or given.seed % 2 else {"linger": 0}))
    made.store_backend.mmap_mode = options.get("mmap_mode")
    return made


def reader(given: argparse.Namespace, chance: random.Random) -> dict[str, int]:
    import numpy as np
    import storm_functions

    plain = memory(given)
    functions = [plain.cache(storm_functions.array)]
    if given.kind != "function":
        functions.append(memory(given, mmap_mode="r").cache(storm_functions.array))
    text = plain.cache(storm_functions.text)
    kept: list[tuple[int, Any]] = []
    calls = 0
    end = time.monotonic() + given.seconds
    while time.monotonic() < end:
        x = chance.randrange(KEYS)
        if chance.random() < 0.3:
            assert text(x) == str(x) * (100 if x % 2 else 1 << 20), "a wrong result"
        else:
            array = chance.choice(functions)(x)
            assert array.shape == (2000,), "a wrong result"
            assert (array == x).all(), "a wrong result"
            if isinstance(array, np.memmap):
                kept.append((x, array[1:]))
        for before, array in kept:
            assert (array == before).all(), "a mapped result has changed"
            base = array.base
            while not isinstance(base, np.memmap):
                base = base.base
            if given.kind != "joblib":
                assert os.path.exists(base.filename), "an item in use was removed"
        if len(kept) > 3:
            kept.pop(0)
        calls += 1
    return {"calls": calls, "computed": len(storm_functions.computed)}


def reducer(given: argparse.Namespace, chance: random.Random) -> dict[str, int]:
    made = memory(given)
    rounds = 0
    end = time.monotonic() + given.seconds
    while time.monotonic() < end:
        made.reduce_size(items_limit=chance.randrange(KEYS))
        rounds += 1
    return {"reduced": rounds}


def clearer(given: argparse.Namespace, chance: random.Random) -> dict[str, int]:
    import storm_functions

    made = memory(given)
    text = made.cache(storm_functions.text)
    rounds = 0
    end = time.monotonic() + given.seconds
    while time.monotonic() < end:
        chance.choice([made, text]).clear(warn=False)
        rounds += 1
        time.sleep(0.02)
    return {"cleared": rounds}


if __name__ == "__main__":
    sys.exit(main())
