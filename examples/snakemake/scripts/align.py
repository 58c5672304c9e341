"""Align reads with the shared index; write for each where it comes from and where it was found."""

import mappy

index = snakemake.input.index
aligner = mappy.Aligner(index, preset="map-ont")
if not aligner:
    raise SystemExit(f"{index} is no index")
with open(snakemake.output[0], "w", encoding="ascii") as file:
    for place, sequence, _ in mappy.fastx_read(snakemake.input.reads):
        hit = next(aligner.map(sequence), None)
        file.write(f"{place}\t{'' if hit is None else hit.r_st}\n")
