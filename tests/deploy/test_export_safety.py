"""Exports that others changed: nothing in them runs, nothing outside their folder is read, each failure is one line."""

import io
import json
import multiprocessing
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import randomise

import export
from deploy import isolated
from deploy.context import ExportContext
from deploy.program import read_program, write_program
from model.checkpoint import pack
from model.krgn import KRGN
from model.recalibration import fold
from runtime.errors import UserError, printable
from runtime.files import digest, save_tensors

SHAPE = {"scale": 2, "n_feats": 8, "n_resgroups": 1, "groups": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A program of a small network, made once."""
    path = tmp_path_factory.mktemp("program") / "KRGN.pt2"
    write_program(fold(randomise(KRGN(**SHAPE))).eval(), path, ExportContext(torch.rand(1, 3, 20, 24), "words"))
    return path


class Runs:
    """What touches a file when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def changed(source: Path, target: Path, changes: dict, compression=zipfile.ZIP_STORED) -> Path:
    """A copy of an archive with members replaced or added (bytes), or changed by a function of their JSON."""
    with zipfile.ZipFile(source) as archive:
        root = archive.namelist()[0].split("/")[0]
        members = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    for name, change in changes.items():
        if callable(change):
            content = json.loads(members[name])
            change(content)
            change = json.dumps(content).encode()
        members[name] = change
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{root}/{name}", content)
    return target


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
GRAPH, SAMPLE = "models/model.json", "data/sample_inputs/model.pt"


def pickled(config: dict) -> None:
    next(iter(config["config"].values()))["use_pickle"] = True


def constant(name: str):
    entry = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}
    return lambda config: config["config"].update(a=entry)


def target(name: str):
    return lambda graph: graph["graph_module"]["graph"]["nodes"][0].update(target=name)


def size(text: str):
    expression = {"as_expr": {"expr_str": text, "hint": {"as_int": 20}}}
    return lambda graph: graph["graph_module"]["graph"]["tensor_values"]["x"].update(sizes=[expression] * 4)


def attacks(trace: Path) -> dict[str, dict]:
    bad, touch = saved({"x": Runs(trace)}), f"__import__('os').system('touch {trace}')"
    specification = json.dumps([1, {"type": "builtins.tuple", "context": touch, "children_spec": []}])
    return {
        "legacy weights": {"data/weights/model.pt": bad},
        "legacy constants": {"data/constants/model.pt": bad},
        "pickled weight": {WEIGHTS: pickled, "data/weights/weight_0": bad},
        "pickled constant": {CONSTANTS: constant("tensor_0"), "data/constants/tensor_0": bad},
        "opaque constant": {
            CONSTANTS: constant("opaque_obj_0"),
            "data/constants/opaque_obj_0": pickle.dumps(Runs(trace)),
        },
        "sample inputs": {SAMPLE: bad},
        "sample inputs, pickled": {SAMPLE: pickle.dumps(Runs(trace))},
        "compiled": {"data/aotinductor/model/x.so": b"\x7fELF"},
        "older layout": {"version": b"8.20"},
        "operator": {GRAPH: target("torch.os.system")},
        "operator that reads files": {GRAPH: target("torch.ops.aten.from_file.default")},
        "extension": {GRAPH: target("#x:y")},
        "size": {GRAPH: size(touch)},
        "size of text": {GRAPH: size("Symbol('s0').func")},
        "range": {GRAPH: lambda graph: graph["range_constraints"].update({touch: {"min_val": 2, "max_val": 4}})},
        "specification": {
            GRAPH: lambda graph: graph["graph_module"]["module_call_graph"][0]["signature"].update(
                in_spec=specification
            )
        },
        "name": {GRAPH: lambda graph: graph["graph_module"]["graph"]["nodes"][0].update(name=f"a):\n {touch}\n#")},
        "verifier": {GRAPH: lambda graph: graph.update(verifiers=[touch])},
    }


@pytest.mark.parametrize("attack", attacks(Path("x")))
def test_nothing_in_a_program_runs(made, tmp_path, attack):
    path = changed(made, tmp_path / "x.pt2", attacks(tmp_path / "it_ran")[attack])
    with pytest.raises(UserError, match=r"x\.pt2: is not a program that export\.py writes") as raised:
        read_program(path, {})
    assert not (tmp_path / "it_ran").exists()
    assert str(raised.value) == printable(str(raised.value))


def test_the_same_program_unchanged_is_read(made, tmp_path):
    """So that a refusal above is that of the change; guards, which torch may evaluate, are left out."""
    touch = f"__import__('os').system('touch {tmp_path / 'it_ran'}')"
    harmless = {GRAPH: lambda graph: graph.update(guards_code=[touch])}
    one, other = (changed(made, tmp_path / f"{number}.pt2", part) for number, part in enumerate(({}, harmless)))
    image = np.random.default_rng(0).random((1, 3, 21, 33), np.float32)
    expected = torch.export.load(made).module()(torch.from_numpy(image)).detach().numpy()
    for path in (one, other):
        assert np.array_equal(read_program(path, {})(image), expected)
    assert not (tmp_path / "it_ran").exists()


def test_compressed_programs_are_refused(made, tmp_path):
    with pytest.raises(UserError, match="it is compressed"):
        read_program(changed(made, tmp_path / "x.pt2", {}, zipfile.ZIP_DEFLATED), {})


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A folder with the forms that are made fast."""
    folder = tmp_path_factory.mktemp("safety")
    save_tensors(folder / "trained.pt", pack(randomise(KRGN(**SHAPE)), "KRGN"))
    out = folder / "out"
    export.main(["--pre_train", str(folder / "trained.pt"), "--out", str(out), "--formats", "pt,ncnn"])
    return out


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def vouched(out: Path) -> None:
    """Writes the files' present hashes into the report."""
    report = json.loads((out / "export.json").read_text())
    for file in report["files"].values():
        for part, facts in file["files"].items():
            facts["sha256"] = digest(out / part)
    (out / "export.json").write_text(json.dumps(report))


@pytest.mark.parametrize(
    "content",
    [b"", b"7767517\n99999999 99999999\n" * 50, bytes(range(256)) * 40, b"7767517\n1 1\nConvolution a 1 1 b c 0=-5\n"],
)
def test_garbage_for_a_compiled_reader_is_one_line(exported, tmp_path, content):
    """Whatever the reader's process does; this one goes on."""
    out = copy_of(exported, tmp_path / "out")
    (out / "KRGN_x2.ncnn.param").write_bytes(content)
    vouched(out)
    with pytest.raises(UserError, match=r"KRGN_x2\.ncnn\.param") as raised:
        export.main(["--check", str(out)])
    assert str(raised.value) == printable(str(raised.value))


def test_readers_that_crash_or_hang_are_one_line(exported, monkeypatch):
    """The process is gone afterwards."""
    path = exported / "KRGN_x2.ncnn.param"
    for name, timeout, words in (("crashes", 60, "ended by SIGABRT"), ("hangs", 1, "does not answer within 1 s")):
        monkeypatch.setattr(isolated, "_serve", globals()[f"serve_{name}"])
        with pytest.raises(UserError, match=words), isolated.isolated_reader("ncnn", path, {}, timeout):
            pass
        assert not multiprocessing.active_children()


def serve_crashes(pipe, *_):
    os.abort()


def serve_hangs(pipe, *_):
    while True:
        pass


def report_changes() -> dict:
    def files(change):
        return lambda report: change(report["files"])

    safetensors = "KRGN_x2.safetensors"
    return {
        "no files": lambda report: report.pop("files"),
        "files is a list": lambda report: report.update(files=[1]),
        "files is empty": lambda report: report.update(files={}),
        "a file is text": files(lambda all: all.update({safetensors: "x"})),
        "no format": files(lambda all: all[safetensors].pop("format")),
        "a format that is a list": files(lambda all: all[safetensors].update(format=[1])),
        "an unknown format": files(lambda all: all[safetensors].update(format="tflite")),
        "no parts": files(lambda all: all[safetensors].pop("files")),
        "parts of others": files(lambda all: all[safetensors].update(files={"export.json": {"sha256": "0" * 64}})),
        "no hash": files(lambda all: all[safetensors]["files"][safetensors].pop("sha256")),
        "a hash that is a number": files(lambda all: all[safetensors]["files"][safetensors].update(sha256=1)),
        "a path outside": files(lambda all: all.update({"../x.safetensors": all.pop(safetensors)})),
        "an absolute path": files(lambda all: all.update({"/etc/passwd": all.pop(safetensors)})),
        "swapped": files(lambda all: all["KRGN_x2.pt"].update(format="torch")),
        "escape codes": files(lambda all: all.update({"\x1b[31m\n.safetensors": all.pop(safetensors)})),
    }


@pytest.mark.parametrize("change", report_changes())
def test_a_changed_report_is_one_line(exported, tmp_path, change):
    out = copy_of(exported, tmp_path / "out")
    report = json.loads((out / "export.json").read_text())
    report_changes()[change](report)
    (out / "export.json").write_text(json.dumps(report))
    for flags in (["--check", str(out)], ["--pre_train", str(exported.parent / "trained.pt"), "--out", str(out)]):
        with pytest.raises(UserError, match=r"export\.json: ") as raised:
            export.main(flags)
        assert str(raised.value) == printable(str(raised.value))


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"files": NaN}', b"\xff", b"9" * 5000, b"null"])
def test_a_report_that_is_none_is_one_line(exported, tmp_path, content):
    out = copy_of(exported, tmp_path / "out")
    (out / "export.json").write_bytes(content)
    with pytest.raises(UserError, match=r"export\.json: "):
        export.main(["--check", str(out)])


def test_a_pipe_among_the_files_is_not_waited_for(exported, tmp_path):
    out = copy_of(exported, tmp_path / "out")
    (out / "KRGN_x2.pt").unlink()
    os.mkfifo(out / "KRGN_x2.pt")
    with pytest.raises(UserError, match=r"KRGN_x2\.pt: is a pipe"):
        export.main(["--check", str(out)])
