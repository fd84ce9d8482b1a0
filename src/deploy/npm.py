"""A pinned package of the npm registry, kept in the user's cache folder.

Only a package whose SHA-512 is the one written here is used, wherever it comes from.
"""

import base64
import hashlib
import http.client
import io
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UserError
from runtime.files import write_bytes

log = logging.getLogger("krgn")

REGISTRY = "https://registry.npmjs.org"
TIMEOUT = 60  # seconds without an answer of the registry
LONGEST = 600  # seconds that npm may take


@dataclass(frozen=True)
class Package:
    """A version of a package.

    Args:
        integrity: of its archive, as the registry and lock files give it: "sha512-" and base64.
    """

    name: str
    version: str
    integrity: str

    @property
    def archive(self) -> str:
        """The archive's file name."""
        return f"{self.name}-{self.version}.tgz"

    def is_archive(self, content: bytes) -> bool:
        """Whether these bytes are the archive."""
        return self.integrity == "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()


def cache_folder() -> Path:
    """Where packages are kept: krgn/ in `XDG_CACHE_HOME`, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "krgn"


def package_files(package: Package, names: tuple[str, ...]) -> dict[str, bytes]:
    """The content of files of a package, by their paths inside it.

    Raises:
        UserError: if the package is neither cached nor can be downloaded, or is not the one that is pinned.
    """
    with tarfile.open(fileobj=io.BytesIO(_archive(package))) as archive:
        return {name: archive.extractfile(f"package/{name}").read() for name in names}


def _archive(package: Package) -> bytes:
    path = cache_folder() / package.archive
    try:
        content = path.read_bytes()
        if package.is_archive(content):
            return content
        log.warning("%s: is damaged; it is downloaded again", path)
    except OSError:  # it is not there, or cannot be read
        pass
    log.info("downloading %s %s from npm, once; it is kept in %s", package.name, package.version, path.parent)
    try:
        content = _packed_by_npm(package) if shutil.which("npm") else _downloaded(package)
    except (OSError, ValueError, subprocess.SubprocessError, http.client.HTTPException) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else None
        reason = (said or str(error)).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"--formats web: {package.archive} is not in {path.parent} and cannot be downloaded ({reason[0][:200]}): "
            f"connect to the network, or put the file there from where `npm pack {package.name}@{package.version}` runs"
        ) from None
    if not package.is_archive(content):
        raise UserError(
            f"--formats web: the registry gave a {package.archive} with another SHA-512 than the one that is pinned "
            f"({package.integrity[:20]}…): check the network's proxy and npm's registry"
        )
    try:
        write_bytes(path, content)
    except (OSError, UserError) as error:  # a home that cannot be written to costs the next export a download
        log.warning("%s is not kept: %s", package.archive, error)
    return content


def _packed_by_npm(package: Package) -> bytes:
    """The archive by npm, which knows the user's registry and proxy."""
    with tempfile.TemporaryDirectory() as folder:
        line = ["npm", "pack", f"{package.name}@{package.version}", "--pack-destination", folder]
        flags = ["--silent=false", "--loglevel=error", "--fetch-retries=1"]
        if os.name == "nt":
            line[0] = shutil.which("npm")  # a script, which Windows does not find by its bare name
        subprocess.run([*line, *flags], check=True, capture_output=True, text=True, timeout=LONGEST, cwd=folder)
        return (Path(folder) / package.archive).read_bytes()


def _downloaded(package: Package) -> bytes:
    with urllib.request.urlopen(f"{REGISTRY}/{package.name}/-/{package.archive}", timeout=TIMEOUT) as answer:
        return answer.read()
