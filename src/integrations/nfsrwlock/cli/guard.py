"""
The guard: waits until the keeper holds the locks, then lets nothing work under them but while the hold is certain.

What is guarded is the command of ``run``, or the process that ``hold`` was asked to hold the locks for.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from nfsrwlock.cli.keeper import GIVE_BACK, Hold, Keeper
from nfsrwlock.cli.outcome import CliError, Exit, Interrupted
from nfsrwlock.cli.signals import Signals, take_default_action
from nfsrwlock.cli.waiting import FRAME_SECONDS, ODD_SECONDS, Progress
from nfsrwlock.leash import Leash, now
from nfsrwlock.processes import Entry
from nfsrwlock.text import say
from nfsrwlock_core import HoldStatus

#: The engine answers within a few seconds after its time-out, whatever the file server does.
_ANSWER_SECONDS: Final = 6.0


def wait_until_held(keeper: Keeper, signals: Signals) -> Hold:
    """
    Return when the locks are held; meanwhile show whom they wait for.

    The engine keeps the time-out; if no word of it comes, some call hangs that it could not foresee, such as the look
    at a path's directory.

    :raises CliError: they could not be had
    :raises Interrupted: a signal came first
    """
    request = keeper.request
    progress = Progress()
    awake = time.monotonic()
    until = awake + request.settings["timeout"] + _ANSWER_SECONDS
    try:
        while True:
            looked = time.monotonic()
            for signum in signals.wait(FRAME_SECONDS, keeper.channel):
                if signum == signal.SIGTSTP:
                    # A job that its user has suspended must not be given the lock behind their back.
                    os.kill(keeper.pid, signal.SIGSTOP)
                    take_default_action(signal.SIGTSTP, everyone=False)
                    os.kill(keeper.pid, signal.SIGCONT)
                elif signum != signal.SIGCONT:
                    keeper.cancel()
                    raise Interrupted(signum)
                awake = time.monotonic()  # stopped until now, perhaps together with the keeper: let that speak first
            for message in keeper.channel.receive():
                match message:
                    case str() if keeper.program is None:
                        keeper.program = message
                    case str():
                        progress.wish = message
                    case CliError():
                        raise message
                    case signal.Signals() if message != GIVE_BACK:
                        keeper.cancel()
                        raise Interrupted(message)
                    case Hold() if message.at(now()) is HoldStatus.HELD:
                        progress.acquired(always=request.verbose)
                        return message
                    case Hold(HoldStatus.LOST, _, reason):  # all stood still for longer than the lease
                        keeper.cancel()
                        raise CliError(f"{reason}; the command was not started, run it again", Exit.LOST)
            if keeper.channel.closed:
                raise CliError("the process that waited for the lock was killed; run the command again", Exit.FAILED)
            if looked - awake > ODD_SECONDS and not progress.wish:
                doing = f"to {'write' if request.write else 'read'} {request.paths[0]}"
                progress.wish = f"{doing}: the file system answers nothing so far"
            if looked > max(until, awake + _ANSWER_SECONDS):
                keeper.cancel()
                raise CliError(
                    f"the lock on {request.paths[0]!r} could not be acquired in time: the file system has not "
                    f"answered for {looked - awake:.0f} s; find out whether its server is up",
                    request.conflict_code,
                )
            progress.frame()
    except BaseException:
        keeper.channel.close()
        raise
    finally:
        progress.close()


class Guard:
    """
    Watches a hold, and keeps what is guarded from working without it.

    :param what: what to call that in messages: "the command", "process 4711"
    """

    def __init__(self, keeper: Keeper, hold: Hold, signals: Signals, what: str) -> None:
        self.keeper = keeper
        self.hold = hold
        self.signals = signals
        #: Whether somebody has asked for the end of the hold.
        self.gives_back = False
        self.leash = Leash(self.everyone, what, self.say, keeper.request.on_expiry)

    def has_ended(self) -> bool:
        """Whether what is guarded has ended. Asked again and again."""
        raise NotImplementedError

    def everyone(self) -> list[Entry]:
        """Return all processes that are guarded."""
        raise NotImplementedError

    def on_signal(self, signum: int) -> None:
        """Be told of a signal to this process, or to the keeper: both mean what is guarded."""
        raise NotImplementedError

    def say(self, line: str) -> None:
        """Tell the user what the leash has done."""
        say(line)

    def until_it_ends(self) -> None:
        """Guard it."""
        while not self.has_ended():
            for signum in self.signals.wait(self.keeper.request.tick, self.keeper.channel):
                self.on_signal(signum)
            self.look()

    def look(self) -> None:
        """Hear what the keeper says of the hold, and act on it."""
        for message in self.keeper.channel.receive():
            match message:
                case Hold():
                    self.hold = message
                case signal.Signals() if message == GIVE_BACK:
                    self.gives_back = True
                case signal.Signals():
                    self.on_signal(message)
                case CliError():
                    self.hold = Hold(HoldStatus.LOST, 0.0, str(message))
        if self.keeper.channel.closed and self.hold.status is not HoldStatus.LOST:
            self.hold = Hold(HoldStatus.LOST, 0.0, "the lock was lost: the process that held it has died")
        self.leash.apply(self.hold.at(now()), self.hold.reason)

    def release(self, deed: str) -> bool:
        """
        Have the locks released; return whether all was done under them.

        :param deed: what was done, for the message if not: "the command did"
        """
        lost = self.keeper.finish()
        if lost is None:
            say("the file server does not answer; the lock will be released when it does")
        elif lost and not self.leash.killed:
            say(f"{lost}; what {deed} was not guarded to its end")
            if not self.has_ended():
                self.leash.apply(HoldStatus.LOST, "it goes on, and the lock was lost")
        self.keeper.channel.close()
        return not self.leash.killed and not lost
