"""A piece of a campaign as a picture: who held what, and what was done to whom. One SVG file without dependencies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.sax.saxutils import escape

from .history import Fault, Hold, Violation

_WIDTH, _LEFT, _ROW, _TOP = 1200, 90, 22, 70
_COLOURS = ("#3b7dd8", "#7a4fd0", "#16813f", "#0f8a8a")


def draw(
    holds: Iterable[Hold],
    faults: Iterable[Fault],
    violations: Iterable[Violation],
    *,
    begin: float,
    end: float,
    title: str,
) -> str:
    """
    The text of an SVG file.

    :param begin: of what is shown, on the host's clock, s
    :param end: of what is shown
    """
    shown = [hold for hold in holds if hold.granted < end and _end_of(hold) > begin]
    rows = sorted({hold.who for hold in shown})
    height = _TOP + _ROW * len(rows) + 50
    bottom = _TOP + _ROW * len(rows)

    def x(at: float) -> float:
        return _LEFT + (min(max(at, begin), end) - begin) / (end - begin) * (_WIDTH - _LEFT - 20)

    def parts() -> Iterator[str]:
        size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
        yield f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, sans-serif" font-size="12">'
        yield f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>'
        yield _text(20, 26, title, size=16)
        yield _text(20, 46, "Wide: exclusive, narrow: shared; a colour for each lock. Grey: a fault.")
        for number, who in enumerate(rows):
            yield _text(_LEFT - 8, _TOP + _ROW * number + 15, who, anchor="end")
        for fault in faults:
            if fault.began < end and fault.ended > begin:
                yield from _fault(fault)
        for hold in shown:
            y = _TOP + _ROW * rows.index(hold.who)
            thick = 16 if hold.mode == "write" else 7
            colour = _COLOURS[hold.lock % len(_COLOURS)]
            yield _rect(x(hold.granted), y + (_ROW - thick) / 2, x(_end_of(hold)), thick, colour, _words(hold))
        for violation in violations:
            if begin <= violation.at <= end:
                at = x(violation.at)
                yield _line(at, _TOP - 8, bottom, "#cf2338")
                yield _text(at + 4, _TOP - 10, violation.what, colour="#cf2338")
        step = next((step for step in (1, 2, 5, 10, 20, 60, 300, 600) if (end - begin) / step <= 20), 3600)
        for second in range(0, int(end - begin) + 1, step):
            at = x(begin + second)
            yield _line(at, _TOP, bottom + 4, "#d9e0e8")
            yield _text(at, bottom + 20, f"{second} s", anchor="middle")
        yield "</svg>"

    def _fault(fault: Fault) -> Iterator[str]:
        for number, who in enumerate(rows):
            if fault.target in ("srv", who, who.split(".", 1)[0]):
                words = f"{fault.kind} of {fault.target}, {fault.ended - fault.began:.1f} s"
                yield _rect(x(fault.began), _TOP + _ROW * number + 1, x(fault.ended), _ROW - 2, "#c9ced6", words)

    return "\n".join(parts()) + "\n"


def _end_of(hold: Hold) -> float:
    return hold.end if hold.end < float("inf") else hold.until


def _words(hold: Hold) -> str:
    number = "" if hold.generation is None else f", number {hold.generation}"
    seconds = _end_of(hold) - hold.granted
    return f"{hold.who}: {hold.mode} of lock {hold.lock}{number}, {seconds:.2f} s, {hold.ending or 'open'}"


def _line(x: float, y: float, to: float, colour: str) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{to:.1f}" stroke="{colour}"/>'


def _rect(x: float, y: float, to: float, height: float, colour: str, words: str) -> str:
    shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(to - x, 1):.1f}" height="{height:.1f}" fill="{colour}"'
    return f"{shape}><title>{escape(words)}</title></rect>"


def _text(x: float, y: float, words: str, *, size: int = 12, anchor: str = "start", colour: str = "#1f2933") -> str:
    style = f'font-size="{size}" text-anchor="{anchor}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'
