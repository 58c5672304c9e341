"""
What the engine asks of the operating system: the lock directory's files, processes, mounts, clocks, threads.

It knows nothing of locks. Errors of system calls leave it untranslated, unless they say that a path cannot hold a lock.
"""
