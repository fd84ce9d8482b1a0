"""Reading of files that may be anything, and text that may hold anything."""

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, assert_one_line, command

from model.files import open_regular
from model.memory import available_memory
from runtime.errors import UserError, printable
from runtime.files import read_json, read_regular
from runtime.log import log_to, start_log


def python(code: str, *arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def test_regular_files_are_read_and_links_to_them(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "file", 3) == read_regular(tmp_path / "link", 3) == b"abc"
    with pytest.raises(UserError, match="3 bytes, expected at most 2"):
        read_regular(tmp_path / "file", 2)


def test_pipes_sockets_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    for name, kind in (("pipe", "a pipe"), ("link", "a device"), ("socket", "a socket")):
        with pytest.raises(UserError, match=f"{name}: is {kind}, expected a regular file"):
            read_regular(tmp_path / name, 10)
    listening.close()


def test_folders_and_missing_files_are_the_systems_errors(tmp_path):
    with pytest.raises(IsADirectoryError), open_regular(tmp_path):
        pass
    with pytest.raises(FileNotFoundError), open_regular(tmp_path / "none"):
        pass


def test_printable_text_is_one_line_that_no_terminal_obeys():
    assert printable("straße 写真 a b.png") == "straße 写真 a b.png"
    assert printable("a\nb\x1b[31m\u202e\udcff\t\x9b") == r"a\nb\x1b[31m\u202e\udcff\t\x9b"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": 1, "a": 2}', "a name stands twice"),
        ('"\\ud800"', "no JSON"),
        ("1" * 10_000, "no JSON"),
        ("{", "no JSON"),
        ("", "no JSON"),
        (b"\xff\xfe", "no JSON"),
    ],
)
def test_json_that_is_none_gets_a_line(tmp_path, text, said):
    path = tmp_path / "table.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=said) as caught:
        read_json(path)
    assert "\n" not in str(caught.value)
    path.write_text("[1, 2]")
    with pytest.raises(UserError, match="expected at most 3"):
        read_json(path, most=3)
    assert read_json(path) == [1, 2]


def memory(root: Path, files: dict[str, str]) -> int | None:
    for name, text in {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8000000 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return available_memory(root)


def test_memory_of_the_machine_and_of_the_control_groups_above(tmp_path):
    """Version 2, nested, as systemd and Slurm make them: the group itself has no limit, one above it has."""
    job = "sys/fs/cgroup/system.slice/job_7"
    assert memory(tmp_path / "none", {}) == 8_000_000 * 1024
    assert memory(
        tmp_path / "nested",
        {
            "proc/self/cgroup": "0::/system.slice/job_7/step_0\n",
            f"{job}/step_0/memory.max": "max\n",
            f"{job}/memory.max": f"{4 << 30}\n",
            f"{job}/memory.current": f"{3 << 30}\n",
            f"{job}/memory.stat": f"anon 1\ninactive_file {1 << 30}\n",
        },
    ) == (2 << 30)


@pytest.mark.parametrize("inside", [False, True])
def test_memory_of_version_1_groups(tmp_path, inside):
    """Of a job on its host, and inside of a container, whose own group is mounted while its path is the host's."""
    group = "sys/fs/cgroup/memory" + ("" if inside else "/slurm/uid_0/job_7")
    files = {
        "proc/self/cgroup": "11:cpu,cpuacct:/\n4:memory:/slurm/uid_0/job_7\n0::/\n",
        f"{group}/memory.limit_in_bytes": f"{4 << 30}\n",
        f"{group}/memory.usage_in_bytes": f"{3 << 30}\n",
        f"{group}/memory.stat": "total_inactive_file 4096\n",
    }
    assert memory(tmp_path, files) == (1 << 30) + 4096
    files[f"{group}/memory.limit_in_bytes"] = "9223372036854771712\n"
    assert memory(tmp_path, files) == 8_000_000 * 1024


def test_memory_that_ulimit_leaves():
    code = "import sys; sys.path.insert(0, 'src'); from model import memory; print(memory.available_memory())"
    limited = f"ulimit -v 6000000; exec {sys.executable} -c {shlex.quote(code)}"
    run = subprocess.run(["bash", "-c", limited], cwd=ROOT, capture_output=True, text=True)
    assert 0 < int(run.stdout) < 6_000_000 * 1024, run.stderr


def test_names_never_reach_terminal_and_log_raw(tmp_path, capsys):
    log = start_log()
    log_to(tmp_path / "log.txt")
    log.info("%s: 2 of %d", "a\nforged line \x1b[2J\udcff.png", 3)
    start_log()
    shown, kept = capsys.readouterr().out, (tmp_path / "log.txt").read_text()
    for text in (shown, kept):
        assert len(text.splitlines()) == 1
        assert r"a\nforged line \x1b[2J\udcff.png: 2 of 3" in text


def test_a_closed_terminal_and_a_full_disk_do_not_end_a_run(tmp_path):
    code = (
        "import sys, os; sys.path.insert(0, 'src'); from runtime import log as logs; from pathlib import Path\n"
        "log = logs.start_log(); logs.log_to(Path(sys.argv[1]))\n"
        "log.info('one'); os.close(1); log.info('two'); log.info('three'); print('alive', file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log.txt")], cwd=ROOT, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "alive\n")
    assert [line.split()[-1] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["one", "two", "three"]
    code = code.replace("os.close(1); ", "")
    run = python(code, "/dev/full")
    assert (run.returncode, run.stderr) == (0, "alive\n")
    assert run.stdout.count("No space left") == 1


def test_a_terminal_that_is_not_utf8_gets_escapes(tmp_path):
    encodings = [os.environ | {"PYTHONIOENCODING": encoding} for encoding in ("ascii", "cp1252")]
    for environment in encodings:
        assert_one_line(command("main.py", "--lr", "写真", env=environment), r"\u5199\u771f")
    run = command("main.py", "--load", "写真", "--dir_experiment", tmp_path, env=encodings[0])
    assert_one_line(run, r"\u5199\u771f")


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "qtagg", "nonsense"])
def test_figures_do_not_ask_for_the_backend_of_a_notebook(backend):
    code = (
        "import sys; sys.path.insert(0, 'src'); from reporting import figures; "
        "print(len(figures.curves([{'epoch': 1, 'loss': 2}])))"
    )
    environment = os.environ | {"MPLBACKEND": backend, "MPLCONFIGDIR": "/proc/none"}
    run = python(code, env=environment)
    assert (run.stdout, run.stderr) == ("2\n", "")
