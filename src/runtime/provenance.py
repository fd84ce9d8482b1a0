"""Which code this is: the git commit of the checkout."""

import functools
import subprocess
from pathlib import Path


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
