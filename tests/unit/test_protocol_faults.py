"""What the protocol needs of a file system, and what lost, late and refused calls do to it (PROTOCOL.md section 6)."""

from __future__ import annotations

import errno

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faults import TTL, After, CachingFiles, Fails, Fault, Late, LostReply, MemoryFiles, Stage, os_error
from nfsrwlock_core.names import Mode
from nfsrwlock_core.protocol.heartbeat import Beat, Phase
from nfsrwlock_core.protocol.participant import Participant

CHANGES = ("mkdir", "rmdir", "create", "rename", "unlink")


@pytest.fixture
def stage() -> Stage:
    return Stage()


class AtCall(Fault):
    """Another fault, at the n-th call of whatever kind."""

    def __init__(self, number: int, fault: type[Fault], *args) -> None:
        super().__init__("any", skip=number)
        self._make = lambda op: fault(op, *args)

    def strikes(self, op: str, name: str) -> bool:
        self._op = op
        return super().strikes("any", name)

    def apply(self, call, name):
        return self._make(self._op).apply(call, name)


class CachedMiss(Fails):
    """ENOENT from the client's cache of missing names. It holds names in directories, so listings still work."""

    def __init__(self, op: str) -> None:
        super().__init__(op, errno.ENOENT if op != "listdir" else errno.EIO)


def insist(step):
    """Do what callers do with a step that fails for a moment: call it again."""
    for _ in range(20):
        try:
            return step()
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EEXIST, errno.ENOENT, errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY):
                raise
            if isinstance(step.__self__.files, CachingFiles):
                step.__self__.files.expire()  # time passes between two tries
    raise AssertionError("it never recovers")


def whole_story(stage: Stage, participant: Participant) -> None:
    """Acquire, beat twice, release; between the steps it holds what it says it holds."""
    for _ in range(20):
        if insist(participant.advance):
            break
    assert participant.phase is Phase.GRANTED
    assert participant.name in stage.server.names, "a grant without an announcement"
    assert [name for name in stage.server.announced if name != participant.name] == []
    for _ in range(2):
        stage.clock.sleep(30)
        for _ in range(9):
            outcome = participant.beat()
            assert outcome is not Beat.LOST, "nobody has evicted it"
            if outcome is Beat.DONE:
                break
        assert outcome is Beat.DONE
        assert participant.lease.renewed == stage.clock()
    assert insist(participant.release), "the hold stood until now"


FAULTS = {
    "lost reply, request sent again": (LostReply,),
    "lost reply, time-out": (LostReply, errno.ETIMEDOUT),
    "lost reply, EIO": (LostReply, errno.EIO),
    "refused, EIO": (Fails, errno.EIO),
    "refused, ESTALE": (Fails, errno.ESTALE),
    "ENOENT from a cache of missing names": (CachedMiss,),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("client", [MemoryFiles, CachingFiles])
@pytest.mark.parametrize("mode", Mode)
def test_no_single_fault_breaks_a_hold_or_leaves_anything_behind(mode, client, fault):
    """Section 6: a lost reply can turn a success into an error; the outcome is read back from the name."""
    calls = struck = 0
    while struck == calls:  # at the first call, the second, … until the story is over before the fault
        stage = Stage()
        at = AtCall(calls, *fault)
        participant = stage.participant(mode, files=client(stage.server, at))
        whole_story(stage, participant)
        assert stage.server.announced == set()
        assert {name.partition(".")[0] for name in stage.server.names} <= {"gen"}
        calls += 1
        struck += at.struck
    assert calls > 6


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(Mode),
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(list(FAULTS.values()))), max_size=6),
)
def test_several_faults_break_no_hold_either(mode, faults):
    """Section 6: faults that follow one another, and faults in the middle of reading back what a fault did."""
    stage = Stage()
    files = MemoryFiles(stage.server)
    for skip, fault in faults:
        files.inject(AtCall(skip, *fault))
    whole_story(stage, stage.participant(mode, files=files))
    assert stage.server.announced == set()


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from([Mode.READ, Mode.WRITE]), min_size=2, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.sampled_from(list(FAULTS.values()))), max_size=5),
    st.lists(st.integers(0, 3), max_size=60),
    st.booleans(),
)
def test_no_fault_lets_two_in_that_exclude_each_other(modes, faults, turns, caching):
    """Sections 2 and 6: exclusion rests on no reply."""
    stage = Stage()
    client = CachingFiles if caching else MemoryFiles
    crowd = [
        stage.participant(mode, ticket=number % 2, files=client(stage.server)) for number, mode in enumerate(modes)
    ]
    for who, skip, fault in faults:
        crowd[who % len(crowd)].files.inject(AtCall(skip, *fault))
    leaving = []
    for turn in turns:
        participant = crowd[turn % len(crowd)]
        try:
            if participant.phase is Phase.GRANTED:
                leaving.append(participant)
                participant.release()
            elif participant.phase is not Phase.ENDED:
                participant.advance()
                if isinstance(participant.files, CachingFiles):
                    participant.files.expire()
        except OSError:
            pass
        holding = [one for one in crowd if one.phase is Phase.GRANTED and one not in leaving]
        assert all(one.mode is Mode.READ for one in holding) or len(holding) == 1
        assert all(one.name in stage.server.names for one in holding)
    # And nobody is stuck: with nothing going wrong any more, everybody gets the lock.
    for participant in crowd:
        participant.files.heal()
    waiting = [one for one in crowd if one.phase is not Phase.ENDED]
    for _ in range(200):
        for participant in waiting:
            if isinstance(participant.files, CachingFiles):
                participant.files.expire()
            if participant.phase is Phase.GRANTED:
                insist(participant.release)
            elif participant.phase is not Phase.ENDED:
                insist(participant.advance)
        stage.clock.sleep(1)
    assert all(one.phase is Phase.ENDED for one in waiting)


# -- (a), (b), (c) -----------------------------------------------------------------------------------------------------


def test_only_six_operations_are_used(stage):
    """Section 1: mkdir, rmdir, exclusive create, rename, unlink, list. There is nothing else in the interface."""
    used = set()
    for mode in Mode:
        peer = stage.peer(Mode.WRITE, beat=1)
        participant = stage.participant(mode, ticket=9)
        assert stage.poll(participant, 2 * TTL)
        participant.beat()
        participant.beat()
        participant.read_generation()
        participant.release()
        assert peer.name not in stage.server.names
        used |= set(participant.files.ops())
    assert used == {"mkdir", "rmdir", "listdir", "create", "rename", "unlink"}


def test_only_own_unique_names_are_renamed(stage):
    """Section 1: rename of a private unique name; no name of anybody else is its target or its source."""
    participant = stage.holding_writer()
    participant.beat()
    participant.beat()
    stage.server.create(f"{participant.name}/.nfs1", b"")
    participant.release()
    renames = [call for call in participant.files.calls if call[0] == "rename"]
    assert len(renames) == 2
    for _, old, new in renames:
        assert old.startswith(participant.name)
        assert new.startswith((participant.name, "gone."))


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("beats", [0, 2])
def test_no_fault_makes_a_participant_touch_what_is_not_its_own(mode, beats):
    """Section 4: whatever goes wrong, every removal is of a unique name."""
    for number in range(12):
        stage = Stage()
        neighbour = stage.peer(Mode.READ, beat=7)
        stage.server.mkdir("README")
        files = MemoryFiles(stage.server, AtCall(number, LostReply))
        participant = stage.participant(mode, files=files)
        for _ in range(5):
            if insist(participant.advance):
                break
        for _ in range(beats if participant.phase is Phase.GRANTED else 0):
            participant.beat()
        insist(participant.give_up)
        assert {neighbour.name, "README"} <= stage.server.names
        assert stage.server.inside(neighbour.name) == {"beat.7"}
        assert stage.server.announced == {neighbour.name}


# -- calls that arrive late --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
def test_an_announcement_that_arrives_after_it_was_given_up_ages_out(stage, mode):
    """Sections 3 and 6: nobody beats for it, so any peer evicts it after a lease."""
    late = Late("mkdir")
    hasty = stage.participant(mode, files=MemoryFiles(stage.server, late))
    with pytest.raises(TimeoutError):
        hasty.advance()
    hasty.give_up()
    late.arrive()
    assert len(stage.server.announced) == 1
    writer = stage.writer(ticket=9)
    assert not stage.poll(writer, TTL - 2)
    assert stage.poll(writer, 5)


@pytest.mark.parametrize("mode", Mode)
def test_an_announcement_that_arrives_before_the_next_step_is_withdrawn(stage, mode):
    """Sections 2 and 6: its listing would be another one than that after its mkdir."""
    late = Late("mkdir")
    participant = stage.participant(mode, files=MemoryFiles(stage.server, late))
    with pytest.raises(TimeoutError):
        participant.advance()
    late.arrive()
    assert participant.advance()
    assert stage.server.announced == {participant.name}


@pytest.mark.parametrize("mode", Mode)
def test_a_removal_that_arrives_late_removes_nothing_of_anybody(stage, mode):
    """Section 4: every removal is of a unique name, so it is harmless however late it lands."""
    late = Late("rmdir")
    first = stage.participant(mode, files=MemoryFiles(stage.server, late))
    assert first.advance()
    with pytest.raises(TimeoutError):
        first.release()
    assert first.release()
    second = stage.participant(mode)
    assert second.advance()
    with pytest.raises(FileNotFoundError):
        late.arrive()
    assert second.name in stage.server.names


# -- interrupted in the middle -----------------------------------------------------------------------------------------


class Interrupts(Fault):
    """A signal's exception comes while the call is under way, before or after the server has carried it out."""

    def __init__(self, op: str, done: bool) -> None:
        super().__init__(op)
        self._done = done

    def apply(self, call, name):
        if self._done:
            call()
        raise KeyboardInterrupt


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("mode", Mode)
def test_an_interrupt_at_any_call_leaves_nothing_that_giving_up_does_not_remove(mode, done):
    """Section 2: whatever was announced can be withdrawn, wherever the story was broken off."""
    for number in range(8):
        stage = Stage()
        stage.peer(Mode.WRITE, ticket=0)
        (blocker,) = stage.server.announced
        files = MemoryFiles(stage.server, AtCall(number, Interrupts, done))
        participant = stage.participant(mode, files=files)
        try:
            participant.advance()
            del stage.server.entries[blocker]
            participant.advance()
        except KeyboardInterrupt:
            pass
        files.heal()
        participant.give_up()
        assert stage.server.announced <= {blocker}
        assert {name.partition(".")[0] for name in stage.server.names - {blocker}} <= {"gen"}


# -- ENOENT is never evidence ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
def test_a_withdrawal_that_meets_a_missing_name_lists_before_it_believes_it(stage, mode):
    """Section 6: it may be the client's cache of missing names; an announcement left behind would block everybody."""
    stage.peer(Mode.WRITE, ticket=0)
    participant = stage.participant(mode, files=MemoryFiles(stage.server, Fails("rmdir", errno.ENOENT)))
    assert not stage.poll(participant, TTL / 2000, every=TTL / 2000)
    (first,) = [call[1] for call in participant.files.calls if call[0] == "mkdir"][:1]
    assert first not in stage.server.names
    calls = participant.files.ops()
    begin = calls.index("rmdir")
    assert calls[:begin] == ["mkdir", "listdir"] + ["listdir"] * (mode is Mode.WRITE)
    assert calls[begin : begin + 3] == ["rmdir", "listdir", "rmdir"]


def test_a_drain_that_a_listing_misses_is_not_left_behind(stage):
    """Section 6: the writer starts over, and should its name be there after all, it is removed."""
    stage.peer(Mode.READ)
    (reader,) = stage.server.announced
    writer = stage.writer()
    writer.advance()
    hidden = stage.server.entries.pop(writer.name)
    was = writer.name
    writer.files.inject(After("listdir", lambda: stage.server.entries.update({was: hidden})))
    assert not writer.advance()
    assert not writer.advance()
    assert stage.server.announced == {reader, writer.name}
    assert writer.name != was


def test_a_fresh_listing_that_has_lost_the_name_is_evidence(stage):
    """Sections 3 and 6: this is what a beat that meets ENOENT looks for."""
    holder = stage.holding_reader()
    stage.server.entries.clear()
    holder.files.ops()
    assert holder.beat() is Beat.LOST
    assert holder.files.ops()[-1] == "listdir"


# -- the tools of these tests ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "done"), [(Fails("mkdir"), False), (LostReply("mkdir"), True), (Late("mkdir"), False)], ids=type
)
def test_a_fault_does_what_its_name_says(fault, done):
    """Otherwise the tests above say nothing."""
    stage = Stage()
    files = MemoryFiles(stage.server, fault)
    with pytest.raises(OSError):  # noqa: PT011 - any
        files.mkdir("x")
    assert ("x" in stage.server.names) is done
    files.mkdir("y")
    assert "y" in stage.server.names
    assert files.ops() == ["mkdir", "mkdir"]


def test_the_server_in_memory_refuses_as_a_file_system_does():
    """Section 6 (a) and (c), for the stand-in that the tests use; the real one is tested with the real calls."""
    server = Stage().server
    server.mkdir("a")
    server.create("a/beat.0", b"")
    for number, call in (
        (errno.EEXIST, lambda: server.mkdir("a")),
        (errno.EEXIST, lambda: server.create("a/beat.0", b"")),
        (errno.ENOTEMPTY, lambda: server.rmdir("a")),
        (errno.ENOENT, lambda: server.unlink("a/beat.1")),
        (errno.ENOENT, lambda: server.rename("a/beat.1", "a/beat.2")),
        (errno.ENOENT, lambda: server.listdir("b")),
        (errno.EISDIR, lambda: server.unlink("a")),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is checked
            call()
        assert caught.value.errno == number
    assert isinstance(os_error(errno.ENOENT), FileNotFoundError)
