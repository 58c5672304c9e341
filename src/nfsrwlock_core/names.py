"""
The names of the entries of a lock directory: how they are built and how they are read.

Everything a peer must know to decide is in a name, so that one listing is the whole state of a lock. Parsing is total
and bounded: any string, however hostile, gives an entry or ``None``, never an error. A name that has the shape of an
announcement but is not understood (a newer format, damage, an attack) gives an :class:`Announcement` whose
``understood`` is false; the protocol counts it as a holder in conflict with everybody.

Nothing here touches a file system.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

TOKEN_HEX_DIGITS: Final = 32
#: NAME_MAX of every file system this is for; longer strings cannot be entries and are not looked at.
NAME_MAX_BYTES: Final = 255
#: The longest lease that a name may state, about 115 days. It bounds what a damaged name can make its peers wait for.
LEASE_MAX_MS: Final = 10**10 - 1
#: The shortest lease that a lock can have: no file system answers so surely that a shorter one could be kept.
LEASE_MIN_S: Final = 0.1
#: What peers grant to an announcement that states no lease they can read.
DEFAULT_LEASE_MS: Final = 90_000
_HOST_MAX_CHARS: Final = 64
_LARGEST_PRIME_OF_64_BITS: Final = 2**64 - 59


class Mode(StrEnum):
    """How a lock is asked for."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Identity:
    """
    Who announces: enough for a peer on the same kernel to see whether the process lives, and for people to find it.

    :param pid: process id, in the process's own pid namespace
    :param start: start time of the process in clock ticks since boot; with ``pid`` it names one process for ever
    :param kernel: fingerprint (hex) of machine, boot and pid namespace; ``"0"`` where the system does not tell
    :param uid: numeric user id, for people
    :param host: host name, for people and as a second condition beside ``kernel``
    """

    pid: int
    start: int
    kernel: str
    uid: int
    host: str


class Announcement(NamedTuple):
    """
    One participant, as its entry's name states it.

    There may be 100,000 of them in a listing, so what is not needed of each is read from the name when it is asked for;
    and waiters ask for the same few again and again, so what was read latest is kept.

    :param understood: whether this version can read the name
    """

    name: str
    understood: bool = True

    @property
    def mode(self) -> Mode:
        """How the lock was asked for."""
        return Mode.WRITE if self.name.startswith("write.") else Mode.READ

    @property
    def token(self) -> str:
        """What names this attempt and no other."""
        return _stated(self.name).token if self.understood else _stand_in_token(self.name)

    @property
    def ticket(self) -> int:
        """When the first attempt of who stands in line began; 0 for other readers, and if that cannot be read."""
        return _stated(self.name).ticket if self.understood else 0

    @property
    def at_most(self) -> int:
        """How many may hold at a time by what this one says: 1 for a writer, 0 for a reader that sets no limit."""
        return _stated(self.name).at_most if self.understood else 1

    @property
    def lease_ms(self) -> int:
        """For how long peers wait in silence before they evict it."""
        return _stated(self.name).lease_ms if self.understood else DEFAULT_LEASE_MS

    @property
    def who(self) -> Identity | None:
        """The process behind it, ``None`` if that cannot be read."""
        return _stated(self.name).who if self.understood else None

    @property
    def since_ms(self) -> int:
        """When the attempt began by its own clock, for people; 0 if that cannot be read."""
        return _stated(self.name).since_ms if self.understood else 0

    @property
    def is_writer(self) -> bool:
        """Whether readers must give way: also true of what is not understood."""
        return not self.understood or self.name.startswith("write.")

    @property
    def rank(self) -> tuple[int, str]:
        """Order in line; the smaller goes first."""
        return self.ticket, self.token


class _Stated(NamedTuple):
    at_most: int
    ticket: int
    token: str
    lease_ms: int
    who: Identity
    since_ms: int


@lru_cache(maxsize=4096)
def _stated(name: str) -> _Stated:
    # What a name says that is understood.
    head = _HEAD.match(name)
    assert head is not None
    at_most, ticket = head["at_most"] or "01"[name.startswith("write.")], head["ticket"] or "0"
    token, lease_ms, pid, start, kernel, uid, since_ms, host = name[head.end() :].split(".", 7)
    who = Identity(pid=int(pid), start=int(start), kernel=kernel, uid=int(uid), host=_decode_host(host))
    return _Stated(int(at_most), int(ticket, 16), token, int(lease_ms), who, int(since_ms))


@dataclass(frozen=True, slots=True)
class Note:
    """What a caller that gave up left behind: ``token`` showed ``beat`` all through ``watched_ms``."""

    name: str
    token: str
    beat: int | None
    watched_ms: int


@dataclass(frozen=True, slots=True)
class Listing:
    """One listing of a lock directory, sorted into its kinds."""

    announcements: dict[str, Announcement]
    generations: tuple[int, ...]
    notes: tuple[Note, ...]
    gone: tuple[str, ...]

    @property
    def highest_generation(self) -> int:
        """The number of the latest grant that this listing shows, 0 if none."""
        return max(self.generations, default=0)


def announcement_name(
    mode: Mode, *, token: str, ticket: int, lease_ms: int, who: Identity, since_ms: int, at_most: int = 0
) -> str:
    """Return the name (of 255 bytes at most) under which a participant announces itself; ``at_most=0``: no limit."""
    limit = f".at{at_most}" if at_most and mode is Mode.READ else ""
    place = f".{ticket:016x}" if limit or mode is Mode.WRITE else ""
    head = f"{mode}{limit}{place}.{token}"
    return f"{head}.{lease_ms}.{who.pid}.{who.start}.{who.kernel}.{who.uid}.{since_ms}.{_encode_host(who.host)}"


def generation_name(number: int) -> str:
    """Return the name of the entry that numbers a write grant."""
    return f"gen.{number}"


def note_name(token: str, beat: int | None, watched_ms: int) -> str:
    """Return the name of a note: ``token`` still showed ``beat`` after ``watched_ms`` of watching."""
    return f"seen.{token}.{'new' if beat is None else beat}.{watched_ms}"


def gone_name(token: str) -> str:
    """Return the name for what has ended but cannot be removed yet, and for private probes. Anyone may remove it."""
    return f"gone.{token}"


def beat_name(beat: int) -> str:
    """Return the name of the ``beat``-th heartbeat inside an announcement."""
    return f"beat.{beat}"


def token_in(name: str) -> str:
    """Return the token in an announcement's name of our own making, "" for no name."""
    head = _HEAD.match(name)
    return name[head.end() :].partition(".")[0] if head is not None else ""


_DEC = r"(?:0|[1-9][0-9]{0,18})"
_COUNT = r"(?:0|[1-9][0-9]{0,15})"
#: The highest limit of readers.
AT_MOST_MAX: Final = 10**6 - 1
#: The highest number that a generation or a beat can have.
COUNT_MAX: Final = 10**16 - 1
# Token, lease, process, its start, kernel, user, time of the announcement, host.
_FIELDS = (
    rf"[0-9a-f]{{{TOKEN_HEX_DIGITS}}}\.[1-9][0-9]{{0,9}}\.{_DEC}\.{_DEC}"
    rf"\.[0-9a-f]{{1,16}}\.{_DEC}\.{_DEC}\.(?:[A-Za-z0-9._-]++|%[0-9A-F]{{2}})*+"
)
_HEAD: Final = re.compile(
    r"(?:(?:write|read\.at(?P<at_most>[1-9][0-9]{0,5}))\.(?P<ticket>[0-9a-f]{16})|read)\.", re.ASCII
)
_UNDERSTOOD: Final = re.compile(rf"{_HEAD.pattern}{_FIELDS}", re.ASCII).fullmatch
_GENERATION: Final = re.compile(rf"gen\.(?P<number>{_COUNT})", re.ASCII)
_NOTE: Final = re.compile(
    rf"seen\.(?P<token>[0-9a-f]{{{TOKEN_HEX_DIGITS}}}|[0-9a-f]{{16}}x)\.(?P<beat>new|{_DEC})\.(?P<ms>{_DEC})", re.ASCII
)
_GONE: Final = re.compile(r"gone\.[0-9a-f]{1,64}", re.ASCII)
_BEAT: Final = re.compile(rf"beat\.(?P<beat>{_COUNT})", re.ASCII)


@lru_cache(maxsize=4096)
def parse_announcement(name: str) -> Announcement | None:
    """Read an announcement's name; ``None`` for a name of another shape. Never raises."""
    if len(name) > NAME_MAX_BYTES or not name.startswith(("read.", "write.")):
        return None
    return Announcement(name, _UNDERSTOOD(name) is not None)


def parse_listing(names: list[str]) -> Listing:
    """Sort the names of one listing into their kinds. Names that are not ours are left out. Never raises."""
    announcements: dict[str, Announcement] = {}
    generations: list[int] = []
    notes: list[Note] = []
    gone: list[str] = []
    for name in names:
        if (announcement := parse_announcement(name)) is not None:
            announcements[name] = announcement
        elif len(name) > NAME_MAX_BYTES:
            continue
        elif match := _GENERATION.fullmatch(name):
            generations.append(int(match["number"]))
        elif match := _NOTE.fullmatch(name):
            beat = None if match["beat"] == "new" else int(match["beat"])
            notes.append(Note(name, match["token"], beat, int(match["ms"])))
        elif _GONE.fullmatch(name):
            gone.append(name)
    return Listing(announcements, tuple(generations), tuple(notes), tuple(gone))


def beats_in(names: list[str]) -> list[int]:
    """Return the heartbeats among the entries of one announcement; there should be one at most."""
    return [int(match["beat"]) for name in names if (match := _BEAT.fullmatch(name))]


def parse_beats(names: list[str]) -> int | None:
    """Return the highest heartbeat among the entries of one announcement, ``None`` if there is none yet."""
    return max(beats_in(names), default=None)


def _stand_in_token(name: str) -> str:
    # A note must be able to name what is not understood, so that callers with short time-outs can age it out, too.
    # 16 digits and an "x": it can be no announcement's own token. The same on every host, and cheap.
    return f"{int.from_bytes(name.encode('utf-8', 'surrogateescape')) % _LARGEST_PRIME_OF_64_BITS:016x}x"


@lru_cache(maxsize=1)
def _encode_host(host: str) -> str:
    # Percent-encoded bytes, cut at a whole character: a host name is for people, so losing its end is no harm.
    encoded = ""
    for char in host:
        piece = char
        if not re.fullmatch(r"[A-Za-z0-9._-]", char):
            piece = "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))
        if len(encoded) + len(piece) > _HOST_MAX_CHARS:
            break
        encoded += piece
    return encoded


def _decode_host(text: str) -> str:
    if "%" not in text:
        return text
    raw = re.sub(r"%([0-9A-F]{2})", lambda match: chr(int(match[1], 16)), text)
    return raw.encode("latin-1").decode("utf-8", "replace")
