"""Three jobs share the index of a genome through one lock, and two of them are killed while they hold it.

    python examples/demo/run.py [--seconds N] [--svg PATH] [--seed N] [--plain] [--no-lock]

Shows the lock live, checks the outcome against the truth, and draws who held what when. Exit code 0 if every check
passed, 1 if one failed, 2 for a wrong call. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from check import Truth, check_all, load_results
from conductor import JOBS, Conductor, StuckError
from genome import Origin, load_genome, simulate_reads
from history import History
from stage import Settings, Stage
from store import Reference
from timeline import draw
from view import LiveView, PlainView, View, print_summary
from worker import FIRST_VERSION

GENOME = Path(__file__).parent.parent / "data" / "lambda_virus.fa.gz"

LEASE_S = 3.0
BEAT_S = LEASE_S / 3
"""Short, so that one can watch a lease run out. The defaults of the lock are 90 s and 30 s."""

BATCHES_PER_JOB = 12
READS_PER_BATCH = 100

OVERHEAD_S = 7.0
"""Of a run: the start of the processes, one lease, and the steps that do not scale."""
HOLD_SHARE, GAP_SHARE, BUILD_SHARE = 0.045, 0.012, 0.05
"""What of the rest one pause of each kind takes."""
LEAST_PACE_S = 3.0

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def main() -> int:
    options = parse_arguments()
    # Leave by the same way as after Ctrl-C, so that no process and no directory stays behind.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    # Width is fixed where nobody looks, so that a log does not depend on the terminal it was started from.
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        with tempfile.TemporaryDirectory(prefix="nfsrwlock-demo-") as directory:
            return play(Stage(Path(directory)), settings_of(options), options, console)
    except KeyboardInterrupt:
        console.print("stopped", style="bold red")
        return INTERRUPTED


def play(stage: Stage, settings: Settings, options: argparse.Namespace, console: Console) -> int:
    """Run the demonstration on a fresh stage, report, and return the exit code."""
    began = time.monotonic()
    stage.make(settings)
    truth = set_up(stage, settings)
    console.print(Text(introduction(settings)))
    live = console.is_terminal and not options.plain
    view: View = LiveView(console, settings.batches_per_job) if live else PlainView(console)
    conductor = Conductor(stage, settings, deadline=60 + 3 * options.seconds, show=view.show)
    try:
        with view.open():
            events = conductor.run()
    except StuckError as error:
        console.print(Text(f"given up: {error}", "bold red"))
        print_outputs(stage, console)
        return 1
    history = History.of(events)
    checks = check_all(events, history, load_results(stage.results), truth)
    passed = all(check.passed for check in checks)
    print_summary(console, checks)
    print_outputs(stage, console)
    title = "Who held the lock" if settings.use_lock else "The same jobs without a lock"
    options.svg.write_text(draw(history, f"{title}: three jobs, one updater, two kills"), encoding="utf-8")
    console.print(f"\ntimeline: {options.svg.resolve()}", soft_wrap=True, highlight=False)
    verdict = "all checks passed" if passed else f"{sum(not check.passed for check in checks)} checks FAILED"
    console.print(Text(f"{verdict} after {time.monotonic() - began:.1f} s", "bold green" if passed else "bold red"))
    return 0 if passed else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, metavar="N", help="about how long to run (default 20)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the simulated reads (default 1)")
    parser.add_argument(
        "--svg", type=Path, default=Path("demo-timeline.svg"), metavar="PATH", help="the picture (default %(default)s)"
    )
    parser.add_argument("--plain", action="store_true", help="print lines, not a live table")
    parser.add_argument("--no-lock", action="store_true", help="the same without a lock, to see the checks fail")
    options = parser.parse_args()
    if not 0 < options.seconds <= 600:
        parser.error("--seconds must lie between 0 and 600")
    if not options.svg.parent.is_dir():
        parser.error(f"--svg: there is no directory {options.svg.parent}")
    return options


def settings_of(options: argparse.Namespace) -> Settings:
    pace = max(options.seconds - OVERHEAD_S, LEAST_PACE_S)
    return Settings(
        seed=options.seed,
        use_lock=not options.no_lock,
        lease=LEASE_S,
        beat=BEAT_S,
        batches_per_job=BATCHES_PER_JOB,
        reads_per_batch=READS_PER_BATCH,
        hold_pause=HOLD_SHARE * pace,
        gap_pause=GAP_SHARE * pace,
        build_pause=BUILD_SHARE * pace,
    )


def set_up(stage: Stage, settings: Settings) -> Truth:
    """Put the reference and the reads in place; where the reads came from stays here."""
    genome = load_genome(GENOME)
    stage.store.write_reference(Reference(FIRST_VERSION, genome))
    rng = random.Random(settings.seed)
    origins: dict[str, Origin] = {}
    for job in JOBS:
        reads = simulate_reads(genome, settings.batches_per_job * settings.reads_per_batch, rng, job)
        stage.reads_path(job).write_text("".join(f">{read.name}\n{read.sequence}\n" for read in reads))
        origins |= {read.name: read.origin for read in reads}
    return Truth(origins, len(genome), settings.lease if settings.use_lock else None)


def introduction(settings: Settings) -> str:
    reads = len(JOBS) * settings.batches_per_job * settings.reads_per_batch
    lock = f"lease {settings.lease:g} s, a beat each {settings.beat:g} s" if settings.use_lock else "NO LOCK"
    return (
        f"Three jobs align {reads:,} simulated reads to phage lambda and share one index of it; an updater replaces\n"
        f"reference and index twice; two jobs are killed ({lock}).\n"
    )


def print_outputs(stage: Stage, console: Console) -> None:
    """What the processes said; they are silent unless something went wrong."""
    for path in sorted(stage.logs.glob("*.out")):
        if said := path.read_text(errors="replace").strip():
            console.print(Text(f"\n{path.stem} said:\n{said}"))


if __name__ == "__main__":
    sys.exit(main())
