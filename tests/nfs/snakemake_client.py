"""
How Snakemake is run on the lab's clients; imported there.

A guest is slow and has little memory, so one process imports Snakemake, with what it would import later, and each
workflow is a fork of that.
"""

from __future__ import annotations

import gc
import os
import textwrap

import dpath  # noqa: F401
import pulp  # noqa: F401
import smart_open  # noqa: F401
import snakemake.cli
import snakemake.profiles
import snakemake.report.html_reporter
import snakemake.storage

#: At the head of each Snakefile.
_HEAD = "from nfsrwlock.snakemake import exclusive, lock_cache, shared_read\n"
gc.freeze()  # a collection in a child would touch, and so copy, all that is shared


def start(directory: str, snakefile: str, *arguments: str, **environment: str) -> int:
    """Run a workflow in a process of its own and return its number; its log is /tmp/<name of the directory>.log."""
    os.makedirs(directory)
    with open(f"{directory}/Snakefile", "w", encoding="utf-8") as file:
        file.write(_HEAD + textwrap.dedent(snakefile))
    # Not on NFS, where what is written would be seen when the file is closed.
    log = os.open(f"/tmp/{os.path.basename(directory)}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    if (pid := os.fork()) != 0:
        os.close(log)
        return pid
    code = 1
    try:
        os.chdir(directory)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(environment, XDG_CACHE_HOME="/tmp/xdg")
        snakemake.cli.main(["--nocolor", "--cores", "2", *arguments])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def end(pid: int) -> int:
    """Wait for the end of a workflow and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


__all__ = ["end", "start"]
