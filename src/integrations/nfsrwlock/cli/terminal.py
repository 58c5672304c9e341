"""
The terminal: who is in its foreground.

A command in a process group of its own would be in the background: Ctrl-C would not reach it and reading would stop
it. So, like a shell, ``run`` hands it the terminal, and takes it back when it ends or is suspended. In a pipeline
(``nfsrwlock run … | less``) the neighbours need the terminal as well: there it is handed over only when the command
asks for it by reading from it.
"""

from __future__ import annotations

import os
import termios
from contextlib import suppress
from typing import Any


class Terminal:
    """
    The controlling terminal of this process, which must ignore SIGTTOU to change it, as it does with ``Signals``.

    Without a terminal, every method does nothing.
    """

    def __init__(self) -> None:
        self._descriptor = -1
        with suppress(OSError):
            self._descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        self._own_group = os.getpgrp()
        self._given_to: int | None = None
        self._modes: list[Any] | None = None

    @property
    def in_foreground(self) -> bool:
        """Whether the terminal belongs to this process's group."""
        return self._foreground() == self._own_group

    @property
    def given(self) -> bool:
        """Whether the command has the terminal from us."""
        return self._given_to is not None and self._foreground() == self._given_to

    def give(self, group: int) -> None:
        """Put the command's process group into the foreground, if it is ours to give."""
        if not self.in_foreground:
            return
        if self._modes is None:
            with suppress(termios.error):
                self._modes = termios.tcgetattr(self._descriptor)
        with suppress(OSError):
            os.tcsetpgrp(self._descriptor, group)
        self._given_to = group

    def take_back(self, status: int | None = None) -> bool:
        """
        Put our own group into the foreground again, unless the shell that started us has taken it already.

        :param status: with which the command has ended: then a group that it put there itself (it was a shell) does not
            count, and the modes from before are restored if it was killed and could not do it
        :returns: whether the command had it
        """
        was_given = self.given
        others = (None, self._own_group, os.getsid(0))
        if was_given or (status is not None and self._given_to is not None and self._foreground() not in others):
            with suppress(OSError):
                os.tcsetpgrp(self._descriptor, self._own_group)
            self._given_to = None
            if status is not None and os.WIFSIGNALED(status) and self._modes is not None:
                with suppress(termios.error):
                    termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._modes)
        return was_given

    def _foreground(self) -> int | None:
        try:
            return os.tcgetpgrp(self._descriptor)
        except OSError:
            return None
