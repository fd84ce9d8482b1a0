"""The house rules: who may import whom, no side effects of imports, and a README whose commands are real."""

import ast
import re
import shlex
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT, SRC

import bench
import compare
import export
import kl
import prepare
import report
import subimages
import upscale
from option import build_parser
from studies import ablation, degrade, demo, verify_resume

# Which packages a package may import besides itself; docs/architecture.md has the same table. Commands, which are the
# modules right in src/, may import anything but one another.
MAY_IMPORT = {
    "model": set(),  # it is installed under another name, alone
    "runtime": {"model"},
    "loss": {"model", "runtime"},
    "option": {"model", "loss", "runtime"},
    "data": {"model", "runtime"},
    "evaluation": {"data", "model", "runtime"},
    "reporting": {"data", "evaluation", "model", "runtime"},
    "deploy": {"data", "evaluation", "model", "reporting", "runtime"},
    "train": {"data", "deploy", "evaluation", "loss", "model", "reporting", "runtime"},
    "speed": {"data", "evaluation", "model", "reporting", "runtime", "train"},
    "studies": {"data", "deploy", "evaluation", "model", "option", "reporting", "runtime", "train"},
}
STANDS_ALONE = {"evaluation", "evaluation.metrics"}  # the protocol, which imports none of ours and is for all
FILES = sorted(SRC.rglob("*.py"))
MODULES = {".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
COMMANDS = {module for module in MODULES if "." not in module} - MAY_IMPORT.keys()


def imports(path: Path) -> set[str]:
    """The modules of src/ that a file imports, wherever in it."""
    package = list(path.relative_to(SRC).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            name = ".".join([*above, *([node.module] if node.module else [])])
            found |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
    return found & MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    own = module.split(".")[0]
    for other in imports(MODULES[module]):
        package = other.split(".")[0]
        if package != own:
            assert package not in COMMANDS, f"{module} imports the command {other}"
            allowed = module in COMMANDS or package in MAY_IMPORT[own] or other in STANDS_ALONE
            assert allowed, f"{module} imports {other}"
    if module in STANDS_ALONE:
        assert not imports(MODULES[module])


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: imports(path) - {module} for module, path in MODULES.items()}
    for package in ("model", "model.cffb", "data"):  # whose modules their own __init__.py gathers
        for module in graph:
            graph[module] -= {package} if module.startswith(package + ".") else set()
    tuple(TopologicalSorter(graph).static_order())  # CycleError names the modules


def test_importing_has_no_side_effects(tmp_path):
    """Every module is imported in a folder of its own, with arguments that would be a mistake: nothing happens."""
    code = f"import sys; sys.path.insert(0, {str(SRC)!r}); sys.argv = ['x', '--wrong']; import {', '.join(MODULES)}"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_commands_that_run_networks_request_the_fused_operators():
    """What imports networks and is a command; in a library's first forward pass nothing is built."""
    programs = {module: path for module, path in MODULES.items() if module in COMMANDS or module.startswith("studies.")}
    without_networks = {"model.weights", "model.files", "model.memory", "model.errors", "model.names", "model"}
    running = [
        path
        for path in programs.values()
        if any(name.startswith("model.") for name in imports(path) - without_networks)
    ]
    assert {path.stem for path in running} >= {"main", "export", "kl", "compare", "ablation", "demo"}
    for path in [*running, SRC / "speed/worker.py"]:  # bench.py runs them in workers
        if path.stem == "bench":
            continue
        assert "    cffb.build_when_needed()\n" in path.read_text(), path.name


# Underscores elsewhere than in torch: argparse, tarfile, and what os and NamedTuple publish under such names.
OTHERS_PRIVATE = {"_exit", "_replace", "_asdict", "_actions", "_StoreTrueAction", "_print_message", "_proc_member"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_private_interfaces_of_torch_stand_in_compat(path):
    found, own = set(), {"self", "cls"}
    tree = ast.parse(path.read_text())
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in own):
                found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and re.match(r"torch\..*\b_", node.module or ""):
            found.add(node.module)
    if path == SRC / "model/compat.py":
        assert len(found) > 10
    else:
        assert not found - OTHERS_PRIVATE


def test_flags_are_answered_before_anything_heavy_is_imported():
    code = "import sys; sys.path.insert(0, 'src'); import main; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- README ---

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "experiment/README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
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
    "subimages.py": subimages.build_parser,
    "bench.py": bench.build_parser,
    "upscale.py": upscale.build_parser,
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
    _parse(Path(words[at]).name, [word for word in words[at + 1 :] if word not in ('"$@"', "$@")])


def _parse(name: str, arguments: list[str]) -> None:
    """Has a command read its arguments; SystemExit if it refuses them."""
    if name == "main.py":
        from option import parse_args

        parse_args(arguments)
    else:
        PARSERS[name]().parse_args(arguments)


@pytest.mark.parametrize("name", PARSERS)
def test_help_ends_with_examples_that_parse(name):
    """Each is a command line for src/, which the command's own parser takes."""
    parser = PARSERS[name]()
    lines = parser.examples
    assert 2 <= len(lines) <= 4
    start = ["python", name] if name.endswith(".py") else ["python", "-m", name]
    ending = parser.format_help().rstrip().splitlines()[-len(lines) - 1 :]
    assert ending == ["examples, in src/:", *(f"  {line}" for line in lines)]
    for line in lines:
        words = shlex.split(line)
        assert words[: len(start)] == start
        _parse(name, words[len(start) :])
    for word in (
        word for line in lines for word in line.split() if word.startswith(("../imgs/", "../experiment/KRGN_"))
    ):
        assert (SRC / word).is_file(), word


@pytest.mark.parametrize("name", PARSERS)
def test_a_usage_error_is_one_line(name, capsys):
    for arguments in (["--no_such_flag"], ["--no_such_flag", "one\ntwo"]):
        with pytest.raises(SystemExit) as ended:
            _parse(name, arguments)
        assert ended.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
        assert err.startswith(name.removesuffix(".py"))
        assert "--help" in err


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


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings have on GitHub."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_what_the_pages_name_exists():
    links = 0
    for page in PAGES:
        for name, anchor in re.findall(r"\[[^\]]*\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
            target = page.parent / name if name else page
            assert target.exists(), (page.name, name)
            assert not anchor or anchor in anchors(target), (page.name, name, anchor)
            links += 1
    assert links > 10
    for name in re.findall(r"(?:scripts/\w+\.sh|tests/\w+/\w+\.py)", TEXT) + re.findall(r"`(src/[\w/]+\.py)`", TEXT):
        assert (ROOT / name).is_file(), name


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 12 * 1024


def test_shell_commands_are_in_bash_blocks():
    """`commands` reads these alone."""
    for page in PAGES:
        fences = re.findall(r"^```(\w*)$", page.read_text(), flags=re.M)
        assert len(fences) % 2 == 0, page.name
        assert set(fences[::2]) <= {"bash", "python", "text", "bibtex"}, (page.name, fences[::2])
        for block in re.findall(r"^```text\n(.*?)```", page.read_text(), flags=re.S | re.M):
            assert not re.search(r"^ *(python|bash|pip|cd) ", block, flags=re.M), (page.name, block)


def test_the_architecture_page_shows_every_folder():
    tree = (ROOT / "docs/architecture.md").read_text().split("## The layout")[1].split("## What may import what")[0]
    folders = {path.name for path in SRC.rglob("*") if path.is_dir() and list(path.glob("*.py"))}
    assert folders <= set(re.findall(r"(\w+)/", tree)), folders
    for name in re.findall(r"^  (?:\w+\.py ?)+", tree, flags=re.M):
        assert all((SRC / word).is_file() for word in name.split()), name


def test_scripts_are_valid_bash():
    for path in sorted((ROOT / "scripts").glob("*.sh")):
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_the_licence_is_mit():
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
