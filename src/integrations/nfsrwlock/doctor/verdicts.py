"""What the rounds tell: from what both sides saw to findings. Reads two records and touches nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from nfsrwlock.doctor.races import NEWS_SECONDS, ROUNDS_PER_DIRECTORY, Record, is_holder
from nfsrwlock.doctor.rendezvous import Result
from nfsrwlock.doctor.report import Check, Level
from nfsrwlock.doctor.scratch import DONE

#: What a call that came second is told. EBUSY and ESTALE come from NFS clients, for what another one has removed.
_LATE: Final = {"EEXIST", "ENOENT", "ENOTEMPTY", "EBUSY", "ESTALE"}
_ELSEWHERE: Final = (
    "Keep locks on another file system (--lock-dir or NFSRWLOCK_DIR), or do not lock between hosts here."
)


def judge(result: Result) -> list[Check]:
    """Return the findings about the three demands, and, of two hosts, about what they see of each other."""
    checks = [_mkdir(result), _listing(result), _removal(result)]
    if result.plan.two_hosts:
        checks += [_freshness(result), _data(result), _clock(result)]
    return checks


def _between(result: Result) -> str:
    return "two hosts" if result.plan.two_hosts else "two processes of this host"


def _mkdir(result: Result) -> Check:
    lead, join = result.lead.outcomes["mkdir"], result.join.outcomes["mkdir"]
    both = sum(one == two == DONE for one, two in zip(lead, join, strict=True))
    neither = sum(DONE not in outcomes for outcomes in zip(lead, join, strict=True))
    facts = {**_facts(result, "mkdir"), "both": both, "neither": neither}
    begin = f"{_between(result).capitalize()} made one name at once, {_times(facts)}: "
    if both:
        return Check(
            "mkdir",
            Level.UNFIT,
            f"{begin}{both} times both were told that they had made it. mkdir is not atomic here (demand a).",
            _ELSEWHERE,
            facts=facts,
        )
    text = f"{begin}never were both told that they had made it (demand a)."
    if neither:
        text += f" {neither} times neither was: a reply was lost, which harms nobody."
    return _with_errors(Check("mkdir", Level.NOTE if neither else Level.OK, text, facts=facts), (*lead, *join))


def _listing(result: Result) -> Check:
    missed, own = set(), 0
    for first in range(0, result.plan.rounds, ROUNDS_PER_DIRECTORY):
        numbers = range(first, min(first + ROUNDS_PER_DIRECTORY, result.plan.rounds))
        ours = {number: set(result.lead.listings[number]) for number in numbers if _made(result.lead, number)}
        theirs = {number: set(result.join.listings[number]) for number in numbers if _made(result.join, number)}
        own += sum(f"lead.{number}" not in seen for number, seen in ours.items())
        own += sum(f"join.{number}" not in seen for number, seen in theirs.items())
        # If one's listing does not show the other's name, that name was made after the listing began, so after the
        # one's own name was made: then the other's listing, which is later still, must show that.
        missed |= {
            (mine, other)
            for mine, seen in ours.items()
            for other, seen_there in theirs.items()
            if f"join.{other}" not in seen and f"lead.{mine}" not in seen_there
        }
    outcomes = (*result.lead.outcomes["list"], *result.join.outcomes["list"])
    facts = {**_facts(result, "list"), "missed": len(missed), "own_missed": own}
    begin = f"{_between(result).capitalize()} listed, made a name each and listed again, {_times(facts)}: "
    if missed or own:
        what = f"{len(missed)} pairs of listings missed each other's name" if missed else ""
        what += " and " if missed and own else ""
        what += f"{own} listings missed the name that their own maker had just made" if own else ""
        return Check(
            "listing",
            Level.UNFIT,
            f"{begin}{what}. Two holders would not notice each other here (demand b).",
            _ELSEWHERE,
            facts=facts,
        )
    text = f"{begin}no two listings missed each other's names (demand b)."
    if not result.plan.two_hosts:
        text += " They share this host's caches, so this says little about a second host."
    return _with_errors(Check("listing", Level.OK, text, facts=facts), outcomes)


def _made(record: Record, number: int) -> bool:
    return record.outcomes["list"][number] == DONE


def _removal(result: Result) -> Check:
    swaps = list(_parts(result, "swap"))
    firsts = list(_parts(result, "first"))
    swapped_both = sum(holder == evictor == DONE for holder, evictor in swaps)
    neither = sum(DONE not in parts for parts in swaps)
    first_both = sum(holder == evictor == DONE for holder, evictor in firsts)
    removed = sum(end == DONE for end in (*result.lead.nonempty, *result.join.nonempty))
    facts = {
        **_facts(result, "swap"),
        "moved_and_removed": swapped_both,
        "neither": neither,
        "filled_and_removed": first_both,
        "nonempty_removed": removed,
        "first": _facts(result, "first"),
    }
    wrong = []
    if swapped_both:
        wrong.append(f"{swapped_both} times rename and unlink of one name both succeeded")
    if first_both:
        wrong.append(f"{first_both} times a file was made in a directory that rmdir removed")
    if removed:
        wrong.append(f"{removed} times rmdir removed a directory with a file in it")
    begin = (
        f"{_between(result).capitalize()} tried rename against unlink, and create against rmdir, {_times(facts)} each: "
    )
    if wrong:
        return Check(
            "removal",
            Level.UNFIT,
            f"{begin}{'; '.join(wrong)}. A live holder could be evicted here (demand c).",
            _ELSEWHERE,
            facts=facts,
        )
    text = f"{begin}never did both succeed, and no directory with an entry was removed (demand c)."
    if neither:
        text += (
            f" {neither} times neither rename nor unlink succeeded: a reply was lost, or a client's cache of missing "
            "names answered; both are looked into by the locks and harm nobody."
        )
    outcomes = [end for parts in (*swaps, *firsts) for end in parts] + result.lead.nonempty + result.join.nonempty
    return _with_errors(Check("removal", Level.NOTE if neither else Level.OK, text, facts=facts), outcomes)


def _parts(result: Result, race: str) -> Iterable[tuple[str, str]]:
    """The holder's outcome and the evictor's, round by round."""
    pairs = zip(result.lead.outcomes[race], result.join.outcomes[race], strict=True)
    for number, (lead, join) in enumerate(pairs):
        yield (lead, join) if is_holder("lead", number) else (join, lead)


def _with_errors(check: Check, outcomes: Iterable[str]) -> Check:
    """Mention calls that neither succeeded nor came second."""
    odd = Counter(end for end in outcomes if end != DONE and end not in _LATE)
    if not odd:
        return check
    listed = ", ".join(f"{name} {count} times" for name, count in odd.most_common())
    return Check(
        check.name,
        Level.WARNING,
        f"{check.text} But calls failed: {listed}.",
        "Find out why the file system answers with errors; locks try again, data may suffer.",
        facts={**check.facts, "errors": dict(odd)},
    )


def _times(facts: dict[str, Any]) -> str:
    known = f", clocks known to {facts['clock_known_to_ms']:.1f} ms" if facts["clock_known_to_ms"] else ""
    return f"{facts['rounds']} times (half of them within {facts['median_apart_ms']:.1f} ms{known})"


def _facts(result: Result, race: str) -> dict[str, float | int]:
    """How close the races were; a race counts as close if, on one clock, the two calls overlapped."""
    pairs = list(zip(result.lead.spans[race], result.join.spans[race], strict=True))
    apart = sorted(abs(lead[0] - (join[0] - result.ahead)) for lead, join in pairs)
    overlapping = sum(lead[0] <= join[1] - result.ahead and join[0] - result.ahead <= lead[1] for lead, join in pairs)
    return {
        "rounds": len(pairs),
        "overlapping": overlapping,
        "median_apart_ms": round(apart[len(apart) // 2] * 1000, 3),
        "clock_known_to_ms": round(result.uncertain * 1000, 3),
    }


def _freshness(result: Result) -> Check:
    delays = [
        None if seen is None or made is None else max(0.0, seen - made)
        for seen, made in (
            (result.lead.seen, None if result.join.made is None else result.join.made - result.ahead),
            (result.join.seen, None if result.lead.made is None else result.lead.made + result.ahead),
        )
    ]
    facts = {"delays_s": [None if delay is None else round(delay, 3) for delay in delays], "limit_s": NEWS_SECONDS}
    known = [delay for delay in delays if delay is not None]
    if len(known) == len(delays) and max(known) < 1.0:
        text = f"A fresh listing shows what the other host made within {max(known):.2f} s."
        return Check("freshness", Level.OK, text, facts=facts)
    late = f"{max(known):.1f} s later" if len(known) == len(delays) else f"more than {NEWS_SECONDS:g} s later"
    return Check(
        "freshness",
        Level.WARNING,
        f"A fresh listing shows what the other host made {late}, if this one changes nothing there itself. Locks "
        "stay safe, for what decides a grant is listed after a change of one's own; but who waits learns late that a "
        "lock is free, and 'nfsrwlock status' shows the past.",
        "On NFS, mount without nocto; elsewhere, turn caching of directory listings off.",
        facts=facts,
    )


def _data(result: Result) -> Check:
    read = [*result.lead.data, *result.join.data]
    facts = {"read": len(read), "old": read.count("old")}
    if "old" in read:
        return Check(
            "data",
            Level.UNFIT,
            f"{read.count('old')} of {len(read)} times a host that opened a file, after the other had written and "
            "closed it and said so, read the old version. Locks hold here, but data read under them may be old.",
            "On NFS, mount without nocto; elsewhere, turn caching of file data off.",
            facts=facts,
        )
    if not read:
        return Check(
            "data", Level.WARNING, "The other host's files were not announced in time to be read.", facts=facts
        )
    return Check(
        "data",
        Level.OK,
        f"What one host wrote and closed, the other read when it opened the file, {len(read)} times of {len(read)}.",
        facts=facts,
    )


def _clock(result: Result) -> Check:
    off = abs(result.wall_ahead)
    text = f"The clocks of the two hosts differ by {off:.2f} s (known to {result.uncertain:.3f} s). Locks do not care"
    odd = off > 1 + result.uncertain
    return Check(
        "clock",
        Level.NOTE if odd else Level.OK,
        f"{text}; programs that compare time stamps, such as make, do." if odd else f"{text}.",
        facts={"apart_s": round(result.wall_ahead, 3), "known_to_s": round(result.uncertain, 3)},
    )
