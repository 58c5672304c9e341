"""``nfsrwlock status``: who holds and who waits."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

import click

from nfsrwlock.cli.options import LOCK_DIR, PATHS
from nfsrwlock.cli.outcome import CliError, Exit, as_cli_error
from nfsrwlock.text import console, duration, one_line, printable, say
from nfsrwlock_core import LockError, LockPathError, LockState, PeerInfo, find_locks, inspect

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_REFRESH_SECONDS: Final = 1.0
_WIDTH_WITHOUT_TERMINAL: Final = 160
#: How much of a token is shown: enough to name one of a lock's participants.
_TOKEN_DIGITS: Final = 8


@click.command("status")
@PATHS
@LOCK_DIR
@click.option("-r", "--recursive", is_flag=True, help="Show the locks in use below PATH..., which are directories.")
@click.option("-a", "--all", "idle", is_flag=True, help="With -r, show also the locks that nobody uses.")
@click.option("--json", "form", flag_value="json", help="Print a JSON array with one object per lock.")
@click.option("--metrics", "form", flag_value="metrics", help="Print the counts in Prometheus's text format.")
@click.option("--watch", is_flag=True, help="Go on showing it until interrupted.")
def status(
    paths: tuple[str, ...], lock_dir: str | None, recursive: bool, idle: bool, form: str | None, watch: bool
) -> int:
    """
    Show who holds and who waits for the locks on PATH...

    Needs no lock and changes nothing. Ends with 0 if all locks could be looked at, held or not.
    """
    if watch and form == "metrics":
        raise CliError("--metrics prints once, so it cannot be used with --watch")
    if lock_dir and recursive:
        raise CliError("--recursive looks below PATH: give the directory of locks as PATH, not by --lock-dir")
    find = None if not recursive else find_locks if watch else below
    look = Look(paths, lock_dir, find, idle=idle, may_come=watch)
    to = console(_WIDTH_WITHOUT_TERMINAL) if form is None else None
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(look, to)
        return Exit.OK
    states = look()
    if form == "metrics":
        print(_metrics(states))
    else:
        _show(look, states, to, indent=2)
    return look.code


@dataclass
class Look:
    """
    Looks at all the locks; each look builds on the one before, by which it can tell holders from waiters better.

    :param find: finds the locks below each of the paths; ``None``: the paths are those of the locks
    :param idle: whether to return also those of the locks found that nobody holds or waits for
    :param may_come: whether a path that does not exist may come yet; otherwise it is more often a typing error
    """

    paths: Sequence[str]
    lock_dir: str | None
    find: Callable[[str], Iterable[str]] | None = None
    idle: bool = False
    may_come: bool = False
    #: What the latest look has found, by path: the lock's state, or what kept it from that.
    found: dict[str, LockState | CliError] = field(default_factory=dict)

    @property
    def errors(self) -> list[CliError]:
        """What has kept the latest look from what it did not find."""
        return [found for found in self.found.values() if isinstance(found, CliError)]

    @property
    def code(self) -> int:
        """The exit code for it."""
        return max((error.code for error in self.errors), default=Exit.OK)

    def __call__(self, *, aloud: bool = True) -> list[LockState]:
        """Return the states of those locks that could be looked at; ``aloud``: say what has newly gone wrong."""
        former, self.found = self.found, {}
        find = self.find or (lambda path: [path])
        for path, found in each(dict.fromkeys(self.paths), find, lambda path: self._inspect(path, former.get(path))):
            if isinstance(found, LockState | CliError):
                self.found[path] = found
            if aloud and isinstance(found, CliError) and str(former.get(path)) != str(found):
                say(str(found))
        states = [found for found in self.found.values() if isinstance(found, LockState)]
        if self.find:  # the longest wait first
            states.sort(key=lambda state: min((peer.since or math.inf for peer in state.waiters), default=math.inf))
        return states

    def _inspect(self, path: str, known: LockState | CliError | None) -> LockState | None:
        lock_dir = "" if self.find else self.lock_dir
        state = inspect(path, lock_dir=lock_dir, previous=known if isinstance(known, LockState) else None)
        if not (state.exists or self.find or self.may_come or os.path.lexists(path)):
            raise LockPathError(path, "does not exist, and nobody has ever locked it", "correct the path")
        # One that was found and does not exist has been removed since.
        matters = not self.find or state.holders or state.waiters or (self.idle and state.exists)
        return state if matters else None


def each(
    tops: Iterable[str], find: Callable[[str], Iterable[str]], do: Callable[[str], object]
) -> Iterator[tuple[str, object]]:
    """Do something with each path that ``find`` finds; one with which it fails keeps none of the others from it."""
    for top in tops:
        try:
            for path in find(top):
                try:
                    done = do(path)
                except (LockError, OSError) as error:
                    done = as_cli_error(error)
                yield path, done
        except (LockError, OSError) as error:
            yield top, as_cli_error(error)


def below(directory: str) -> list[str]:
    """Return the paths with a lock below ``directory``; on a terminal, show meanwhile that the search goes on."""
    from rich.progress import track  # noqa: PLC0415

    to = console(stderr=True)
    return [*track(find_locks(directory), "looking for locks", console=to, transient=True, disable=not to.is_terminal)]


def _show(look: Look, states: Sequence[LockState], to: Console | None, indent: int | None = None) -> None:
    """Print what a look has found, one object per lock for programs if there is no console ``to`` print it to."""
    if to is None:
        # Plain ASCII: a byte of a path that is no UTF-8 appears as the escape of the lone surrogate that stands for it
        # in Python.
        objects = [
            {"lock_file": path, "error": str(found)} if isinstance(found, CliError) else found.to_dict()
            for path, found in look.found.items()
        ]
        print(json.dumps(objects, indent=indent))
    else:
        to.print(_view(look, states, to.width))


def _metrics(states: Sequence[LockState]) -> str:
    """Return Prometheus's text format."""
    lines = []
    for kind in ("holders", "waiters"):
        lines.append(f"# TYPE nfsrwlock_{kind} gauge")
        for state in states:
            path = json.dumps(printable(state.lock_file), ensure_ascii=False)
            for mode in ("read", "write"):
                count = sum(peer.mode == mode for peer in getattr(state, kind))
                lines.append(f'nfsrwlock_{kind}{{path={path},mode="{mode}"}} {count}')
    return "\n".join(lines)


def _watch(look: Look, to: Console | None) -> NoReturn:
    """On a terminal one view that is kept up to date; elsewhere a report whenever something has changed."""
    live = None
    if to is not None and to.is_terminal:
        from rich.live import Live  # noqa: PLC0415

        live = Live(console=to, auto_refresh=False)
    shown: object = None
    with live or contextlib.nullcontext():
        while True:
            began = time.monotonic()
            states = look(aloud=live is None)
            errors = [str(error) for error in look.errors]
            if live is not None:
                live.update(_view(look, states, live.console.width, errors), refresh=True)
            elif (facts := [[_facts(state) for state in states], errors]) != shown:
                shown = facts
                if to is not None:
                    to.print(time.strftime("%Y-%m-%d %H:%M:%S"))
                _show(look, states, to)
                sys.stdout.flush()
            time.sleep(max(_REFRESH_SECONDS, time.monotonic() - began))


def _facts(state: LockState) -> object:
    """What of a state changes by an event, not by the mere passing of time."""
    return (
        state.lock_path,
        state.generation,
        [(peer.name, peer.state, peer.alive) for peer in (*state.holders, *state.waiters)],
    )


def _view(look: Look, states: Sequence[LockState], width: int, errors: Sequence[str] = ()) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    hosts = Counter(printable(peer.host or "unknown") for state in states for peer in state.holders)
    by_host = ", ".join(f"{host} {count}" for host, count in hosts.most_common()) or "none"
    below = [Text(f"holders by host: {by_host}", style="dim")] if look.find else []
    red = (Text(one_line(message), style="red") for message in errors)
    return Group(*(part for state in states for part in _report(state, width)), *below, *red)


def _report(state: LockState, width: int) -> Iterator[RenderableType]:
    from rich.text import Text  # noqa: PLC0415

    headline = Text(printable(state.lock_file), style="bold").append(f": {_summary(state)}", style="not bold")
    if os.path.basename(state.lock_path) != f"{os.path.basename(state.lock_file.rstrip('/'))}.rwlock":
        headline.append(f", kept in {printable(state.lock_path)}", style="not bold")
    yield headline
    if peers := (*state.holders, *state.waiters):
        yield from _table(peers, width)


def _summary(state: LockState) -> str:
    if not state.exists:
        return "free, and never locked so far"
    generation = f"generation {state.generation}"
    if not state.holders and not state.waiters:
        return f"free ({generation})"
    kinds = {peer.mode for peer in state.holders}
    count = len(state.holders)
    if kinds == {"read"}:
        text = f"shared by {count} reader{'s' if count > 1 else ''}"
        if limits := [peer.at_most for peer in state.holders if peer.at_most]:
            text += f", {len(limits)} of {limits[0]} permits"
    elif kinds == {"write"}:
        text = "held by a writer; readers that wait are not listed"
    else:
        text = "held"
    if state.waiters:
        text += f"; {len(state.waiters)} wait" + ("s" if len(state.waiters) == 1 else "")
    return f"{text} ({generation})"


def _table(peers: Sequence[PeerInfo], width: int) -> Iterator[RenderableType]:
    # Nothing in it can steer the terminal, whatever the participants' names say.
    from rich.cells import cell_len  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    columns = {heading: [one_line(content(peer)) for peer in peers] for heading, content in _COLUMNS.items()}
    needs = {heading: max(map(cell_len, (heading, *cells))) + 2 for heading, cells in columns.items() if any(cells)}
    if _LAST in needs:
        needs[_LAST] = min(needs[_LAST], _LAST_AT_LEAST)
    left_out = []
    for heading in _LEAST_FIRST:
        if heading in needs and sum(needs.values()) > width:
            left_out.append(heading)
            del needs[heading]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in needs:
        table.add_column(heading, no_wrap=heading != _LAST)
    for peer, *row in zip(peers, *(columns[heading] for heading in needs), strict=True):
        cells = [Text(cell, no_wrap=True, overflow="ellipsis") for cell in row]
        cells[0].stylize(_style(peer))
        table.add_row(*cells)
    yield table
    if left_out:
        yield Text(f"(too narrow for: {', '.join(reversed(left_out))}; --json has all)", style="dim")


def _style(peer: PeerInfo) -> str:
    if peer.alive is False or not peer.understood:
        return "red"
    if peer.state == "waiting":
        return ""
    return "yellow" if peer.mode == "write" else "green"


def _what(peer: PeerInfo) -> str:
    if not peer.understood:
        return f"counts as held: {peer.name[:80]}"
    job = f"job {peer.job}: " if peer.job else ""
    return job + (peer.command or "")


def _does(peer: PeerInfo) -> str:
    verb = {"read": "read", "write": "write", "unknown": "hold"}[peer.mode]
    return f"{verb}s" if peer.state == "holding" else f"waits to {verb}"


_COLUMNS: Final[dict[str, Callable[[PeerInfo], str]]] = {
    "": _does,
    "who": lambda peer: f"{peer.user}@{peer.host}" if peer.understood else "unknown format",
    "pid": lambda peer: "" if peer.pid is None else f"{peer.pid}{' (dead)' if peer.alive is False else ''}",
    "since": PeerInfo.began,
    "silent": lambda peer: duration(round(peer.silent_for)),
    "evictable": lambda peer: "now" if peer.evictable_in <= 0 else f"in {duration(round(peer.evictable_in))}",
    "token": lambda peer: peer.token[:_TOKEN_DIGITS],
    "what": _what,
}
#: What is left out of a narrow table first.
_LEAST_FIRST: Final = ("token", "evictable", "silent", "what", "since", "pid")
#: The last column is cut where there is no room for all of it, but not to less than so many characters.
_LAST: Final = "what"
_LAST_AT_LEAST: Final = 20
