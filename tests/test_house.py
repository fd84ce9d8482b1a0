"""The house rules: who may import whom, no side effects of imports, and a README whose commands are real."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SRC

import bench
import compare
import export
import kl
import prepare
import report
from option import build_parser
from studies import ablation, degrade, demo, verify_resume

# From the bottom up: a module may import those of the lines above its own, and its own package.
PACKAGES = {"train", "evaluation", "deploy", "reporting", "runtime", "studies"}  # whose modules are of different levels
LEVELS = [
    PACKAGES,  # their __init__.py
    {"runtime.errors", "runtime.provenance", "evaluation.metrics", "reporting.figures", "train.tensorboard"},
    {"option", "runtime.distributed", "runtime.files", "model", "train.optim"},
    {"runtime.hardware", "runtime.log", "runtime.tensor_files", "train.statecheck", "loss"},
    {"deploy.fold", "reporting.tables", "reporting.results", "reporting.output", "evaluation.runner"},
    {"data", "runtime.experiment"},
    {"deploy.formats", "evaluation.pictures", "evaluation.sets", "reporting.comparison"},
    {"evaluation.evaluate", "reporting.crop_figure", "reporting.page"},
    {"train.trainer"},
    {"main", "export", "kl", "prepare", "compare", "report", "bench"}
    | {"studies.ablation", "studies.degrade", "studies.demo", "studies.verify_resume"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FILES = sorted(SRC.rglob("*.py"))


def room_of(path: Path) -> str:
    return room(".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"))


def room(module: str) -> str:
    """A package stands for its modules, but for those of `PACKAGES`."""
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] in PACKAGES else 1])


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {room(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {room(node.module), *(room(f"{node.module}.{alias.name}") for alias in node.names)}
    return found & LEVEL.keys()


def test_every_room_has_its_level():
    assert {room_of(path) for path in FILES} == LEVEL.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_point_down(path):
    own = room_of(path)
    for other in imports(path) - {own}:
        assert LEVEL[other] < LEVEL[own], f"{path.name} imports {other}"
    if own in ("model", "evaluation.metrics"):
        assert not imports(path) & {"data", "option", "runtime.files", "runtime.experiment"}
    if own == "option":
        assert not imports(path) - {"option", "runtime", "runtime.errors"}


def test_importing_has_no_side_effects(tmp_path):
    """Every room is imported in a folder of its own, with arguments that would be a mistake: nothing happens."""
    rooms = [".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__") for path in FILES]
    code = f"import sys; sys.path.insert(0, {str(SRC)!r}); sys.argv = ['x', '--wrong']; import {', '.join(rooms)}"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_flags_are_answered_before_anything_heavy_is_imported():
    code = "import sys; sys.path.insert(0, 'src'); import main; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- README ---

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(path.read_text() for path in PAGES)


def commands() -> list[str]:
    """The lines of every bash block in the README, docs/ and scripts/, continuation lines joined, comments dropped."""
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.S)
    blocks += [path.read_text() for path in sorted((ROOT / "scripts").glob("*.sh"))]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


PARSERS = {
    "main.py": build_parser,
    "export.py": export.build_parser,
    "kl.py": kl.build_parser,
    "studies.demo": demo.build_parser,
    "studies.degrade": degrade.build_parser,
    "compare.py": compare.build_parser,
    "prepare.py": prepare.build_parser,
    "report.py": report.build_parser,
    "bench.py": bench.build_parser,
    "studies.ablation": ablation.build_parser,
    "studies.verify_resume": verify_resume.build_parser,
}
PROGRAM_LINES = [line for line in commands() if any(re.search(rf"(^|[ /]){name}( |$)", line) for name in PARSERS)]


def test_the_pages_have_commands_of_every_program():
    for name in PARSERS:
        assert any(name in line for line in PROGRAM_LINES), name
    assert len(PROGRAM_LINES) >= 15


@pytest.mark.parametrize("line", PROGRAM_LINES)
def test_every_command_parses(line):
    words = shlex.split(line, comments=True)
    at = next(index for index, word in enumerate(words) if word.endswith(".py") or word.startswith("studies."))
    arguments = [word for word in words[at + 1 :] if word not in ('"$@"', "$@")]
    parser = PARSERS[Path(words[at]).name]()
    if Path(words[at]).name == "main.py":
        from option import parse_args

        parse_args(arguments)
    else:
        parser.parse_args(arguments)


def test_tilde_is_expanded_in_every_program(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    for name, builder in PARSERS.items():
        for action in builder()._actions:
            if action.metavar in ("DIR", "FILE", "STEM", "SOURCE") and name != "main.py":
                assert action.type is not None, (name, action.dest)
                assert action.type("~/x") == "/somewhere/x", (name, action.dest)
    from option import parse_args

    args = parse_args(["--dir_experiment=~/x", "--dir_data=~/y", "--pre_train=~/z.pt"])
    assert (args.dir_experiment, args.dir_data, args.pre_train) == ("/somewhere/x", "/somewhere/y", "/somewhere/z.pt")


def test_what_the_pages_name_exists():
    links = 0
    for page in PAGES:
        for name in re.findall(r"\[[^\]]*\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / name).exists(), (page.name, name)
            links += 1
    assert links > 10
    for name in re.findall(r"(?:scripts/\w+\.sh|tests/\w+/\w+\.py)", TEXT) + re.findall(r"`(src/[\w/]+\.py)`", TEXT):
        assert (ROOT / name).is_file(), name


def test_scripts_are_valid_bash():
    for path in sorted((ROOT / "scripts").glob("*.sh")):
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_the_licence_is_mit():
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
