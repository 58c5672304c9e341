"""Every error and warning that a user can meet stands on the page about them, with what to do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "troubleshooting.md"
#: What says or raises something; what a debug or info record says is no trouble.
SPEAKS = {"warning", "warn", "error", "exception", "say", "BadParameter"}
#: What these calls are given is help, a pattern or a debug record.
SILENT = {"option", "argument", "command", "add_argument", "debug", "info", "compile", "timing", "Counter", "Gauge"}
SILENT |= {"Option", "_Setting", "_setting", "ExampleQuery"}
#: A message is found by how it begins; the rest of a long one may differ.
BEGINS = 50
#: Strings of four words that are no messages to a user.
OTHER = re.compile(
    r"import json|self |job_rule |pattern |\W*Exit codes|%\(prog\)s|/proc|\^|.{0,3}mounted on|.*mounted on \("
    r"|distributed\.dashboard"
    r"|snakemake\.(executors|persistence|scheduling)|temp\(\), by|Querying |float \| str|Where the lock's arguments"
    r"|Give up after waiting|Hold (a shared|the exclusive) lock|Processes that race|The lease: after|Time between two"
    r"|Is it certain|Holds that were lost|released the lock on|acquiring the lock on|acquired the lock on"
    r"|gave up the lock on|evicted … from the lock in"
    r"|waiting for the lock on|held by a writer; readers|free, and never locked|nothing was removed|had left by"
    r"|the process that held the lock has died|…: nobody holds or waits|the event %r was not|\W*too narrow|…@… pid"
    r"|Clearing function cache|Computing func|in a thread there is nothing"
)


def text(node: ast.expr | None) -> str:
    """A message as the page shows it: `…` for what differs."""
    match node:
        case ast.Constant(value=str(value)):
            return re.sub(r"%[rsd]", "…", value)
        case ast.JoinedStr(values=values):
            return "".join(text(value) if isinstance(value, ast.Constant) else "…" for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text(left) + text(right)
        case ast.BinOp(left=left):
            return text(left)
        case ast.IfExp(body=body):
            return text(body)
    return "…"


def called(node: ast.AST) -> str:
    """The name of the function that *node* calls."""
    return ast.unparse(node.func).partition("[")[0].rpartition(".")[2] if isinstance(node, ast.Call) else ""


def strings(tree: ast.AST, parent: ast.AST | None = None) -> Iterator[str]:
    """All strings of *tree* but documentation, help and patterns, those of f-strings as one."""
    if called(tree) in SILENT or (isinstance(tree, ast.Expr) and isinstance(tree.value, ast.Constant)):
        return
    if isinstance(tree, (ast.JoinedStr, ast.BinOp)) or (isinstance(tree, ast.Constant) and isinstance(tree.value, str)):
        yield text(tree)
        return
    for child in ast.iter_child_nodes(tree):
        yield from strings(child, tree)


def messages() -> set[str]:
    """How each message of the sources begins."""
    found: set[str] = set()
    for path in (*(ROOT / "src").rglob("*.py"), *(ROOT / "packaging").rglob("snakemake_*/*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            raised = node.exc if isinstance(node, ast.Raise) else None
            call = raised if isinstance(raised, ast.Call) else node if called(node) in SPEAKS else None
            found.update(text(argument) for argument in call.args) if isinstance(call, ast.Call) else None
        if "doctor" not in path.parts:  # findings have a page of their own
            found.update(strings(tree))
    short = {re.sub(r"\s+", " ", message).strip("…: ;.,(") for message in found if not OTHER.match(message)}
    return {message[:BEGINS].strip() for message in short if len(re.findall(r"\b[a-z]+\b", message)) >= 4}


def shown() -> str:
    return re.sub(r"\s+", " ", PAGE.read_text().replace("\\|", "|"))


@pytest.mark.parametrize("message", sorted(messages()))
def test_a_message_stands_on_the_page_about_messages(message: str) -> None:
    assert message in shown(), f"{PAGE.relative_to(ROOT)} says nothing about: {message}"
