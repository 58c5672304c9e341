"""Sequences without files: the genome, its rotations, and reads whose right place is known.

Phage lambda closes into a circle in its host, so any base may be called the first one. A *version* of the reference
is the same circle opened at another base: version 1 as NCBI publishes it, version ``v`` opened ``(v - 1) * ROTATION``
bases further on. Hence the right position of a read depends on the version of the reference it was compared with, and
a reader that mixes two versions gets wrong positions.
"""

from __future__ import annotations

import gzip
import random
from dataclasses import dataclass
from pathlib import Path

ROTATION = 9_973
"""Bases by which each version is rotated against the one before."""

READ_LENGTHS = (500, 1_500)
ERROR_RATE = 0.06
"""Share of the bases of a read that are wrong: substituted, inserted or left out, a third each."""

_COMPLEMENT = str.maketrans("ACGT", "TGCA")


@dataclass(frozen=True)
class Origin:
    """Where a simulated read was drawn: the truth that the demonstration is checked against."""

    start: int
    """First base on version 1 of the genome, counted from 0 on the forward strand."""
    strand: int
    """+1 or -1."""


@dataclass(frozen=True)
class Read:
    name: str
    sequence: str
    origin: Origin


def load_genome(path: Path) -> str:
    """The bases of the only record of a gzipped FASTA file, in upper case."""
    with gzip.open(path, "rt", encoding="ascii") as lines:
        return "".join(line.strip() for line in lines if not line.startswith(">")).upper()


def rotate(circle: str, bases: int) -> str:
    """The same circle, opened `bases` further on."""
    cut = bases % len(circle)
    return circle[cut:] + circle[:cut]


def start_on_version(origin: Origin, version: int, genome_length: int) -> int:
    """The position at which a read drawn at `origin` begins on this version of the reference."""
    return (origin.start - (version - 1) * ROTATION) % genome_length


def circular_distance(one: int, other: int, genome_length: int) -> int:
    apart = (one - other) % genome_length
    return min(apart, genome_length - apart)


def simulate_reads(genome: str, count: int, rng: random.Random, prefix: str) -> list[Read]:
    """Draw `count` reads from anywhere on the circle and either strand, with sequencing errors."""
    reads = []
    for number in range(count):
        start = rng.randrange(len(genome))
        template = rotate(genome, start)[: rng.randint(*READ_LENGTHS)]
        strand = rng.choice((+1, -1))
        if strand < 0:
            template = template.translate(_COMPLEMENT)[::-1]
        reads.append(Read(f"{prefix}-{number:05d}", _with_errors(template, rng), Origin(start, strand)))
    return reads


def _with_errors(template: str, rng: random.Random) -> str:
    bases = list(template)
    for place in rng.sample(range(len(bases)), round(len(bases) * ERROR_RATE)):
        right = template[place]
        wrong = rng.choice([base for base in "ACGT" if base != right])
        bases[place] = rng.choice((wrong, right + wrong, ""))
    return "".join(bases)
