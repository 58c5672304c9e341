"""``python benchmarks``: run them, and draw table and plot from the results."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

if __package__ in (None, ""):  # run as a directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import report, results
from benchmarks.contenders import KINDS
from benchmarks.measurements import Measurement, Plan, Record, measurements
from benchmarks.places import ROOT, Late, NfsLab, Place, Trouble, local_place
from benchmarks.results import Document

#: What NFS is measured with: version, delay in ms.
_NFS: Final = {
    "nfs4.2": ("4.2", 0.0),
    "nfs4.2-1ms": ("4.2", 1.0),
    "nfs3": ("3", 0.0),
    "nfs3-1ms": ("3", 1.0),
}
_MAIN: Final = "nfs4.2"
#: How long a whole run takes by itself, seconds; --duration is relative to that.
_LOCAL_S: Final = 160.0
_NFS_S: Final = 1100.0

_ALL: Final = tuple(KINDS)
#: A hold that is kept or recorded shows in uncontended cycles only, and permits there and where they are contended for.
_SOME: Final = ("nfsrwlock-kept", "nfsrwlock-permit", "nfsrwlock-recorded")
_MOST: Final = tuple(name for name in KINDS if name not in _SOME)
_FEW: Final = tuple(name for name in _MOST if name not in ("soft", "strict", "flufl"))
FULL: Final = Plan(_ALL, _MOST)
LOCAL: Final = Plan(
    _ALL,
    _MOST,
    cycle_s=6,
    contended_s=4,
    storm_s=10,
    writer_s=4,
    polls=(0.05, 0.25, 1.0),
    long_wait_s=0,
    recovery_s=6,
    recoveries=2,
)
#: The other NFS places: what depends on the place, of those that are compared most.
BRIEF: Final = Plan(
    _ALL,
    _FEW,
    cycle_s=8,
    contended_s=4,
    threads=(),
    storm_s=10,
    storms=3,
    writer_s=5,
    polls=(0.25,),
    handovers=3,
    long_wait_s=0,
    windows_s=((2.0, 3.0),),
    heartbeat_s=2,
    recoveries=1,
    recovery_s=6,
    sizes=(1, 10, 100, 1000),
    growth_s=8,
)
#: What an idle crowd asks, and when a lease runs out, does not depend on how long a message takes.
DELAYED: Final = replace(BRIEF, left_out=("idle", "recovery"))
#: Only whether the instrument works.
QUICK: Final = Plan(
    _ALL,
    _MOST,
    starts=1,
    results=20,
    rounds=1,
    cycle_s=0.5,
    turn_s=0.02,
    contended_s=1.0,
    threads=(4, 8),
    crowd=8,
    storm_s=30,
    storms=1,
    readers=6,
    writer_s=10,
    writer_waits=1,
    polls=(0.05,),
    handovers=1,
    long_wait_s=0,
    windows_s=((0.5, 1.0),),
    heartbeat_s=1,
    recoveries=1,
    recovery_s=3,
    sizes=(1, 10, 50),
    growth_s=30,
)


def main(argv: list[str]) -> int:
    """Carry out one command; return the exit code."""
    arguments = _parser().parse_args(argv)
    arguments.command = argv
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it takes its lab down, as on Ctrl-C
    try:
        return int(arguments.act(arguments))
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return getattr(error, "code", 1)


def _run_local(arguments: argparse.Namespace) -> int:
    document = _begin(arguments)
    _measure_locally(document, arguments, lambda: _save(document, arguments))
    return _end(document, arguments)


def _run_nfs(arguments: argparse.Namespace) -> int:
    document = _begin(arguments)
    if "local" in arguments.places:
        _measure_locally(document, arguments, lambda: _save(document, arguments))
    wanted = [place for place in _NFS if place in arguments.places]
    if wanted:
        with tempfile.TemporaryDirectory(prefix="nfsrwlock-bench-") as directory:
            lab = NfsLab(arguments.lab or f"{directory}/lab")
            try:
                lab.up()
                document["machine"]["guests"] = f"User-Mode Linux {lab.kernel()}"
                for name in wanted:
                    version, delay = _NFS[name]
                    plan = QUICK if arguments.quick else FULL if name == _MAIN else DELAYED if delay else BRIEF
                    place = lab.place(version, delay)
                    _measure(document, place, plan, arguments, lab, lambda: _save(document, arguments))
            finally:
                lab.down()
    return _end(document, arguments)


def _measure_locally(document: Document, arguments: argparse.Namespace, save: Callable[[], None]) -> None:
    with local_place(arguments.dir) as (place,):
        _measure(document, place, QUICK if arguments.quick else LOCAL, arguments, None, save)


def _measure(
    document: Document,
    place: Place,
    plan: Plan,
    arguments: argparse.Namespace,
    lab: NfsLab | None,
    save: Callable[[], None],
) -> None:
    if arguments.duration:
        plan = plan.scaled(arguments.duration / (_LOCAL_S if arguments.act is _run_local else _NFS_S))
    if "flufl.lock" not in document["versions"]:
        plan = plan.without("flufl")
    probe = place.machines[0].helper
    facts = {"label": place.label, **place.facts}
    facts["round trip ms"] = round(probe.do("round_trip", path=place.root) * 1000, 3) if place.is_nfs else None
    document["places"][place.name] = facts
    for name, measure in measurements().items():
        if name not in arguments.only or name in plan.left_out:
            continue
        began = time.monotonic()
        sys.stderr.write(f"{place.label}: {name} ... ")
        sys.stderr.flush()
        contenders = plan.contenders if name == "uncontended" else plan.few
        found, error = _attempt(measure, place, replace(plan, contenders=contenders), lab)
        if error is not None and lab is not None:
            sys.stderr.write(f"broken off ({error!r}); once more, in a new lab ... ")
            lab.renew(place)
            found, error = _attempt(measure, place, replace(plan, contenders=contenders), lab)
        if error is not None:
            sys.stderr.write(f"broken off ({error!r}) ... ")
            arguments.code = 1
        results.add_all(document, found)
        sys.stderr.write(f"{time.monotonic() - began:.0f} s\n")
        save()


def _attempt(
    measure: Measurement, place: Place, plan: Plan, lab: NfsLab | None
) -> tuple[list[Record], Exception | None]:
    # A process of the benchmarks themselves may fail or hang. What was found before, and the rest of the run, is kept.
    found: list[Record] = []
    try:
        found.extend(measure(place, plan, lab))
    except (Late, Trouble) as error:
        return found, error
    return found, None


def _begin(arguments: argparse.Namespace) -> Document:
    unknown = set(arguments.only) - set(measurements())
    if unknown:
        raise ValueError(f"no such measurement: {', '.join(sorted(unknown))}; there are {', '.join(measurements())}")
    unknown = set(arguments.places) - {"local", *_NFS}
    if unknown:
        raise ValueError(f"no such place: {', '.join(sorted(unknown))}; there are local, {', '.join(_NFS)}")
    document = results.new_document()
    arguments.results = arguments.out / "results.json"
    if arguments.add:
        earlier = results.load(arguments.results)
        if earlier["versions"] != document["versions"]:
            raise ValueError(f"{arguments.results} was measured with other versions; measure all of it again")
        document = earlier
    arguments.began = time.monotonic()
    arguments.code = 0
    document["pieces"].append({"began": results.now(), "command": _told(arguments.command)})
    return document


def _told(command: list[str]) -> str:
    # Without the paths, which say nothing to others.
    words = iter(command)
    told = ["python benchmarks"]
    for word in words:
        if word.partition("=")[0] in ("--out", "--dir", "--lab", "--readme"):
            if "=" not in word:
                next(words, None)
        else:
            told.append(word)
    return " ".join(told)


def _save(document: Document, arguments: argparse.Namespace) -> None:
    document["pieces"][-1]["seconds"] = round(time.monotonic() - arguments.began)
    results.save(document, arguments.results)


def _end(document: Document, arguments: argparse.Namespace) -> int:
    _save(document, arguments)
    return _render(arguments) or arguments.code


def _render(arguments: argparse.Namespace) -> int:
    document = results.load(arguments.out / "results.json")
    (arguments.out / "results.md").write_text(report.page(document))
    report.draw(document, arguments.out)
    if arguments.readme:
        report.update_readme(document, arguments.readme)
    sys.stdout.write(report.summary(document))
    sys.stdout.write(f"\nTables, plots and all figures: {os.path.relpath(arguments.out)}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python benchmarks", description="nfsrwlock beside other locks")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    local = actions.add_parser("local", help="in a temporary directory on this machine")
    local.set_defaults(act=_run_local, places=["local"], lab=None)
    nfs = actions.add_parser("nfs", help="locally, and on a cluster of kernels with an NFS server (root)")
    nfs.set_defaults(act=_run_nfs)
    nfs.add_argument("--places", type=_words, default=["local", *_NFS], help="some of them [%(default)s]")
    nfs.add_argument("--lab", help="state directory of the lab [a temporary one]")
    render = actions.add_parser("render", help="draw tables and plots anew from results.json")
    render.set_defaults(act=_render)
    for action in (local, nfs):
        action.add_argument("--only", type=_words, default=list(measurements()), help="some measurements [%(default)s]")
        action.add_argument("--add", action="store_true", help="put them into the results that are there")
        action.add_argument("--duration", type=_positive, metavar="S", help="about how long the whole run may take")
        action.add_argument("--quick", action="store_true", help="only see that everything works: the figures are poor")
        action.add_argument("--dir", help="where the local place is made [the temporary directory]")
    for action in (local, nfs, render):
        action.add_argument("--out", type=Path, default=ROOT / "build/benchmarks", help="directory for results")
        action.add_argument("--readme", type=Path, help="file with a table of ratios to bring up to date")
    return parser


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, not {text}")
    return value


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # without waiting for threads that read from a machine
