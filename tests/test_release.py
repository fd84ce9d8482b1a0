"""The weights in experiment/: each form is the same network, the files say what they are, and the README says what the
logs of their tests say."""

import csv
import json
import re
import statistics

import pytest
import torch
from conftest import ROOT, program

from compare import PUBLISHED
from data.color import to_tensor
from deploy.fold import comparison_images
from evaluation.metrics import Protocol
from evaluation.results import read_results
from model.checkpoint import rebuild, unpack
from model.recalibration import is_recalibrated
from model.weights import load_tensors
from runtime.files import digest

PAGES = ("README.md", "docs/released.md", "docs/ablation.md")
README, RELEASED, ABLATION = ((ROOT / page).read_text() for page in PAGES)
SETS = ("Set5", "Set14", "Kodak24")
LIMIT = 30 * 10**6  # bytes of a file
SCALES = pytest.mark.parametrize("scale", [2, 3, 4])


def folder(scale: int):
    return ROOT / f"experiment/KRGN_x{scale}"


def network(path):
    return rebuild(unpack(load_tensors(path), str(path))).eval()


def scores(path) -> tuple[str, str]:
    """Mean PSNR and SSIM of a test, as they are printed."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return tuple(f"{statistics.mean(float(row[name]) for row in rows):.{n}f}" for name, n in (("PSNR", 3), ("SSIM", 4)))


@SCALES
def test_every_form_is_the_same_network(scale, photo):
    trained = network(folder(scale) / "model/model_best.pt")
    shape = trained.hyperparameters
    assert is_recalibrated(trained)
    assert (shape["scale"], shape["n_feats"], shape["n_resgroups"]) == (scale, 64, 9)
    assert (shape["groups"], shape["dilation"]) == (64, 3)
    forms = {
        "safetensors": network(folder(scale) / f"export/KRGN_x{scale}.safetensors"),
        "published names": torch.hub.load(
            str(ROOT), "krgn", source="local", weights=str(folder(scale) / f"export/KRGN_x{scale}.pt"), scale=scale,
            verbose=False,
        ),
        "hub": torch.hub.load(str(ROOT), "krgn", source="local", scale=scale, pretrained=True, verbose=False),
    }  # fmt: skip
    images = [*comparison_images(3, 255), to_tensor(photo[100:148, 150:214], 3)[None].float()]
    with torch.inference_mode():
        for image in images:
            expected = trained(image)
            for name, form in forms.items():
                assert not is_recalibrated(form), name
                assert (form(image) - expected).abs().max() < 1e-2, name  # of 255


@SCALES
def test_the_recalibration_was_trained(scale):
    """Transforms that stayed at zero would make a plain network of it."""
    state = load_tensors(folder(scale) / "model/model_best.pt")
    transforms = [tensor for name, tensor in state["model"].items() if name.endswith(".transform")]
    assert len(transforms) == 162
    assert all(transform.abs().max() > 1e-3 for transform in transforms)
    assert state["facts"]["basis"] == "trained"


@SCALES
def test_the_files_are_what_they_say(scale):
    report = json.loads((folder(scale) / "export/export.json").read_text())
    assert report["source_sha256"] == digest(folder(scale) / "model/model_best.pt")
    for file in report["files"].values():
        for name, facts in file["files"].items():
            assert digest(folder(scale) / "export" / name) == facts["sha256"]
    files = [path for path in folder(scale).rglob("*") if path.is_file() and path.name != "state.pt"]
    assert {"config.txt", "log.txt", "history.csv", "curves.png"} <= {path.name for path in files}
    for path in files:
        assert path.stat().st_size < LIMIT, path
        if path.suffix in (".txt", ".csv", ".json", ".md", ".tex"):
            private = re.findall(r"(?<![\w.~>])/(?:[\w.-]+/)+", path.read_text())
            assert not private, (path, private)


@SCALES
def test_the_pages_say_what_the_logs_say(scale):
    card = (folder(scale) / "export/README.md").read_text()
    assert "this run was the last of several" in card
    for how, test in (("whole images", "test"), ("`--chop`", "test_chop")):
        log = (folder(scale) / test / "log.txt").read_text()
        found = {name: scores(folder(scale) / test / f"scores-{name}.csv") for name in SETS}
        for name, (psnr, ssim) in found.items():
            assert f"{name} x{scale}: PSNR {psnr} dB, SSIM {ssim}" in log
            assert f"| {name} x{scale} | {psnr} | {ssim} |" in card
        cells = " | ".join(f"{psnr} / {ssim}" for psnr, ssim in found.values())
        assert f"| x{scale} | **KRGN_x{scale}** | measured, {how} | {cells} |" in RELEASED
        if test == "test":
            assert f"| **KRGN_x{scale}, ours** | measured | {cells} |" in README


@SCALES
def test_the_scores_of_programs_are_those_of_the_tables(scale):
    for test, chop in (("test", False), ("test_chop", True)):
        results = read_results(folder(scale) / test)
        assert list(results) == ["Kodak24", "Set5", "Set14"]
        for name, result in results.items():
            with open(folder(scale) / test / f"scores-{name}.csv", newline="") as file:
                rows = [
                    row | {column: float(row[column]) for column in ("PSNR", "SSIM")} for row in csv.DictReader(file)
                ]
            assert result.scores.rows == rows
            assert result.protocol == Protocol(crop_border=scale, chop=chop)


@SCALES
def test_the_pages_say_what_the_table_says_of_bicubic(scale):
    table = json.loads((folder(scale) / "table.json").read_text())
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    cells = [f"{rows['bicubic'][f'{name} PSNR']:.3f} / {rows['bicubic'][f'{name} SSIM']:.4f}" for name in SETS]
    for page in (README, RELEASED):
        assert f"| x{scale} | bicubic | measured | {' | '.join(cells)} |" in page
    released = rows[f"KRGN_x{scale}"]
    for name in SETS:
        psnr, ssim = scores(folder(scale) / f"test_chop/scores-{name}.csv")
        assert (f"{released[f'{name} PSNR']:.3f}", f"{released[f'{name} SSIM']:.4f}") == (psnr, ssim)


@SCALES
def test_the_pages_quote_what_is_published(scale):
    for name in ("SRCNN", "IMDN", "CFGN", "KRGN"):
        cells = [f"{psnr:.2f} / {ssim:.4f}" for psnr, ssim in PUBLISHED[name, scale].scores[:2]]
        assert f"| x{scale} | {name} | published | {' | '.join(cells)} | |" in RELEASED
        assert name == "SRCNN" or f"| {name} | published | {' | '.join(cells)} | |" in README


def test_the_page_says_what_the_ablation_found():
    table = json.loads((ROOT / "experiment/ablation/table.json").read_text())
    for title, steps, time, psnr, spread, gain, its_spread in table["rows"]:
        over = f" {gain:.2f} ± {its_spread:.2f}" if title != "plain" else ""
        assert f"| {title} | {steps:,} | {time:.2f} | {psnr:.2f} ± {spread:.2f} |{over} |" in ABLATION
    (rates,) = (note.partition(": ")[2] for note in table["notes"] if "same rate" in note)
    for part in rates.split(", "):
        assert part.split(" ", 1)[1] in ABLATION


@SCALES
def test_a_test_by_name_gives_the_readmes_number(shared, tmp_path, scale):
    run = program(
        *("main.py", "--cpu", "--test_only", "--pre_train", f"KRGN_x{scale}", "--scale", scale, "--dir_data", shared),
        *("--data_test", "Set5", "--ext", "img", "--dir_experiment", tmp_path, "--save", "test"),
    )
    assert run.returncode == 0, run.stderr
    psnr, ssim = scores(folder(scale) / "test/scores-Set5.csv")
    assert f"Set5 x{scale}: PSNR {psnr} dB, SSIM {ssim}" in run.stdout + run.stderr
