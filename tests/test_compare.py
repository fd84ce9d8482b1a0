"""The table: counts against formulas, scores against main.py's, rows timed in turn, forms that can be read back."""

import csv
import io
import json

import pytest
import torch
from conftest import assert_one_line, program, small_run
from helpers import launch, randomise

import compare
from data import resize
from data.image import write_png
from data.sets import Opening, open_test_sets
from evaluation.metrics import psnr_ssim
from evaluation.results import read_results
from model import tiling
from model.checkpoint import pack
from model.krgn import KRGN
from model.networks import count_parameters
from model.recalibration import fold
from reporting import tables
from runtime import csvfiles
from runtime.errors import UserError
from runtime.files import save_tensors


@pytest.fixture
def trained(small_set):
    """An experiment folder with a small trained network x2."""
    launch(*small_run(small_set, "--epochs", "1"))
    return small_set.parent / "experiment/small"


@pytest.fixture
def benchmark(small_set):
    """The set's test images as a benchmark set."""
    folder = small_set / "benchmark/Little/HR"
    folder.mkdir(parents=True)
    for name in ("0005.png", "0006.png"):
        (folder / name).write_bytes((small_set / "Small/Small_train_HR" / name).read_bytes())
    return small_set


def table(*arguments) -> dict:
    out = [str(argument) for argument in arguments]
    compare.main(["--cpu", *out])
    return json.loads(open(out[out.index("--out") + 1] + ".json").read())


def test_a_table_of_everything(trained, benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "OUTPUT", (72, 128))
    network = randomise(KRGN(scale=2, n_feats=8, n_resgroups=1))
    save_tensors(tmp_path / "other.pt", pack(network, "KRGN"))
    made = table(
        *("bicubic", trained, tmp_path / "other.pt", trained / "model/model_latest.pt", "--dir_data", benchmark),
        *("--data_test", "Little", "--n_runs", "2", "--out", tmp_path / "out/table", "--published"),
    )
    columns = made["columns"]
    rows = {row[0]: dict(zip(columns, row, strict=True)) for row in made["rows"]}
    assert list(rows)[:4] == ["bicubic", "small (1)", "other", "small (2)"]
    assert rows["small (1)"]["Little PSNR"] == rows["small (2)"]["Little PSNR"]
    other = rows["other"]
    assert other["parameters (training)"] == sum(p.numel() for p in network.parameters())
    assert other["parameters (deployed)"] == sum(p.numel() for p in fold(network).parameters())
    assert other["latency (ms)"] > 0
    assert other["90th percentile (ms)"] >= other["latency (ms)"]
    assert other["training form / deployed"] > 0
    assert rows["bicubic"]["parameters (deployed)"] is None

    # The scores are those of main.py on the same files.
    launch(
        *("--cpu", "--test_only", "--scale", "2", "--pre_train", tmp_path / "other.pt", "--dir_data", benchmark),
        *("--data_test", "Little", "--dir_experiment", tmp_path / "e"),
    )
    tested = read_results(tmp_path / "e/test")["Little"]
    assert tested.scores.psnr == pytest.approx(other["Little PSNR"], abs=1e-9)
    assert tested.scores.ssim == pytest.approx(other["Little SSIM"], abs=1e-9)
    assert str(tested.protocol) in made["notes"][0]
    # Bicubic is the LR file enlarged.
    scores = []
    for lr, hr, _ in open_test_sets(["Little"], dir_data=benchmark, opening=Opening(2))[0]:
        enlarged = resize.upscale(lr.permute(1, 2, 0).numpy(), 2)
        scores.append(psnr_ssim(torch.from_numpy(enlarged).permute(2, 0, 1), hr, 2)[0])
    assert rows["bicubic"]["Little PSNR"] == pytest.approx(sum(scores) / 2, abs=1e-4)

    assert rows["KRGN (published)"]["parameters (deployed)"] == 588_000
    assert rows["KRGN (published)"]["latency (ms)"] is None
    notes = " ".join(made["notes"])
    for fact in ("SHA-256", torch.__version__, "git commit", "threads", "channels last", "not measured", "64x36"):
        assert fact in notes


def test_mult_adds_against_the_formula():
    """A depth-wise KRGN x2 at 640x360: kernels times pixels, and nothing that a functional call could hide."""
    network = fold(KRGN(scale=2, n_feats=8, n_resgroups=1))
    pixels = 640 * 360
    weights = {name: tensor for name, tensor in network.state_dict().items() if tensor.dim() == 4}
    attention = sum(tensor.numel() for name, tensor in weights.items() if "conv_du" in name)
    shifted = weights.pop("add_mean.weight").numel() * 4 * pixels
    local = sum(tensor.numel() for name, tensor in weights.items() if "conv_du" not in name)
    assert compare.mult_adds(network, 2, 3) == local * pixels + attention + shifted
    # In training form the kernels are computed by matrix products, which a count of layers would not see.
    recalibrated = KRGN(scale=2, n_feats=8, n_resgroups=1)
    assert compare.mult_adds(recalibrated, 2, 3) == local * pixels + attention + shifted  # folded before it is counted
    # x3 does not divide 1280: counted at 427x240 LR pixels, which are 1281x720, and taken in proportion.
    x3 = KRGN(scale=3, n_feats=8, n_resgroups=1)
    more = 8 * 9 * 3 * (9 - 4)  # the upsampler's channels
    counted = (local + more) * 427 * 240 + attention + 3 * 3 * 1281 * 720
    assert compare.mult_adds(x3, 3, 3) == pytest.approx(counted * 1280 / 1281, rel=1e-9)


def test_rows_are_timed_in_turn(monkeypatch):
    order = []
    methods = []
    for name in ("a", "b"):
        network = KRGN(scale=2, n_feats=8, n_resgroups=1)
        methods.append(compare.Method(name, network, fold(network), 2, source=name))
    networks = {id(method.deployed): method.name for method in methods}
    networks |= {id(method.trained): method.name + " trained" for method in methods}

    def timed(function, device):
        assert torch.is_inference_mode_enabled()
        order.append(networks[id(function.__defaults__[0])])
        return 0.1 * len(order)

    monkeypatch.setattr(compare, "timed", timed)
    compare.time_all(methods, 3, torch.device("cpu"), "single")
    assert order == ["a", "a trained", "b", "b trained"] * (compare.WARM_UP + 3)
    assert len(methods[0].latencies) == len(methods[1].trained_latencies) == 3
    assert compare.latency_cells(methods[0])[2] > 1


TABLE = {
    "title": "x4",
    "columns": ["method", "parameters (deployed)", "Set5 PSNR", "Set5 SSIM"],
    "rows": [["a_b", 1234, 32.3211, 0.89571], ["c", None, 33.0, 0.9], ["perfect", 1, float("inf"), 1.0]],
    "notes": ["protocol: all of it"],
}


def test_forms():
    assert list(csv.reader(io.StringIO(tables.as_csv(TABLE))))[1] == ["a_b", "1234", "32.3211", "0.89571"]
    assert json.loads(tables.as_json(TABLE))["rows"][2][2] == "inf"
    markdown = tables.as_markdown(TABLE).splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown[4:6]] == [
        ["a_b", "1,234", "32.32", "0.8957"],
        ["c", "", "33.00", "0.9000"],
    ]
    assert len({len(line) for line in markdown[2:7]}) == 1
    latex = tables.as_latex(TABLE)
    assert r"a\_b & 1,234 & 32.32 & 0.8957 \\" in latex
    assert r"perfect & 1 & \textbf{inf} & \textbf{1.0000} \\" in latex
    assert "% protocol: all of it" in latex
    text = tables.as_text(TABLE).splitlines()
    assert len({len(line) for line in text[1:6]}) <= 2
    assert "protocol: all of it" in text


def test_mistakes(trained, tmp_path, small_set):
    save_tensors(tmp_path / "x3.pt", pack(KRGN(scale=3, n_feats=8, n_resgroups=1), "KRGN"))
    (tmp_path / "empty").mkdir()
    for rows, words in {
        (str(trained), str(tmp_path / "x3.pt")): "rows of one scale.*small x2, x3 x3",
        ("bicubic",): "bicubic alone.*--scale",
        (str(tmp_path / "empty"),): "model_best.pt",
        (str(tmp_path / "none.pt"),): "no such file",
    }.items():
        with pytest.raises(UserError, match=words):
            compare.main(["--cpu", "--data_test", "none", "--n_runs", "0", *rows])
    for flags, words in {
        ("--chop", "--tile", "8"): "--chop and --tile 8",
        ("--data_test", "Demo"): "Demo has no HR",
        ("--out", str(tmp_path / "x3.pt/table")): "cannot be made",
        ("--out", f"{tmp_path}/"): "is a folder",
    }.items():
        with pytest.raises(UserError, match=words):
            compare.main(["--cpu", str(trained), *flags])
    run = program("compare.py", tmp_path / "x3.pt", "--data_test", "Nothing", "--dir_data", small_set, "--cpu")
    assert_one_line(run, "Nothing")


def test_luma_networks_and_large_images_and_files_of_others(tmp_path, photo, monkeypatch):
    """Networks of one channel are tested on luma; bicubic has no weights to measure memory by; no file is replaced."""
    monkeypatch.setattr(tiling, "SURE_TO_FIT", 100)
    write_png(tmp_path / "benchmark/One/HR/a.png", photo[:60, :64])
    save_tensors(tmp_path / "y.pt", pack(KRGN(scale=2, n_feats=8, n_resgroups=1, n_colors=1), "KRGN"))
    rows = ("bicubic", tmp_path / "y.pt", "--data_test", "One", "--dir_data", tmp_path, "--n_runs", "0", "--ext", "img")
    monkeypatch.setattr(compare, "OUTPUT", (72, 128))
    assert len(table(*rows, "--out", tmp_path / "t")["rows"]) == 2
    table(*rows, "--out", tmp_path / "t")  # its own files may be written again
    (tmp_path / "mine.md").write_text("mine")
    with pytest.raises(UserError, match=r"mine.md: exists and is no table"):
        table(*rows, "--out", tmp_path / "mine")


def test_published_weights(shared):
    """CFGN x4: its parameters, and its multiply-accumulates at 1280x720 (the publication prints 59.0 G)."""
    path = str(shared / "weights/CFGN_x4.pt")
    method = compare.load(path, torch.device("cpu"), {})
    assert method.name == "CFGN_x4"
    assert count_parameters(method.deployed) == 621_328
    assert compare.mult_adds(method.deployed, 4, 3) == pytest.approx(33.92e9, rel=1e-3)


HOSTILE = [
    "=1+1",
    "+1+1",
    "-1+cmd|' /C calc'!A0",
    "@SUM(1)",
    "\t=1",
    "\uff1d1",
    " =1",
    "'quoted",
    "a|b<i>",
    r"\input{x}",
    "$x_1^2$",
]


def test_text_in_a_table_is_no_formula_command_or_markup(tmp_path):
    made = {
        "title": "x2 <b>",
        "columns": ["method", "Set5 PSNR"],
        "rows": [[name, -0.5] for name in HOSTILE],
        "notes": ["a\n\\input{/etc/passwd}"],
    }
    raw = list(csv.reader(io.StringIO(tables.as_csv(made))))
    assert all(row[0][0] == "'" for row in raw[1:9])
    assert {row[1] for row in raw[1:]} == {"-0.5"}  # a number stays one
    (tmp_path / "table.csv").write_text(tables.as_csv(made), newline="")
    assert [row["method"] for row in csvfiles.read_csv(tmp_path / "table.csv", ("method",))] == HOSTILE

    latex = tables.as_latex(made)
    assert r"\textbackslash{}input\{x\}" in latex
    assert all(line.startswith("%") for line in latex.splitlines() if "passwd" in line)
    assert r"\$x\_1\textasciicircum{}2\$" in latex
    markdown = tables.as_markdown(made)
    assert r"a\|b&lt;i&gt;" in markdown
    assert "<" not in markdown
    assert "\x1b" not in tables.as_text(made | {"title": "\x1b[2J"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"image,PSNR\na,1,2\n", "row 2 has more or fewer cells"),
        (b"image,image\na,b\n", "no column image, or two"),
        (b"name\na\n", "no column image"),
        (b"", "no column image"),
        (b"image\n\xff\n", "not UTF-8 text"),
        (b'image\n"a', "no CSV"),
        (b"image\n" + b"a" * 300, "expected at most 200"),
    ],
)
def test_a_csv_file_that_is_none_gets_a_line(tmp_path, content, said):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=said):
        csvfiles.read_csv(tmp_path / "a.csv", ("image",), most=200)


def test_a_long_cell_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("image\n" + "a" * 200_000)
    assert len(csvfiles.read_csv(tmp_path / "a.csv", ("image",))[0]["image"]) == 200_000
