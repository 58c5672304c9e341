"""Who is dead (PROTOCOL.md section 3): only what this kernel says of its own processes, never a stopped one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nfsrwlock_core.names import Identity
from nfsrwlock_core.system import process as identity
from nfsrwlock_core.system.process import current_identity, is_dead, is_same_kernel

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def identity_of(pid: int) -> Identity:
    """What a process on this machine would announce itself by."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return replace(current_identity(), pid=pid, start=int(fields[19]))


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for_state(pid: int, state: str) -> None:
    deadline = time.monotonic() + 30
    while state_of(pid) != state:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_this_process_is_alive_and_on_its_own_kernel():
    me = current_identity()
    assert me.pid == os.getpid()
    assert is_same_kernel(me) or me.kernel == "0"
    assert not is_dead(me)


@linux
def test_a_process_that_runs_is_not_dead(sleeper):
    """Section 3."""
    assert not is_dead(identity_of(sleeper.pid))


@linux
def test_a_stopped_process_is_not_dead(sleeper):
    """Section 3: it still holds its files and may go on at any moment."""
    who = identity_of(sleeper.pid)
    sleeper.send_signal(signal.SIGSTOP)
    wait_for_state(sleeper.pid, "T")
    assert not is_dead(who)
    sleeper.send_signal(signal.SIGCONT)


@linux
def test_a_zombie_is_dead_and_so_is_what_was_reaped(sleeper):
    """Section 3: its files are closed, it cannot write any more."""
    who = identity_of(sleeper.pid)
    sleeper.kill()
    wait_for_state(sleeper.pid, "Z")
    assert is_dead(who)
    sleeper.wait()
    assert is_dead(who)


@linux
def test_another_process_with_the_same_number_is_not_mistaken_for_it(sleeper):
    """Section 3: pid and start time together name one process for ever."""
    who = identity_of(sleeper.pid)
    assert is_dead(replace(who, start=who.start - 1))


@linux
def test_a_zombie_whose_other_threads_go_on_is_not_dead():
    """Section 3: a main thread may end by pthread_exit while others still write."""
    code = (
        "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(600,)).start();"
        "ctypes.CDLL(None).syscall({nr}, 0)"
    )
    number = {"x86_64": 60, "aarch64": 93}.get(os.uname().machine)
    if number is None:
        pytest.skip("does not know the number of exit() on this machine")
    process = subprocess.Popen([sys.executable, "-c", code.format(nr=number)])
    try:
        wait_for_state(process.pid, "Z")
        assert not is_dead(identity_of(process.pid))
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kernel", ["0", "feedfeedfeedfeed"])
def test_a_process_of_another_kernel_is_never_called_dead(kernel):
    """Section 3: same boot id and pid namespace; of others nothing is known, and their pids mean nothing here."""
    stranger = replace(current_identity(), kernel=kernel, pid=2**22 - 1, start=1)
    assert not is_same_kernel(stranger)
    assert not is_dead(stranger)


#: Prints its kernel as a machine sees it that has memory, or network cards, of its own, and all else in common with us.
ON_A_CLONE = """
import subprocess, sys
from pathlib import Path
here, seen = map(Path, sys.argv[1:3])
subprocess.run(["mount", "--bind", here, seen], check=True)
code = "from nfsrwlock_core.system.process import current_identity as c; print(c().kernel)"
processes = [subprocess.Popen([sys.executable, "-c", code], stdout=-1, text=True) for _ in range(int(sys.argv[3]))]
print(*{process.communicate()[0].strip() for process in processes})
"""


def kernel_on_a_clone(here: Path, seen: str, processes: int = 1) -> str:
    command = ["unshare", "--mount", sys.executable, "-c", ON_A_CLONE, str(here), seen, str(processes)]
    inside = subprocess.run(command, capture_output=True, text=True)
    if inside.returncode != 0:
        pytest.skip(f"cannot mount in a namespace here: {inside.stderr.strip()[-100:]}")
    return inside.stdout.strip()


def card(directory: Path, name: str, address: str, *, real: bool = True) -> None:
    (directory / name).mkdir()
    (directory / name / "address").write_text(f"{address}\n")
    if real:
        (directory / name / "device").mkdir()


@linux
@pytest.mark.root
def test_machines_from_one_snapshot_are_told_apart_by_the_number_that_each_draws(tmp_path):
    """Section 3: they have the boot id and the host name in common, and a living holder's number means nothing here."""
    kernel = kernel_on_a_clone(tmp_path, "/dev/shm", processes=8)
    assert len(kernel.split()) == 1, "processes on one machine are of one kernel, however many draw at a time"
    assert [file.name for file in tmp_path.iterdir()] == ["nfsrwlock-boot"]
    assert not is_dead(replace(current_identity(), kernel=kernel, pid=2**22 - 1, start=1))
    assert kernel_on_a_clone(tmp_path, "/dev/shm") == kernel
    assert is_dead(replace(current_identity(), pid=2**22 - 1, start=1))


@linux
@pytest.mark.root
def test_machines_are_told_apart_by_their_network_cards(tmp_path):
    """Section 3: also if the number was drawn before the snapshot."""
    card(tmp_path, "eth0", "02:00:00:00:00:01")
    kernel = kernel_on_a_clone(tmp_path, "/sys/class/net")
    assert not is_dead(replace(current_identity(), kernel=kernel, pid=2**22 - 1, start=1))
    card(tmp_path, "veth7", "02:00:00:00:00:07", real=False)  # of a container that has just been started
    assert kernel_on_a_clone(tmp_path, "/sys/class/net") == kernel
    (tmp_path / "eth0" / "address").write_text("02:00:00:00:00:02\n")
    assert kernel_on_a_clone(tmp_path, "/sys/class/net") != kernel


@linux
@pytest.mark.root
@pytest.mark.parametrize("there", ["a link", "damaged", "a pipe"])
def test_a_number_that_cannot_be_trusted_proves_nothing(tmp_path, there):
    """Section 3: anybody may write where it is kept."""
    number = tmp_path / "nfsrwlock-boot"
    if there == "a link":
        (tmp_path / "elsewhere").write_bytes(b"x" * 16)
        number.symlink_to("elsewhere")
    elif there == "damaged":
        number.write_bytes(b"x")
    else:
        os.mkfifo(number)
    assert kernel_on_a_clone(tmp_path, "/dev/shm") == "0"


@linux
def test_a_process_that_is_cloned_itself_learns_of_it(monkeypatch, tmp_path):
    """Section 3: what it knew of its machine from before the snapshot is looked at anew."""
    before = current_identity()
    monkeypatch.setattr(identity, "_CARDS", tmp_path)
    card(tmp_path, "eth0", "02:00:00:00:00:01")
    later = time.monotonic() + 20
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert before.kernel == "0" or not is_same_kernel(before)


@linux
@pytest.mark.parametrize(("value", "answer"), [("", "True"), ("1", "True"), ("0", "False"), ("no", "must be 0 or 1")])
def test_proof_of_death_can_be_switched_off(value, answer):
    """For machines that nothing tells apart."""
    code = (
        "from dataclasses import replace; from nfsrwlock_core.system.process import current_identity as c, is_dead;"
        "print(is_dead(replace(c(), pid=2**22 - 1, start=1)))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NFSRWLOCK_PROVEN_DEAD": value},
        capture_output=True,
        text=True,
    )
    assert answer in process.stdout + process.stderr


def test_a_process_on_a_host_of_another_name_is_never_called_dead():
    """Section 3: two machines may have been copied from one image, with the same boot id for a moment."""
    assert not is_dead(replace(current_identity(), host="elsewhere", pid=2**22 - 1, start=1))


@linux
@pytest.mark.parametrize("pid", [0, 2**22 + 1, 2**31, 2**63, 10**18])
def test_a_number_that_no_process_has_is_no_error(pid):
    """Section 1: names may be damaged or hostile."""
    assert is_dead(replace(current_identity(), pid=pid, start=1))


def failing_to_open(error: OSError):
    """What open() is when /proc/<pid>/stat cannot be had."""

    def fail(*_args, **_settings):
        raise error

    return fail


@linux
@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "hidden"), PermissionError(13, "denied"), OSError(5, "I/O error")]
)
def test_a_process_that_proc_does_not_show_is_not_called_dead(sleeper, monkeypatch, error):
    """Section 3: hidepid= hides processes of other users; the kernel is asked in another way."""
    who = identity_of(sleeper.pid)
    monkeypatch.setattr(identity, "open", failing_to_open(error), raising=False)
    assert not is_dead(who)


@linux
def test_a_process_that_neither_proc_nor_kill_knows_is_dead(sleeper, monkeypatch):
    """Section 3."""
    who = identity_of(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    monkeypatch.setattr(identity, "open", failing_to_open(FileNotFoundError(2, "gone")), raising=False)
    assert is_dead(who)


@linux
def test_a_process_that_ends_while_it_is_looked_at_is_dead(sleeper, monkeypatch):
    """Section 3: reading the stat of a process that has just been reaped says ESRCH."""
    who = identity_of(sleeper.pid)
    monkeypatch.setattr(identity, "open", failing_to_open(ProcessLookupError(3, "no such process")), raising=False)
    assert is_dead(who)


@linux
@pytest.mark.root
@pytest.mark.parametrize(
    ("how", "known"),
    [
        (["--pid", "--fork", "--mount-proc"], True),
        (["--pid", "--fork"], False),
        (["--time", "--boottime", "1000", "--fork"], True),
    ],
    ids=["namespace", "foreign /proc", "other start times"],
)
def test_processes_of_another_namespace_are_of_another_kernel(how, known):
    """Section 3: their numbers, or their start times, mean other processes here."""
    code = "from nfsrwlock_core.system.process import current_identity as c; print(c().kernel)"
    inside = subprocess.run(["unshare", *how, sys.executable, "-c", code], capture_output=True, text=True)
    if inside.returncode != 0:
        pytest.skip(f"cannot make namespaces here: {inside.stderr.strip()[-100:]}")
    kernel = inside.stdout.strip()
    assert kernel != current_identity().kernel
    assert (kernel != "0") is known


#: Prints the kernel that a process sees which is in a new namespace, still looks at the /proc of the old one, and has
#: the same number in both. The next number to be given can be set; others start processes, too, so it tries again.
SAME_NUMBER = """
import ctypes, os, sys
last = "/proc/sys/kernel/ns_last_pid"
def set_last(number):
    with open(last, "w") as file:
        file.write(str(number))
for attempt in range(50):
    number = 20000 + 97 * attempt
    ready, go = os.pipe(), os.pipe()
    if os.fork() == 0:
        if ctypes.CDLL(None).unshare(0x20000000):  # CLONE_NEWPID
            os._exit(1)
        if os.fork() == 0:
            set_last(number)
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            if os.fork() == 0:
                if os.readlink("/proc/self") != str(os.getpid()):
                    os._exit(3)
                from nfsrwlock_core.system.process import current_identity
                print(current_identity().kernel, flush=True)
                os._exit(0)
        os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
    os.close(ready[1])
    if os.read(ready[0], 1):
        set_last(number)
        os.write(go[1], b"x")
    if (code := os.waitstatus_to_exitcode(os.wait()[1])) != 3:
        sys.exit(code)
sys.exit("the numbers never agreed")
"""


@linux
@pytest.mark.root
def test_a_foreign_proc_is_not_taken_for_ones_own_because_the_numbers_agree_by_chance():
    """Section 3: a living peer's number could be that of a younger process there, and the peer be called dead."""
    inside = subprocess.run([sys.executable, "-c", SAME_NUMBER], capture_output=True, text=True)
    if inside.returncode != 0:
        pytest.skip(f"cannot make namespaces, or set numbers in them: {inside.stderr.strip()[-100:]}")
    assert inside.stdout.strip() == "0"


@linux
def test_processes_of_one_namespace_are_of_one_kernel():
    """Section 3: or nobody could ever be evicted at once."""
    code = "from nfsrwlock_core.system.process import current_identity as c; print(c().kernel)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == current_identity().kernel


def test_a_child_has_an_identity_of_its_own():
    """A forked child must not announce itself as its parent."""
    parent = current_identity()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            child = current_identity()
            os.write(writer, repr((child.pid, child.start, child.kernel)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        child_pid, _, kernel = eval(pipe.read())
    os.waitpid(pid, 0)
    assert child_pid == pid != parent.pid
    assert kernel == parent.kernel


def test_the_identity_is_the_same_in_all_threads():
    found = []
    thread = threading.Thread(target=lambda: found.append(current_identity()))
    thread.start()
    thread.join()
    assert found == [current_identity()]


def test_the_host_name_can_be_given_by_the_environment():
    """For machines on which several nodes report one name."""
    code = "from nfsrwlock_core.system.process import current_identity as c; print(c().host, c().pid)"
    process = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "NFSRWLOCK_HOST": "node7"}, capture_output=True, text=True
    )
    assert process.stdout.split()[0] == "node7"


@linux
def test_a_command_with_spaces_and_parentheses_is_read_past(tmp_path):
    """proc(5): the second field is whatever the program calls itself."""
    odd = tmp_path / "a) R 1 (b"
    odd.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(odd), "600"])
    try:
        assert not is_dead(identity_of(process.pid))
    finally:
        process.kill()
        process.wait()
    assert is_dead(replace(current_identity(), pid=process.pid, start=1))
