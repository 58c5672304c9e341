"""Build the index of the genome, slowly and in pieces, so that half an index is there to be seen for a while."""

import os
import tempfile
import time

import mappy

genome, index = snakemake.input.genome, snakemake.output.index

with tempfile.TemporaryDirectory() as directory:
    path = os.path.join(directory, "index")
    if not mappy.Aligner(genome, preset="map-ont", fn_idx_out=path):
        raise SystemExit(f"{genome} cannot be indexed")
    with open(path, "rb") as file:
        data = file.read()

with open(index, "wb") as file:
    for start in range(0, len(data), len(data) // 10 + 1):
        file.write(data[start : start + len(data) // 10 + 1])
        file.flush()
        time.sleep(0.1)

log = os.path.join(snakemake.config["ref"], f"builds.{snakemake.rule}")
with open(log, "a", encoding="ascii") as file:
    file.write(f"{os.getpid()}\n")
