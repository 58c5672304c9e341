"""
Each call of ours that changes something by a path, or follows one, with what stops an attacker.

The attacker is another user who may write the directory that the path lies in, as every member of the group may with
``share="group"``: what lies there may become a symbolic link, or something else, between any two calls of ours.
SECURITY.md says whom a lock trusts; here is how the code keeps that. A call that is not in the table fails the test.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import nfsrwlock_core

SOURCE = Path(nfsrwlock_core.__file__).parent.parent
STORAGE = SOURCE.parent / "packaging" / "snakemake-storage-plugin-nfsrwlock"

#: What changes something by a path, or follows one.
OS = """chdir chmod chown fwalk lchmod lchown link listdir makedirs mkdir mkfifo mknod open remove removedirs
    removexattr rename renames replace rmdir scandir setxattr symlink truncate unlink utime walk"""
SHUTIL = "chown copy copy2 copyfile copymode copystat copytree make_archive move rmtree unpack_archive"
PATH = """chmod glob hardlink_to iterdir lchmod mkdir open read_bytes read_text rename rglob rmdir symlink_to touch
    unlink walk write_bytes write_text"""
#: Objects that have methods of these names and are no paths: each is a ``Files``, such as the doctor's races have.
NO_PATHS = "files self.files self._files scratch.files there"

#: What can be swapped, and what stops it.
INSIDE = "nothing: relative to a descriptor of the lock directory, which was opened with O_NOFOLLOW and checked"
LAST = "the last component, for a link; O_NOFOLLOW refuses it, and its owner and mode are checked by the descriptor"
NAME = "the last component; the call acts on the name itself and follows no link"
MADE = "the directory made, right after; nothing is done to it but by a descriptor, after a check of its mode"
TOKEN = "the directory; our announcement is not in another one, for its random name is known to nobody beforehand"
LOOKS = "what it leads to; it is only looked at, for people, and nothing is decided or changed by it"
OPENS = "what it leads to; it is opened for reading only, and nothing is changed by it"
RMTREE = (
    "the directory, for a link; rmtree refuses it, and goes by descriptors inside. Another directory: see SECURITY.md"
)
WALK = "directories on the way, for links; they are not followed"
DATA = "the data itself: whoever may write its directory is trusted with it, see SECURITY.md"
NEW = "the file, for a link; O_EXCL and O_NOFOLLOW follow none"
SYSTEM = "nothing: below a directory of the system's that only root can replace"
NUMBER = "a number of another user's: at worst nobody is proven dead, or clones are told apart by the rest only"
SCRATCH = "nothing: below the scratch directory, by a descriptor of it, which was opened with O_NOFOLLOW and checked"
JOURNAL = "nothing: in the worker's own local directory"
RECORD = (
    "the file, for a link; O_NOFOLLOW refuses it. What a made-up record says is believed of the job's own files only"
)
WAITS = "the directory, whose name is random; at worst a text of ours lands elsewhere in a new file, or another is said"
PRIVATE = "nothing: in the user's own directory of copies"
OWN = "nothing: a file of this package"
TRACED = "the directory that the user named; the record goes into another one then, and is appended to what is no link"

TABLE = {
    "nfsrwlock_core/trace.py": {
        "os.makedirs(self._directory, exist_ok=True)": TRACED,
        "os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 438)": TRACED,
    },
    "nfsrwlock_core/system/mounts.py": {
        "open(f'{_PROC}/{name}', errors='surrogateescape')": SYSTEM,
        "os.open(directory, _OPEN_FLAGS)": LOOKS,
    },
    "nfsrwlock_core/system/directory.py": {
        "os.mkdir(path, mode)": MADE,
        "_open(path, _LIST_FLAGS)": LAST,
        "os.open(path, _LIST_FLAGS)": LAST,
        "_open(self.path, _OPEN_FLAGS)": LAST,
        "os.listdir(self.path)": TOKEN,
        "os.scandir(os.path.dirname(self.path))": LOOKS,
        "os.rmdir(directory)": NAME,
        "os.open(name, flags, dir_fd=dir_fd)": LAST,
        "os.mkdir(name, _GROUP_MODE if self.share == 'group' else _USER_MODE, dir_fd=here)": INSIDE,
        "os.rmdir(name, dir_fd=here)": INSIDE,
        "os.rmdir(self.path)": NAME,
        "os.rmdir(half_made)": NAME,
        "_open(name, flags, here)": INSIDE,
        "_open(self.path, _LIST_FLAGS)": LAST,
        "os.rename(last, new.rpartition('/')[2], src_dir_fd=parent, dst_dir_fd=parent)": INSIDE,
        "os.unlink(last, dir_fd=parent)": INSIDE,
        "os.chmod('.', _GROUP_MODE, dir_fd=parent)": INSIDE,
        "os.mkdir(probe, _USER_MODE, dir_fd=self._fd)": INSIDE,
        "os.rmdir(probe, dir_fd=self._fd)": INSIDE,
        "os.symlink(record or _NO_RECORD, name, dir_fd=dir_fd)": INSIDE,
        "os.symlink(_NO_RECORD, name, dir_fd=dir_fd)": INSIDE,
        "os.open(name, flags, 384, dir_fd=dir_fd)": INSIDE,
    },
    "nfsrwlock_core/system/process.py": {
        "os.open(_SHARED_MEMORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)": SYSTEM,
        "os.open(_NUMBER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)": NUMBER,
        "os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 292, dir_fd=directory)": NEW,
        "os.link(draft, _NUMBER, src_dir_fd=directory, dst_dir_fd=directory)": NUMBER,
        "os.unlink(draft, dir_fd=directory)": NAME,
        "os.listdir(_CARDS)": SYSTEM,
        "open(f'{_CARDS}/{card}/address', encoding='ascii')": SYSTEM,
    },
    "nfsrwlock_core/system/listing.py": {
        "os.listdir(fd)": INSIDE,
    },
    "nfsrwlock_core/inspection.py": {
        "os.listdir(directory)": LOOKS,
    },
    "nfsrwlock_core/pruning.py": {
        "os.scandir(top)": LOOKS,
        "os.walk(top)": WALK,
        "os.rmdir(generation_name(number), dir_fd=fd)": TOKEN,
    },
    "integrations/nfsrwlock/cli/app.py": {
        "open(descriptor, 'w' if descriptor else 'r', closefd=False)": "nothing: a descriptor",
    },
    "integrations/nfsrwlock/doctor/examination.py": {"os.unlink(path)": NAME},
    "integrations/nfsrwlock/doctor/scratch.py": {
        "os.mkdir(path, 448)": MADE,
        "os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)": LAST,
        "shutil.rmtree('.', ignore_errors=True, dir_fd=self.fd)": INSIDE,
        "os.rmdir(path)": NAME,
        "os.rmdir(self.path)": NAME,
        "os.listdir(home)": LOOKS,
        "open(path, encoding='utf-8')": SCRATCH,
        "open(path, 'w', encoding='utf-8')": SCRATCH,
    },
    "integrations/nfsrwlock/cli/run.py": {"open(script, 'rb')": OPENS},
    "integrations/nfsrwlock/directories.py": {"os.makedirs(self.path, exist_ok=True)": DATA},
    "integrations/nfsrwlock/fetching.py": {
        "os.rename(mine, target)": NAME,
        "os.rename(target, aside)": NAME,
        "os.rename(aside, target)": NAME,
        "os.listdir(target.parent)": DATA,
        "shutil.rmtree": RMTREE,
        "os.unlink": NAME,
    },
    "integrations/nfsrwlock/freshness.py": {
        "os.open(path, os.O_RDONLY | os.O_CLOEXEC)": OPENS,
        "os.scandir(directory)": OPENS,
    },
    "integrations/nfsrwlock/joblib/store.py": {
        "shutil.rmtree(directory, ignore_errors=True)": RMTREE,
        "os.walk(os.path.join(self.location, func_id))": WALK,
        "os.walk(top, topdown=False)": WALK,
        "os.replace(begun, filename)": NAME,
        "os.unlink(os.path.join(directory, _OUTPUT))": NAME,
        "os.symlink(self.granularity, marker)": NAME,
        "os.rmdir(directory)": NAME,
        "os.unlink(begun)": NAME,
        "os.unlink(os.path.join(directory, name))": NAME,
    },
    "integrations/nfsrwlock/snakemake/publish.py": {
        "os.makedirs(directory)": DATA,
        "os.listdir(place)": DATA,
        "os.listdir(directory)": DATA,
        "os.replace(private, final)": NAME,
        "os.rename(source, target)": NAME,
        "os.rename(target, source)": NAME,
        "os.scandir(directory)": DATA,
        "os.rmdir(os.path.dirname(directory))": NAME,
        "os.utime(path, follow_symlinks=False)": NAME,
        "shutil.rmtree(directory, ignore_errors=True)": RMTREE,
        "open(private, 'x', encoding='ascii')": NEW,
        "open(path, 'x', encoding='ascii')": NEW,
    },
    "integrations/nfsrwlock/snakemake/messages.py": {
        "Path(directory).mkdir(exist_ok=True)": WAITS,
        "Path(directory).glob('*')": WAITS,
        "Path(directory, f'{seconds:015.3f}.{secrets.token_hex(8)}').write_text(text, errors='replace')": WAITS,
        "wait.read_text()": WAITS,
        "shutil.rmtree(directory, ignore_errors=True)": RMTREE,
    },
    "integrations/nfsrwlock/snakemake/hook.py": {"os.walk(top, topdown, **options)": DATA},
    "integrations/nfsrwlock/snakemake/unfinished.py": {
        "open(record_of(lock), 'w', encoding='utf-8', opener=_no_link)": RECORD,
        "open(record, encoding='utf-8', opener=_no_link)": RECORD,
        "os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 438)": RECORD,
        "os.unlink(record_of(lock))": NAME,
        "os.walk(path)": DATA,
        "os.rename(path, aside)": NAME,
        "os.unlink(aside)": NAME,
        "shutil.rmtree(aside, ignore_errors=True)": RMTREE,
    },
    "snakemake_storage_plugin_nfsrwlock/__init__.py": {
        "os.makedirs(os.path.dirname(self.query), exist_ok=True)": DATA,
        "shutil.copy2(source, place)": DATA,
        "shutil.copytree(source, place, ignore=_not_data)": DATA,
        "os.walk(place)": WALK,
        "os.chmod(directory, os.stat(directory).st_mode | 448)": DATA,
        "os.utime(path, ns=(stamp, stamp))": DATA,
        "shutil.rmtree(copy, ignore_errors=True)": RMTREE,
        "copy.unlink()": NAME,
        "claim.parent.mkdir(parents=True, exist_ok=True)": PRIVATE,
        "os.symlink(mine, claim)": NAME,
        "note.read_text()": PRIVATE,
        "note.parent.mkdir(parents=True, exist_ok=True)": PRIVATE,
        "note.write_text(_identity(self.query))": PRIVATE,
    },
    "integrations/nfsrwlock/dask/journal.py": {
        "os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 384)": JOURNAL,
        "open(path, encoding='ascii')": JOURNAL,
        "os.unlink(path)": JOURNAL,
    },
}


def test_each_call_that_goes_by_a_path_is_in_the_table() -> None:
    found = {(module, call) for module, call in calls()}
    listed = {(module, call) for module, rows in TABLE.items() for call in rows}
    assert sorted(found - listed) == [], "say what an attacker can swap, and what stops it"
    assert sorted(listed - found) == [], "these calls are gone"


def test_the_table_would_miss_no_way_of_writing_a_call() -> None:
    text = "os.chmod(p, 1); shutil.move(p, q); open(p, 'w'); Path(p).write_text(''); p.touch(); remove = os.unlink"
    assert list(calls_in(text)) == [
        "os.chmod(p, 1)",
        "shutil.move(p, q)",
        "open(p, 'w')",
        "Path(p).write_text('')",
        "p.touch()",
        "os.unlink",
    ]
    assert list(calls_in("files.mkdir('x'); open('/proc/self/stat'); os.listdir('/dev/fd')")) == []


def calls() -> Iterator[tuple[str, str]]:
    for top in (SOURCE, STORAGE):
        for file in sorted(top.rglob("*.py")):
            for call in calls_in(file.read_text()):
                yield file.relative_to(top).as_posix(), call


def calls_in(text: str) -> Iterator[str]:
    """Each call of a function that goes by a path; and each such function that is not called but handed on."""
    called = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            called.add(node.func)
            if is_by_path(node.func) and not (node.args and is_of_the_system(node.args[0])):
                yield ast.unparse(node)
        elif isinstance(node, ast.Attribute) and node not in called:  # a call comes before what it calls
            text = ast.unparse(node)
            if text.startswith(("os.", "shutil.")) and is_by_path(node):
                yield text


def is_by_path(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id in ("open", "_open")
    if not isinstance(function, ast.Attribute):
        return False
    owner = ast.unparse(function.value)
    names = {"os": OS, "shutil": SHUTIL}.get(owner, "" if owner in NO_PATHS.split() else PATH)
    return function.attr in names.split()


def is_of_the_system(path: ast.expr) -> bool:
    """Whether only root can change what it leads to."""
    text = ast.unparse(path).removeprefix("f").strip("'\"")
    return text in ("os.devnull", "/", "/proc") or text.startswith(("/proc/", "/dev/"))
