"""
Builds the conda package from this tree, and runs the recipe's tests: `make conda`, or `make conda CHANNEL=pip`.

The channel is conda-forge, another one by its name or address, or `pip`: then what the recipe asks for comes from
wheels, and `python` is this interpreter's virtual environment. That shows where no channel can be reached that the
recipe builds, not what conda-forge has of these packages.
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from rattler_build import Stage0Recipe, ToolConfiguration

HERE = Path(__file__).parent
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


class Channel:
    """A directory that conda's tools take packages from."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._index: dict[str, dict[str, Any]] = {"noarch": {}, "linux-64": {}}
        for subdirectory in self._index:
            (directory / subdirectory).mkdir(parents=True)

    def add(self, name: str, version: str, depends: list[str], files: dict[str, tuple[bytes, int]], arch: str) -> None:
        """Add a package of ``files``: contents and modes by path. ``arch`` is `noarch` for a pure Python package."""
        is_noarch = arch == "noarch"
        index: dict[str, Any] = {"name": name, "version": version, "build": "0", "build_number": 0, "depends": depends}
        index |= {"subdir": arch} | ({"noarch": "python"} if is_noarch else {})
        paths = [
            {
                "_path": path,
                "path_type": "hardlink",
                "sha256": hashlib.sha256(content).hexdigest(),
                "size_in_bytes": len(content),
            }
            for path, (content, _) in files.items()
        ]
        about = {"info/index.json": index, "info/paths.json": {"paths": paths, "paths_version": 1}}
        if is_noarch:
            about["info/link.json"] = {"noarch": {"type": "python"}, "package_metadata_version": 1}
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            texts = {path: (json.dumps(value).encode(), 0o644) for path, value in about.items()}
            for path, (content, mode) in (texts | files).items():
                member = tarfile.TarInfo(path)
                member.size, member.mode = len(content), mode
                archive.addfile(member, io.BytesIO(content))
        file_name = f"{name}-{version}-0.tar.bz2"
        content = bz2.compress(packed.getvalue(), 1)
        (self.directory / arch / file_name).write_bytes(content)
        self._index[arch][file_name] = index | {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}

    def close(self) -> None:
        """Write what is in it."""
        for subdirectory, packages in self._index.items():
            repodata = {
                "info": {"subdir": subdirectory},
                "packages": packages,
                "packages.conda": {},
                "repodata_version": 1,
            }
            (self.directory / subdirectory / "repodata.json").write_text(json.dumps(repodata))


def channel_of_wheels(directory: Path) -> Channel:
    """Make a channel of this interpreter and of the wheels that pip finds."""
    channel = Channel(directory / "channel")
    wheels = directory / "wheels"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    asked = yaml.safe_load((HERE / "recipe.yaml").read_text())["requirements"]
    wanted = [text for text in asked["host"] + asked["run"] if not text.startswith(("python ", "__"))]
    subprocess.run([*pip, "download", "--only-binary", ":all:", "--dest", wheels, *wanted], check=True)
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            about = Parser().parsestr(archive.read(metadata).decode())
            files = {
                f"site-packages/{name}": (archive.read(name), 0o644)
                for name in archive.namelist()
                if not name.endswith("/") and ".data/" not in name
            }
        required = map(Requirement, about.get_all("Requires-Dist") or [])
        depends = [
            f"{r.name.lower()} {r.specifier}".strip() for r in required if r.marker is None or r.marker.evaluate()
        ]
        name = about["Name"].lower().replace("_", "-")
        channel.add(name, about["Version"], ["python", *depends], files, "noarch")
    environment = directory / "python"
    subprocess.run([sys.executable, "-m", "venv", "--copies", "--without-pip", environment], check=True)
    files = {
        str(path.relative_to(environment)): (path.read_bytes(), path.stat().st_mode & 0o777)
        for path in environment.rglob("*")
        if path.is_file() and "ctivate" not in path.name
    }
    channel.add("python", f"{PYTHON}.{sys.version_info[2]}", [], files, "linux-64")
    channel.close()
    return channel


def main() -> None:
    """Build the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channel", default="conda-forge", help="a channel, or `pip`")
    parser.add_argument("--output", type=Path, default=Path("build/conda"), help="where the package is put")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        channel = options.channel
        if channel == "pip":
            channel = channel_of_wheels(Path(directory).resolve()).directory.as_uri()
        strategy = ToolConfiguration(test_strategy="native")
        for variant in Stage0Recipe.from_file(HERE / "recipe.yaml").render():
            built = variant.run_build(strategy, options.output.resolve(), [channel])
            print("\n".join(built.log), *built.packages, sep="\n")


if __name__ == "__main__":
    main()
