"""Draw reads from the genome, each named by the place it comes from. A sequencer would do it less neatly."""

import random

import mappy

LENGTH, COUNT = 500, 50

((_, genome, _),) = mappy.fastx_read(snakemake.input.genome)
places = random.Random(snakemake.wildcards.sample)
with open(snakemake.output.reads, "w", encoding="ascii") as file:
    for _ in range(COUNT):
        place = places.randrange(len(genome) - LENGTH)
        file.write(f"@{place}\n{genome[place : place + LENGTH]}\n+\n{'I' * LENGTH}\n")
