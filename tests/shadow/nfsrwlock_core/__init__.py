"""The real package, whose files lie on a server with outages: see outages.py."""

import os
import sys

_shadow = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_tests = os.path.dirname(_shadow)
_real = next(
    found
    for entry in sys.path
    if os.path.isfile(os.path.join(found := os.path.join(entry, "nfsrwlock_core"), "__init__.py"))
    and not os.path.samefile(entry or ".", _shadow)
)
__path__ = [_real]
with open(os.path.join(_real, "__init__.py"), encoding="utf-8") as _file:
    exec(compile(_file.read(), _file.name, "exec"))

if _tests not in sys.path:
    sys.path.append(_tests)

import outages  # noqa: E402 - it is found beside the shadow

outages.install()

if not sys.flags.no_site:  # the heartbeat helper, which runs without, starts no helper itself
    import nfsrwlock_core.holding.heartbeat_process

    # Where the helper process looks for the package first: here, too.
    nfsrwlock_core.holding.heartbeat_process._ROOT = _shadow
