"""The model card that export.py writes: its facts, its header, its lines of Python, and whose README.md stays."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from conftest import small_run
from helpers import launch
from PIL import Image

import export
import model
from deploy import card
from model.weights import load_tensors
from runtime.files import save_tensors


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a small run that was tested in itself, and in a folder below with other weights."""
    from data.image import write_png

    parent = tmp_path_factory.mktemp("card")
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(0, 255, (60, 64, 3), dtype=np.uint8)
        write_png(parent / f"dataset/Small/Small_train_HR/{number + 1:04}.png", pixels)
    sets = parent / "dataset"
    launch(*small_run(sets, "--test_every", "2", "--epochs", "1", "--tracker", "none", "--loss", "1*L1+0.1*MSE"))
    folder = parent / "experiment/small"
    test = ["--cpu", "--test_only", "--dir_data", sets, "--data_test", "Small", "--data_range", "1-4/5-6"]
    best = folder / "model/model_best.pt"
    launch(*test, "--pre_train", best, "--dir_experiment", parent / "experiment", "--save", "small")
    other = folder / "model/model_latest.pt"
    launch(*test, "--pre_train", other, "--dir_experiment", folder, "--save", "other", "--chop")
    return folder


def exported(trained, out) -> str:
    export.main(["--pre_train", str(trained / "model/model_best.pt"), "--out", str(out)])
    return (out / "README.md").read_text()


def test_the_card_says_what_the_network_is(trained, tmp_path, capsys):
    text = exported(trained, tmp_path)
    scores = json.loads((trained / "scores-Small.json").read_text())
    header = text.split("---")[1]
    assert {"license: mit", "pipeline_tag: image-to-image", "library_name: krgn"} <= set(header.splitlines())
    assert header.count(f"value: {scores['mean']['PSNR']:.4f}") == 1
    assert f"| Small x2 | {scores['mean']['PSNR']:.3f} | {scores['mean']['SSIM']:.4f} | Y channel" in text
    assert "four quadrants" not in text  # a test of other weights
    assert "other/scores-Small.json: is of other weights (model_latest)" in capsys.readouterr().out
    for part in ("3,989 parameters", "14,357", "| `--lr` | 0.001 |", "| `--loss` | 1*L1+0.1*MSE |", "of epoch 1"):
        assert part in text, part
    assert re.search(r"data: Small, 4 images, .* digest of names and sizes `[0-9a-f]{16}`", text)
    assert re.search(r"effort: \d+(\.\d)? seconds in 1 session on .*\d+ cores", text)
    assert re.search(r"dB in validation on Small\n", text)
    assert str(tmp_path) not in text
    assert str(trained.parent) not in text  # nor any other path of this machine


def test_what_a_run_took_and_ran_is_in_words(tmp_path):
    seconds = (9.06, 59.96, 90, 9300, 3600 * 126)
    assert [card._duration(each) for each in seconds] == [
        "9.1 seconds", "60 seconds", "1.5 minutes", "2.6 hours", "126 hours",
    ]  # fmt: skip
    one, other = "a" * 40, "b" * 40
    sessions = [{"git commit": one}, {"git commit": one}, {"git commit": other, "uncommitted changes": True}]
    sessions[-1]["versions"] = {"torch": "2.13.0"}
    assert card._code(sessions) == "commits aaaaaaaaaaaa, bbbbbbbbbbbb with uncommitted changes; torch 2.13.0"
    assert card._code([{"git commit": "unknown"}]) == card._code([]) == ""
    # The default range is that of DIV2K; a folder of photographs is used whole.
    for data, shown in (("((None, 'DIV2K'),)", "1-800/801-810"), ("((None, 'photos'),)", None)):
        (tmp_path / "config.txt").write_text(f"data_train: {data}\ndata_range: ((1, 800), (801, 810))\n")
        assert card._recipe(tmp_path).get("data_range") == shown


def test_the_header_is_yaml(trained, tmp_path):
    yaml = pytest.importorskip("yaml")
    header = yaml.safe_load(exported(trained, tmp_path).split("---")[1])
    (result,) = header["model-index"][0]["results"]
    assert (result["dataset"]["name"], [each["type"] for each in result["metrics"]]) == ("Small x2", ["psnr", "ssim"])


def test_safetensors_say_the_same(trained, tmp_path):
    text = exported(trained, tmp_path)
    content = (tmp_path / "KRGN_x2.safetensors").read_bytes()
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    assert metadata["architecture"] in text
    assert (metadata["parameters"], metadata["licence"]) == ("3989", "mit")
    (score,) = json.loads(metadata["scores"])
    assert f"{score['PSNR']:.3f}" in text
    assert f"- effort: {metadata['training_effort']}\n" in text
    assert f"- code: {metadata['training_code']}\n" in text
    assert json.loads(metadata["recipe"])["lr"] == "0.001"
    assert json.loads(metadata["training_data"])[0]["digest"][:16] in text
    facts = load_tensors(tmp_path / "KRGN_x2.safetensors")["facts"]
    assert (facts["model"], facts["folded"], facts["epoch"]) == ("KRGN", True, 1)


def test_the_five_lines_run(trained, tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", exported(trained, tmp_path), flags=re.S)[1]
    assert len(code.splitlines()) == 6  # one is empty
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "krgn", model)  # as the package is called once it is installed
    Image.fromarray(np.full((9, 7, 3), 128, np.uint8)).save("photo.png")
    exec(code, {})
    assert Image.open("photo_x2.png").size == (14, 18)


def test_a_network_of_luma_has_lines_that_run(tmp_path, monkeypatch):
    from model.checkpoint import pack
    from model.krgn import KRGN
    from runtime.files import save_tensors

    network = KRGN(scale=2, n_feats=8, n_resgroups=1, n_colors=1)
    save_tensors(tmp_path / "luma.pt", pack(network, "KRGN"))
    export.main(["--pre_train", str(tmp_path / "luma.pt"), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out/README.md").read_text()
    assert "No test of these weights was found" in text
    assert "Unknown: there was no run's folder beside the weights." in text
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.setitem(sys.modules, "krgn", model)
    Image.fromarray(np.full((9, 7), 200, np.uint8)).save("photo.png")
    exec(re.search(r"```python\n(.*?)```", text, flags=re.S)[1], {})
    assert Image.open("photo_x2.png").size == (14, 18)


def test_a_readme_of_somebody_else_stays(trained, tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    assert exported(trained, tmp_path) == "mine"
    assert "README.md: was not written by export.py, or was edited since: it is left alone" in capsys.readouterr().out
    (tmp_path / "README.md").unlink()
    first = exported(trained, tmp_path)
    assert first.startswith("---")
    assert exported(trained, tmp_path) == first  # its own is replaced
    assert "left alone" not in capsys.readouterr().out
    (tmp_path / "README.md").write_text(first + "my words\n")
    assert exported(trained, tmp_path).endswith("my words\n")
    export.main(["--check", str(tmp_path)])


def test_scores_of_the_weights_before_they_were_trained_on_are_left_out(trained, tmp_path, capsys):
    """The file keeps its name when a run goes on; its test has the digest of what was tested."""
    run = tmp_path / "experiment/small"
    shutil.copytree(trained, run)
    assert "scores-Small" not in capsys.readouterr().out
    best = run / "model/model_best.pt"
    content = load_tensors(best)
    content["facts"]["epoch"] = 2
    save_tensors(best, content)
    text = exported(run, tmp_path / "out")
    assert "| Small x2 |" not in text
    said = capsys.readouterr().out
    assert "small/scores-Small.json: is of model_best.pt as it was before, so it is not in the model card" in said
