"""What building adds: manual pages, from the definition of the command line, and a README whose links work on PyPI."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface


class Readme(MetadataHookInterface):
    """Hatchling finds it by its base class."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the long description of the package."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = with_absolute_links(text, metadata["urls"]["Source"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def with_absolute_links(text: str, source: str) -> str:
    """Return the Markdown ``text`` with each relative link, and each picture, led to the repository at ``source``."""
    raw = source.replace("://github.com/", "://raw.githubusercontent.com/")

    def absolute(match: re.Match[str]) -> str:
        picture, label, target = match.groups()
        return f"{picture}[{label}]({raw + '/main' if picture else source + '/blob/main'}/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)", absolute, text)


class ManualPages(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling finds it by its base class."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the pages to a wheel that is for installation; one that only points to this directory has none."""
        if version == "editable":
            return
        root = Path(self.root)
        sys.path[:0] = [str(root / "src"), str(root / "src/integrations")]
        directory = root / "build" / "man"
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in pages().items():
            (directory / name).write_text(text, encoding="utf-8")
            build_data["shared_data"][str(directory / name)] = f"share/man/man1/{name}"


def pages() -> dict[str, str]:
    """Return the manual pages by the names of their files: one for the program and one for each command."""
    import click  # noqa: PLC0415 - it is there where the pages are made

    from nfsrwlock.cli.app import cli  # noqa: PLC0415

    main = click.Context(cli, info_name="nfsrwlock", **cli.context_settings)
    found = {"nfsrwlock.1": _page(main, cli.commands)}
    for name, command in cli.commands.items():
        found[f"nfsrwlock-{name}.1"] = _page(click.Context(command, info_name=name, parent=main), {})
    return found


def _page(context: Any, commands: dict[str, Any]) -> str:
    import click  # noqa: PLC0415

    import nfsrwlock  # noqa: PLC0415

    name = context.command_path.replace(" ", "-")
    usage = " ".join(context.command.collect_usage_pieces(context))
    lines = [
        f'.TH "{name.upper()}" "1" "" "nfsrwlock {nfsrwlock.__version__}" "nfsrwlock"',
        *(".SH NAME", f"{name} \\- {_roff(context.command.get_short_help_str(200))}"),
        *(".SH SYNOPSIS", rf"\fB{_roff(context.command_path)}\fR {_roff(usage)}"),
        *(".SH DESCRIPTION", *_paragraphs(context.command.help or "")),
        ".SH OPTIONS",
    ]
    if commands:
        lines[-1:] = [".SH COMMANDS"]
        for command in commands.values():
            lines += [".TP", rf"\fB{command.name}\fR", _roff(command.get_short_help_str(200))]
        lines.append(".SH OPTIONS")
    for parameter in context.command.get_params(context):
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)) is not None:
            lines += [".TP", rf"\fB{_roff(record[0])}\fR", _roff(record[1])]
    if context.command.epilog:
        title, *codes = context.command.epilog.replace("\b", "").strip().splitlines()
        lines += [f".SH {_roff(title.rstrip(':').upper())}", ".nf", *map(_roff, codes), ".fi"]
    others = [f"nfsrwlock-{command}" for command in sorted(commands)] or ["nfsrwlock"]
    return "\n".join([*lines, ".SH SEE ALSO", ", ".join(rf"\fB{_roff(other)}\fR(1)" for other in others)]) + "\n"


def _paragraphs(text: str) -> list[str]:
    parts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    return [line for part in parts if part for line in (".PP", _roff(part))]


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)
