# What an administrator runs now and then: build the index anew, while others are aligning with it.

if config.get("lock", True):
    from nfsrwlock.snakemake import exclusive, shared_read
else:

    def shared_read(path, **options):
        return path

    exclusive = shared_read


REF = config["ref"]


rule update:
    input:
        genome=shared_read(f"{REF}/genome.fa"),
    output:
        index=exclusive(f"{REF}/genome.mmi"),
    script:
        "scripts/index.py"
