"""The archives the small models' data comes from: pinned versions, downloads and safe reading.

Nothing is unpacked to disk: members are read into memory one by one, and an archive that holds an
absolute or climbing path is refused as a whole.
"""

import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

# Three drawings of the same emoji, and their licences. Their order has a part in which one is held out of which name.
EMOJI_STYLES = {"noto": "Apache-2.0", "twemoji": "CC-BY-4.0", "openmoji": "CC-BY-SA-4.0"}


@dataclass(frozen=True)
class Source:
    """One pinned package: a tarball of npm or a Debian package.

    Args:
        package: Name of the package in its registry.
        version: Exact version, checked again inside the downloaded archive.
        file_name: Name the registry's client gives to the download.
        sha256: Digest of the download.
    """

    package: str
    version: str
    file_name: str
    sha256: str

    @property
    def is_debian(self) -> bool:
        return self.file_name.endswith(".deb")


def run_client(command: list[str], folder: Path) -> None:
    """Runs npm or apt-get in `folder`, with an error that says what is missing."""
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"`{command[0]}` was not found, but `{' '.join(command)}` needs it. Install it, or put "
                           f"the package's file into {folder} yourself.")  # fmt: skip
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"`{' '.join(command)}` failed with status {result.returncode}: {result.stderr.strip()}")


def fetch(source: Source, cache: Path) -> Path:
    """Returns the path of the source's archive in `cache`, downloading it where it is not there yet."""
    path = cache / source.file_name
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pinned = f"{source.package}={source.version}" if source.is_debian else f"{source.package}@{source.version}"
        run_client(["apt-get", "download", pinned] if source.is_debian else ["npm", "pack", "--silent", pinned], cache)
    if not path.exists():
        raise RuntimeError(f"The download of {source.package} {source.version} did not produce {path}.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != source.sha256:
        raise ValueError(f"{path} has the SHA-256 {digest}, expected {source.sha256}: delete it and run again.")
    return path


def check_member_name(name: str) -> str:
    """Returns the member's normalised name, and raises for one that points outside the archive's own folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"The archive holds the unsafe path {name!r}; refusing to read it.")
    return path.as_posix()


def read_members(archive: tarfile.TarFile, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Reads the regular files whose names `wanted` accepts; links and devices are passed over.

    Returns:
        Contents by member name, in the order of the names.
    """
    contents = {}
    for member in archive:
        name = check_member_name(member.name)
        if member.isfile() and wanted(name):
            contents[name] = archive.extractfile(member).read()
    return dict(sorted(contents.items()))


def read_npm(source: Source, cache: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Reads the wanted files of an npm tarball (names without `package/`) and checks its version."""
    with tarfile.open(fetch(source, cache), "r:gz") as archive:
        members = read_members(
            archive, lambda name: name == "package/package.json" or wanted(name.removeprefix("package/"))
        )
    contents = {name.removeprefix("package/"): content for name, content in members.items()}
    found = json.loads(contents["package.json"])
    if (found["name"], found["version"]) != (source.package, source.version):
        raise ValueError(f"Expected {source.package} {source.version}, got {found['name']} {found['version']}.")
    return contents


def read_debian(source: Source, cache: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Reads the wanted files of a Debian package, always with its copyright file, and checks its version."""
    path = fetch(source, cache)
    if shutil.which("dpkg-deb") is None:
        raise RuntimeError("`dpkg-deb` was not found: the photographs come from Debian packages and need it.")
    fields = subprocess.run(["dpkg-deb", "-f", path, "Version"], check=True, capture_output=True, text=True)
    if fields.stdout.strip() != source.version:
        raise ValueError(f"Expected {source.package} {source.version}, got {fields.stdout.strip()}.")
    data = subprocess.run(["dpkg-deb", "--fsys-tarfile", path], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(data)) as archive:
        return read_members(archive, lambda name: name.endswith("/copyright") or wanted(name))


def hash_fraction(text: str) -> float:
    """Maps a text to a fixed number in [0, 1): the same on every machine, so that splits never move."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
