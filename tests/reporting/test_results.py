"""scores-<Set>.json: what a test writes is read back, and nothing else is."""

import json
import math

import pytest
from conftest import small_run
from helpers import launch, scores

from evaluation.metrics import Protocol, Score, Scores
from evaluation.results import FORMAT, VERSION, SetResult, read_result, read_results
from runtime.errors import UserError

ROWS = [
    {"image": "baby", "PSNR": 31.123456789012345, "SSIM": 0.9, "LPIPS": 0.1},
    {"image": "b\udcff", "PSNR": math.inf, "SSIM": math.nan, "LPIPS": 0.0},
]
RESULT = SetResult(
    set_name="Set5",
    scale=4,
    network="KRGN x4",
    protocol=Protocol(crop_border=4, tile=64, precision="bf16"),
    scores=Scores(ROWS),
    seconds=1.25,
    versions={"torch": "2", "git commit": "abc"},
)


def written(folder, change=lambda content: None, name: str = "scores-Set5.json"):
    content = json.loads(RESULT.to_json())
    change(content)
    (folder / name).write_text(json.dumps(content))
    return folder / name


def test_what_is_written_is_read_back(tmp_path):
    read = read_result(written(tmp_path))
    for name in ("set_name", "scale", "network", "protocol", "seconds", "versions"):
        assert getattr(read, name) == getattr(RESULT, name)
    assert read.scores.rows[0] == ROWS[0]
    assert read.by_image["baby"] == Score(31.123456789012345, 0.9)
    assert read.by_image["b\\udcff"].psnr == math.inf
    assert math.isnan(read.by_image["b\\udcff"].ssim)


def test_the_file_is_strict_json_with_means():
    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(RESULT.to_json(), parse_constant=refuse)
    assert (content["format"], content["version"]) == (FORMAT, VERSION)
    assert content["mean"] == {"PSNR": "inf", "SSIM": "nan", "LPIPS": 0.05}
    assert content["protocol"] == {
        "channel": "y",
        "crop_border": 4,
        "chop": False,
        "tile": 64,
        "self_ensemble": False,
        "degradation": "bicubic",
        "precision": "bf16",
        "n_colors": 3,
    }


def test_a_test_writes_both_files(small_set, capsys):
    launch(*small_run(small_set, "--epochs", "1"))
    experiments = small_set.parent / "experiment"
    weights = str(experiments / "small/model/model_best.pt")
    launch(
        *small_run(small_set, "--test_only", "--pre_train", weights, "--save", "t", "--tile", "16", "--save_results")
    )
    result = read_results(experiments / "t")["Small"]
    assert [(name, *score) for name, score in result.by_image.items()] == scores(experiments / "t")
    assert result.protocol == Protocol(crop_border=2, tile=16)
    assert result.network.startswith("KRGN x2 (n_feats 8")
    assert result.seconds > 0
    assert set(result.versions) == {"torch", "git commit"}
    said = f"Small x2: PSNR {result.scores.psnr:.3f} dB, SSIM {result.scores.ssim:.4f} ({result.protocol}; 2 images"
    assert said in capsys.readouterr().out


WRONG = {
    "another format": lambda c: c.update(format="scores"),
    "another version": lambda c: c.update(version=2),
    "no protocol": lambda c: c.pop("protocol"),
    "a new field of the protocol": lambda c: c["protocol"].update(mode="x"),
    "a field less": lambda c: c["protocol"].pop("tile"),
    "an unknown channel": lambda c: c["protocol"].update(channel="x"),
    "a flag that is a number": lambda c: c["protocol"].update(chop=1),
    "a scale of text": lambda c: c.update(scale="4"),
    "a scale that is true": lambda c: c.update(scale=True),
    "no images": lambda c: c.update(images=[]),
    "images that are numbers": lambda c: c.update(images=[1, 2]),
    "one name twice": lambda c: c.update(images=2 * c["images"][:1]),
    "other columns": lambda c: c["images"][0].pop("LPIPS"),
    "no PSNR": lambda c: [row.pop("PSNR") for row in c["images"]],
    "a score of text": lambda c: c["images"][0].update(PSNR="31.1"),
    "a score beyond all numbers": lambda c: c["images"][0].update(PSNR=10**400),
    "a path for a name": lambda c: c["images"][0].update(image="../../baby"),
    "a folder for a name": lambda c: c["images"][0].update(image=".."),
    "a path for a set": lambda c: c.update(set="../Set5"),
    "versions that are a list": lambda c: c.update(versions=["2"]),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_other_content_is_refused_in_one_line(tmp_path, change):
    path = written(tmp_path, change)
    with pytest.raises(UserError) as caught:
        read_result(path)
    assert "is not what main.py writes" in str(caught.value)
    assert "test again with main.py --test_only" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "1", "null", '"text"', "", "[" * 100_000, '{"a": 1, "a": 2}'])
def test_other_json_is_refused(tmp_path, text):
    (tmp_path / "scores-Set5.json").write_text(text)
    with pytest.raises(UserError):
        read_result(tmp_path / "scores-Set5.json")


def test_folders(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_results(tmp_path / "none")
    with pytest.raises(UserError, match=r"has no scores-<Set>\.json: test again with main\.py --test_only"):
        read_results(tmp_path)
    for number in (14, 5):
        name = f"Set{number}"
        written(tmp_path, lambda content, name=name: content.update(set=name), f"scores-{name}.json")
        (tmp_path / f"scores-{name}.csv").write_text("image,PSNR,SSIM\n")
    assert list(read_results(tmp_path)) == ["Set5", "Set14"]
    (tmp_path / "scores-B100.csv").write_text("image,PSNR,SSIM\n")
    with pytest.raises(UserError, match=r"scores-B100\.csv of an older version.* --data_test B100 --save"):
        read_results(tmp_path)
    (tmp_path / "scores-B100.csv").unlink()
    written(tmp_path, name="scores-B100.json")
    with pytest.raises(UserError, match="has scores of Set5"):
        read_results(tmp_path)
