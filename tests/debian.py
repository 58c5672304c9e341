"""
What a lab needs of the machine it runs on: root, and programs that Debian packages bring.

Needs nothing but the standard library, for labs are also started by hand, by any Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence


class LabError(Exception):
    """The lab cannot do what it was asked for."""

    #: For the command line.
    code = 1


class Unavailable(LabError):
    """This machine cannot run a lab. The codes are those of sysexits.h."""

    code = 69


class NotRootError(Unavailable):
    """Namespaces and mounts need root."""

    code = 77


def require(lab: str, missing: Callable[[], Sequence[str]]) -> None:
    """
    Do nothing where a lab can be started.

    :param lab: the command that starts it by hand
    :param missing: returns the programs that it needs and this machine has not
    :raises Unavailable: with the remedy, where none can
    """
    if os.geteuid() != 0:
        raise NotRootError(f"{lab} makes namespaces: run it as root")
    if names := missing():
        raise Unavailable(f"{lab} misses {', '.join(names)}: run `python3 {lab} install`")


def install(lab: str, missing: Callable[[], Sequence[str]], packages: Sequence[str]) -> None:
    """
    Install what is missing, with apt-get. No service is started.

    :raises Unavailable: it cannot be installed
    """
    if os.geteuid() != 0:
        raise NotRootError(f"installing what {lab} needs takes root")
    if not (names := missing()):
        return
    if shutil.which("apt-get") is None:
        raise Unavailable(f"{lab} misses {', '.join(names)}, and there is no apt-get to install them")
    # At run level 1 invoke-rc.d starts no service.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if subprocess.call(command, env=environment) != 0:  # the package lists may be missing or old
        subprocess.call(["apt-get", "update"], env=environment)
        subprocess.call(command, env=environment)
    if names := missing():
        raise Unavailable(f"apt-get did not install {', '.join(names)}")
