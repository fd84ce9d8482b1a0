"""What a run is and how to get it again: the code's git commit, versions, hardware, data, and its sessions.

A session is one start of `main.py` that trained; a run that goes on has several. run.json in the run's folder holds
them all, the latest last:

    {
     "format": "KRGN framework run", "version": 1,
     "id": "3f2a...",                                    the same for all sessions; trackers find the run by it
     "sessions": [
      {
       "command": "main.py --save ...", "directory": "/home/me/krgn/src",
       "git commit": "3d81...", "uncommitted changes": false,            null where there is no git checkout
       "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", ...},
       "hardware": {"device": "cpu", "device name": "...", "cores": 8, "processes": 1, "GPUs": 0},
       "data": {"training": [{"set": "DIV2K", "images": 800, "bytes": 3552384120, "digest": "sha256..."}], "test": []},
       "started": "2026-11-28T19:18:12+00:00",
       "from": {"epoch": 0, "batch": 0}, "to": {"epoch": 2, "batch": 0},
       "wall seconds": 12.345, "end": "complete"
      }
     ]
    }

"to" and "wall seconds" are updated whenever the state is saved, so a session that was killed has them too; its "end"
is null.
"""

import functools
import hashlib
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from runtime import distributed
from runtime.errors import Interrupted, UserError
from runtime.files import read_json, write_bytes
from runtime.hardware import processor

log = logging.getLogger("krgn")

FORMAT, VERSION = "KRGN framework run", 1


@functools.cache
def git_commit() -> str:
    """The commit of this code, with "+" if files were changed since; "unknown" outside a git checkout."""
    try:
        said = [
            subprocess.run(
                ["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said[0] + ("+" if said[1] else "")


def uncommitted_changes() -> bool | None:
    """Whether files of the checkout were changed since its commit; None outside a git checkout."""
    return None if git_commit() == "unknown" else git_commit().endswith("+")


def versions() -> dict[str, str]:
    """Versions of what a run's results may depend on."""
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def hardware(device: torch.device, *, n_gpus: int = 1) -> dict:
    """What a run computes on.

    Args:
        n_gpus: GPUs that one process uses.
    """
    processes, on_gpu = distributed.world_size(), device.type == "cuda"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": device.type,
        "device name": torch.cuda.get_device_name(device) if on_gpu else processor(),
        "cores": cores,
        "processes": processes,
        "GPUs": processes * n_gpus if on_gpu else 0,
    }


def file_list(name: str, n_images: int, files: Iterable[tuple[str, Path]]) -> dict:
    """A set of images in a few words: its name, counts, and a SHA-256 over its files' names and sizes, not contents.

    Args:
        files: each file's name in the set, and its path.

    Raises:
        OSError: if one is gone.
    """
    lines, total = [], 0
    for file_name, path in files:
        size = path.stat().st_size
        total += size
        lines.append(f"{file_name}\t{size}\n")
    found = hashlib.sha256("".join(sorted(lines)).encode(errors="surrogateescape"))
    return {"set": name, "images": n_images, "bytes": total, "digest": found.hexdigest()}


def command_line() -> str:
    """The command as it can be pasted into a shell."""
    return shlex.join(sys.argv)


def as_text(options: dict, facts: dict) -> str:
    """config.txt: the command, every option, versions, hardware and data, a line each."""
    lines = [f"command: {command_line()}", f"directory: {os.getcwd()}", ""]
    lines += [f"{name}: {value}" for name, value in options.items()] + [""]
    dirty = uncommitted_changes()
    lines += [f"git commit: {git_commit()}", f"uncommitted changes: {'unknown' if dirty is None else _yes(dirty)}"]
    lines += [f"{name}: {value}" for name, value in versions().items()]
    lines += ["", *(f"{name}: {value}" for name, value in facts.get("hardware", {}).items())]
    if "weights" in facts:
        lines.append(f"weights sha256: {facts['weights']}")
    for role, sets in facts.get("data", {}).items():
        lines += [
            f"{role} set {each['set']}: {each['images']} images, {each['bytes']} bytes, digest {each['digest']}"
            for each in sets
        ]
    return "\n".join(lines) + "\n"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


class RunRecord:
    """run.json. A file that cannot be read is left as it is, with a line in the log, and nothing is recorded.

    Args:
        path: of the file, which need not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self.id = uuid.uuid4().hex[:16]
        self._sessions: list[dict] = []
        self._session: dict | None = None
        self._begun = time.monotonic()
        self._readable = True
        if path.exists():
            self._read()

    def _read(self) -> None:
        try:
            content = read_json(self.path)
            if content["format"] != FORMAT or content["version"] != VERSION:
                raise ValueError
            if not all(isinstance(session, dict) for session in content["sessions"]):
                raise ValueError
            self.id, self._sessions = str(content["id"]), list(content["sessions"])
        except (UserError, ValueError, KeyError, TypeError):
            self._readable = False
            log.warning("%s: is no record of a run: sessions are not recorded: restore or remove it", self.path)

    def begin(self, facts: dict) -> None:
        """Begins a session.

        Args:
            facts: more to record, as "hardware" and "data".
        """
        self._session = {
            "command": command_line(),
            "directory": os.getcwd(),
            "git commit": git_commit().rstrip("+"),
            "uncommitted changes": uncommitted_changes(),
            "versions": versions(),
            **facts,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "from": None,
            "to": None,
            "wall seconds": 0.0,
            "end": None,
        }
        self._begun = time.monotonic()
        self._write()

    def reached(self, epoch: int, batch: int) -> None:
        """The run stands here, the first time of a session when it begins."""
        if self._session is not None:
            here = {"epoch": epoch, "batch": batch}
            self._session["from"] = self._session["from"] or here
            self._session["to"] = here
            self._write()

    @contextmanager
    def ending(self):
        """Inside, the session trains; then its end is recorded, whatever that is."""
        end = "complete"
        try:
            yield
        except Interrupted as interruption:
            end = f"stopped by {interruption}"
            raise
        except BaseException as error:
            end = f"failed: {(str(error).splitlines() or [type(error).__name__])[0]}"
            raise
        finally:
            if self._session is not None:
                self._session["end"] = end
                self._write()

    def _write(self) -> None:
        if not self._readable:
            return
        self._session["wall seconds"] = round(time.monotonic() - self._begun, 3)
        content = {"format": FORMAT, "version": VERSION, "id": self.id, "sessions": [*self._sessions, self._session]}
        try:
            write_bytes(self.path, (json.dumps(content, indent=1) + "\n").encode())
        except UserError as error:  # what is missing there costs no training
            log.warning("%s", error)
