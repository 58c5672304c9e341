"""The shared data: a reference and its index, two files that belong together.

Nothing here knows of a lock. Both files are rewritten in place and piece by piece, as many a tool does it, so a
reader that looks in between gets half a reference, or a new reference with an old index. The pauses stand for the
minutes that a genome of ordinary size takes; lambda alone would be done in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mappy

PRESET = "map-ont"


class StoreError(Exception):
    """The shared data are missing, incomplete, or do not fit together."""


@dataclass(frozen=True)
class Reference:
    version: int
    sequence: str


@dataclass(frozen=True)
class Placement:
    """Where the aligner put a read."""

    read: str
    start: int
    strand: int


class Store:
    """`lambda.fa` and `lambda.mmi` in one directory, as they would lie on a file server."""

    def __init__(self, directory: Path) -> None:
        self.reference_path = directory / "lambda.fa"
        self.index_path = directory / "lambda.mmi"

    def has_index(self) -> bool:
        return self.index_path.exists()

    def read_reference(self) -> Reference:
        """Read the reference. Its first line names the version and the length, so half a file is recognised.

        Raises:
            StoreError: the file is missing or incomplete.
        """
        try:
            header, _, body = self.reference_path.read_text(encoding="ascii").partition("\n")
            name, length = header.removeprefix(">").split()
            reference = Reference(_version_of(name), body.replace("\n", ""))
        except (OSError, ValueError) as error:
            raise StoreError(f"the reference cannot be read: {error}") from error
        if len(reference.sequence) != int(length):
            raise StoreError(f"half a reference: {len(reference.sequence):,} of {int(length):,} bases")
        return reference

    def write_reference(self, reference: Reference, pause: Callable[[], None] = lambda: None) -> None:
        """Overwrite the reference in place, in two halves with a pause between them."""
        middle = len(reference.sequence) // 2
        with self.reference_path.open("w", encoding="ascii") as out:
            out.write(f">{_name_of(reference.version)} {len(reference.sequence)}\n{reference.sequence[:middle]}\n")
            out.flush()
            pause()
            out.write(f"{reference.sequence[middle:]}\n")

    def build_index(self) -> None:
        """Index the reference as it is now, with minimap2, over the old index.

        Raises:
            StoreError: the reference cannot be indexed.
        """
        if not mappy.Aligner(str(self.reference_path), preset=PRESET, n_threads=1, fn_idx_out=str(self.index_path)):
            raise StoreError("the index cannot be built")

    def load_index(self) -> Index:
        """Load the index.

        Raises:
            StoreError: the index is missing or damaged.
        """
        aligner = mappy.Aligner(str(self.index_path), preset=PRESET, n_threads=1)
        if not aligner or len(aligner.seq_names) != 1:
            raise StoreError("the index cannot be read")
        return Index(aligner)


class Index:
    """A loaded minimap2 index of the reference."""

    def __init__(self, aligner: mappy.Aligner) -> None:
        self._aligner = aligner

    @property
    def version(self) -> int:
        """The version of the reference that was indexed."""
        return _version_of(self._aligner.seq_names[0])

    def place(self, name: str, sequence: str) -> Placement | None:
        """The best place of a read, or None if there is none.

        The circle is cut open somewhere, so a read across the cut aligns in part. Its start is reckoned back over the
        part that did not align; it may be negative then, which is the same place counted around the circle.
        """
        hits = [hit for hit in self._aligner.map(sequence) if hit.is_primary]
        if not hits:
            return None
        best = max(hits, key=lambda hit: hit.mlen)
        unaligned = best.q_st if best.strand > 0 else len(sequence) - best.q_en
        return Placement(name, best.r_st - unaligned, best.strand)


def _name_of(version: int) -> str:
    return f"lambda.v{version}"


def _version_of(name: str) -> int:
    return int(name.removeprefix("lambda.v"))
