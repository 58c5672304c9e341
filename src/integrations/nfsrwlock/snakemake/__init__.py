"""
Locks for Snakemake: mark an input as shared-read or an output as exclusive, and each job holds the right locks.

What is promised: the process that runs a job holds the locks of its flagged files from before the old output is
touched until after the new one is published, on every executor, in any number of independent workflows. An exclusive
output appears by an atomic rename, so no reader that holds the lock sees a part of it, and a job that fails changes
nothing.

What is not: jobs without flags, and programs that take no lock, are not held back. Importing this module changes what
Snakemake does with flagged files only (:mod:`nfsrwlock.snakemake.hook`); where Snakemake is not built as that module
expects, the import raises, so that nothing ever runs unlocked.
"""

from __future__ import annotations

from nfsrwlock.snakemake.internals import check_snakemake

check_snakemake()  # before anything else is taken from it

from nfsrwlock.snakemake.cache import lock_cache  # noqa: E402
from nfsrwlock.snakemake.flags import exclusive, limited, shared_read  # noqa: E402
from nfsrwlock.snakemake.hook import install  # noqa: E402

__all__ = ["exclusive", "limited", "lock_cache", "shared_read"]

install()
