"""What an operator removes: the holders of a lock (``break``), and lock directories that nobody uses (``prune``)."""

from __future__ import annotations

import sys
from functools import partial

import click

from nfsrwlock.cli.options import LOCK_DIR, PATH, span
from nfsrwlock.cli.outcome import CliError, Exit
from nfsrwlock.cli.status import Look, below, each
from nfsrwlock.text import one_line, printable, say
from nfsrwlock_core import break_lock, prune


@click.command("break")
@click.argument("path", type=PATH)
@click.option("--token", metavar="T", help="Only the holder or waiter whose token is, or begins with, T (see status).")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also those whose process is alive on this host.")
@LOCK_DIR
def break_holders(path: str, token: str | None, yes: bool, force: bool, lock_dir: str | None) -> int:
    """
    Take the lock on PATH away from its holders.

    For an operator who knows that a holder is dead and does not want to wait for its lease to end. A holder that is
    alive after all finds out at its next heartbeat; until then it works on, side by side with its successor.
    """
    if token == "":
        raise CliError("an empty token names nobody: check the variable in --token")
    look = Look((path,), lock_dir)
    if not (states := look()):
        return look.code
    (state,) = states
    wanted = [peer for peer in (*state.holders, *state.waiters) if token is None or peer.token.startswith(token)]
    if token is not None and len(wanted) != 1:
        raise CliError(
            f"{path}: {len(wanted)} tokens begin with {token}; give the digits of one, see: nfsrwlock status PATH"
        )
    if not wanted:
        click.echo(f"{printable(path)}: nobody holds or waits for this lock, there is nothing to break")
        return Exit.OK
    if not force and (alive := [peer for peer in wanted if peer.alive]):
        raise CliError(
            f"refused: {alive[0].describe()} is alive on this host; end that process, or use --force if it must lose "
            "the lock"
        )
    for peer in wanted:
        click.echo(f"{printable(path)}: {one_line(peer.describe())} [token {printable(peer.token)}]")
    if not yes and not sys.stdin.isatty():
        raise CliError("refused: there is no terminal to ask for a confirmation at; use --yes if you are sure")
    question = "Is it certain that nobody uses the lock any more?"
    these = "this hold" if len(wanted) == 1 else f"these {len(wanted)}"
    if not yes and not click.confirm(f"{question} Remove {these}?", default=False):
        click.echo("nothing was removed")
        return Exit.FAILED
    for peer in wanted:
        removed = break_lock(path, token=peer.token, force=force, lock_dir=lock_dir)
        click.echo(f"{'removed' if removed else 'had left by itself'}: token {printable(peer.token)}")
    return Exit.OK


@click.command("prune")
@click.argument("directories", nargs=-1, type=PATH, metavar="DIR...", required=True)
@click.option(
    *("-u", "--unused-for"),
    "unused_s",
    type=span,
    default="30d",
    show_default=True,
    metavar="TIME",
    help="Keep the locks that were used in the latest TIME.",
)
def prune_below(directories: tuple[str, ...], unused_s: float) -> int:
    """
    Remove the directories of the locks below DIR... that nobody uses.

    Says of each that is kept why. Nobody who uses a lock meanwhile loses it, but the numbers of its grants begin
    anew, at 1. Symbolic links are not followed.
    """
    code, removed = int(Exit.OK), 0
    for path, reason in each(directories, below, partial(prune, unused_s=unused_s, lock_dir="")):
        if isinstance(reason, CliError):
            say(str(reason))
            code = max(code, reason.code)
        else:
            removed += reason is None
            click.echo(f"{printable(path)}: {'removed' if reason is None else f'kept, {reason}'}")
    click.echo(f"{removed} lock director{'y' if removed == 1 else 'ies'} removed")
    return code
