"""
Prods a disk: a small read past the cache, ten times a second, for ever. Only the standard library.

User-Mode Linux loses an interrupt of its disk now and then. Whoever waits for that answer, and all who want what it has
locked, then waits until something else is asked of the disk: seconds on a quiet server, which would look as if a lock
were recovered late. Each read has a thread of its own, because it may be the one whose answer is lost.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
import time

BLOCK = 4096


def prod(fd: int) -> None:
    with mmap.mmap(-1, BLOCK) as aligned, contextlib.suppress(OSError):
        os.preadv(fd, [aligned], 0)


def main() -> None:
    fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
    while True:
        threading.Thread(target=prod, args=(fd,), daemon=True).start()
        time.sleep(0.1)


if __name__ == "__main__":
    main()
