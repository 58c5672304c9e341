"""Signals as events: the guard sleeps until one or a message arrives, or until its next look at the hold."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, Self

from nfsrwlock.cli.channel import Channel
from nfsrwlock.processes import readable

TERMINATING: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
FORWARDED: Final = (*sorted(TERMINATING), signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP, signal.SIGCONT)


class Signals:
    """
    Catches signals from ``with`` on and hands them out one by one. For the main thread.

    A signal that was ignored when the program began (``nohup``, a job in the background of a script) stays ignored,
    here and in the command.
    """

    def __init__(self, caught: Iterable[int]) -> None:
        self._caught = {*caught}
        self._former: dict[int, Any] = {}
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def __enter__(self) -> Self:
        self._former_descriptor = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for signum in self._caught:
            if signal.getsignal(signum) != signal.SIG_IGN:
                self._former[signum] = signal.signal(signum, _noted)
        # The one that must work even where it was ignored: without it nobody learns that the command has ended.
        self._former[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _noted)
        # A message must not stop this process while the terminal belongs to the command.
        self._former[signal.SIGTTOU] = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._former.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._former_descriptor)
        self._reader.close()
        self._writer.close()

    def wait(self, seconds: float, channel: Channel | None = None) -> list[int]:
        """
        Sleep until a signal or a message arrives, or a child ends or stops, for at most so long.

        :returns: the signals as they arrived, without SIGCHLD
        """
        other = None if channel is None or channel.closed else channel.fileno()
        readable(self._reader.fileno(), other, seconds=seconds)
        with suppress(BlockingIOError):
            return [signum for signum in self._reader.recv(4096) if signum != signal.SIGCHLD]
        return []

    def for_the_command(self) -> None:
        """In a forked child that is to become the command: give signals back the dispositions we were started with."""
        signal.set_wakeup_fd(-1)
        for signum, former in self._former.items():
            if former != signal.SIG_IGN or signum == signal.SIGCHLD:
                signal.signal(signum, signal.SIG_DFL)
        for signum in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these two for itself
            signal.signal(signum, signal.SIG_DFL)


def take_default_action(signum: int, everyone: bool) -> bool:
    """
    Stop or end this process as the signal ``signum`` does by default, so that a shell sees it; return when continued.

    :param everyone: all of this process's group, as the terminal does it: the script or pipeline this process is a
        part of
    :returns: False if the kernel did not stop it, because nobody is there who could continue it (an orphaned process
        group)
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCONT})
    former = signal.signal(signum, signal.SIG_DFL)
    try:
        os.kill(0 if everyone else os.getpid(), signum)
        if continued := signal.SIGCONT in signal.sigpending():
            signal.sigwait({signal.SIGCONT})
        return continued
    finally:
        signal.signal(signum, former)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _noted(_signum: int, _frame: object) -> None:
    """Nothing to do: the interpreter has written the number where :meth:`Signals.wait` reads it."""
