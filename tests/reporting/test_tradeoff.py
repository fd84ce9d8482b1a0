"""The field's picture: which points it has, labels that cover nothing, and files of others that are left alone."""

import itertools
import json
import math
import random

import pytest
from conftest import assert_one_line, program
from PIL import Image

import compare
from data.image import write_png
from model.checkpoint import pack
from model.krgn import KRGN
from reporting import tables, tradeoff
from reporting.labels import Box, place_labels
from runtime.errors import UserError
from runtime.files import save_tensors

COLUMNS = ["method", "parameters (deployed)", "mult-adds (G)", "latency (ms)", "Set5 PSNR", "Set5 SSIM"]
TABLE = {
    "title": "x4",
    "columns": COLUMNS,
    "rows": [
        ["bicubic", None, None, None, 28.43, 0.81],
        ["mine", 528_016, 28.55, 415.0, 30.96, 0.875],
        ["CFGN_x4", 621_328, 33.92, 900.0, 32.32, 0.896],
        ["perfect", 5, 1.0, 1.0, "inf", 1.0],
        ["bicubic (published)", None, None, None, 28.42, 0.81],
        ["SRCNN (published)", None, 52.7, None, 30.48, 0.8626],
        ["CFGN (published)", 621_000, 59.0, None, 32.32, 0.8957],
        ["KRGN (published)", 612_000, 31.6, None, 32.38, 0.8963],
        ["IMDN (published)", 715_000, 40.9, None, 32.21, 0.8948],
        ["RFDN (published)", 643_000, 31.0, None, 32.28, 0.8957],
    ],
    "notes": ["protocol"],
}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, before they become files."""
    figures = []
    real = tradeoff.rendered
    monkeypatch.setattr(tradeoff, "rendered", lambda figure, *a, **k: figures.append(figure) or real(figure, *a, **k))
    return figures


# --- labels ---


def layout(points, sizes, area):
    places = place_labels(points, sizes, area)
    boxes = []
    for (x, y), (width, height), place in zip(points, sizes, places, strict=True):
        cx, cy = x + place.dx, y + place.dy
        boxes.append(Box(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2))
    return places, boxes


def scattered(seed: int, spread: float):
    """Points over an area, and eight of them in a cluster, as in the field; sizes of their labels."""
    rng = random.Random(seed)
    points = [(rng.uniform(20, 220), rng.uniform(20, 240)) for _ in range(6)]
    points += [(rng.gauss(140, spread), rng.gauss(180, spread)) for _ in range(8)]
    return points, [(rng.uniform(20, 60), 11) for _ in points], Box(0, 0, 240, 260)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("spread", [3, 8, 25])
def test_labels_cover_neither_one_another_nor_markers(seed, spread):
    points, sizes, area = scattered(seed, spread)
    _, boxes = layout(points, sizes, area)
    assert all(box.inside(area) for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    for x, y in points:
        assert not any(box.overlaps(Box(x - 4, y - 4, x + 4, y + 4)) for box in boxes)


@pytest.mark.parametrize("seed", range(10))
def test_lines_cross_no_label_where_there_is_room(seed):
    points, sizes, area = scattered(seed, 40)
    places, boxes = layout(points, sizes, area)
    joined = [(point, box) for point, box, place in zip(points, boxes, places, strict=True) if place.joined]
    for point, box in joined:
        assert not any(other.crossed_by((point, box.nearest(point))) for other in boxes)
    # Without a line, no other point is nearer to the label than its own.
    for point, box, place in zip(points, boxes, places, strict=True):
        if not place.joined:
            assert min(points, key=lambda each: math.dist(each, box.nearest(each))) == point


def test_a_label_stands_beside_its_point_where_there_is_room():
    places, _ = layout([(50, 50), (150, 150)], [(30, 10)] * 2, Box(0, 0, 200, 200))
    assert [place.joined for place in places] == [False, False]
    assert all(place.dy == 0 and 15 < place.dx < 25 for place in places)
    places, boxes = layout([(195, 50)], [(30, 10)], Box(0, 0, 200, 200))  # at the edge: to the left
    assert boxes[0].right < 195


def test_an_area_without_room_is_no_error():
    assert place_labels([(5, 5), (6, 6)], [(300, 10)] * 2, Box(0, 0, 10, 10)) == [(0, 0, False)] * 2


# --- the figure ---


def test_points_are_those_of_the_table():
    found = tradeoff.points(TABLE, "Set5", "mult-adds (G)")
    assert [point.name for point in found] == ["mine", "CFGN_x4", "SRCNN", "CFGN", "KRGN", "IMDN", "RFDN"]
    assert [point.published for point in found] == [False, False, True, True, True, True, True]
    assert found[0][1:3] == (28.55, 30.96)
    assert [point.name for point in tradeoff.points(TABLE, "Set5", "latency (ms)")] == ["mine", "CFGN_x4"]
    assert (
        tradeoff.points(TABLE | {"columns": ["method", "Set5 PSNR"], "rows": [["a", 1.0]]}, "Set5", "latency (ms)")
        == []
    )


def test_the_figure_marks_measured_and_published_points(drawn, tmp_path):
    files = tradeoff.tradeoff(TABLE, "Set5")
    assert files["png"].startswith(b"\x89PNG")
    assert files["pdf"].startswith(b"%PDF")
    assert b"/Type3" not in files["pdf"]
    (tmp_path / "a.png").write_bytes(files["png"])
    assert Image.open(tmp_path / "a.png").size == (1200, 504)
    figure = drawn[0]
    assert [axis.get_xlabel() for axis in figure.axes] == ["latency (ms)", "mult-adds (G)", "parameters, deployed"]
    assert figure.axes[0].get_ylabel() == "PSNR on Set5, x4 (dB)"
    assert {axis.get_xscale() for axis in figure.axes} == {"log"}
    marked = {(line.get_xdata()[0], line.get_marker()) for line in figure.axes[1].lines if line.get_marker() != "None"}
    assert marked == {(28.55, "o"), (33.92, "o"), *((x, "D") for x in (52.7, 59.0, 31.6, 40.9, 31.0))}
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert legends == ["measured here", "as published", "without a cost: bicubic 28.43 dB"]


def test_labels_of_the_figure_do_not_overlap(drawn):
    """As matplotlib measures them, in every panel."""
    tradeoff.tradeoff(TABLE, "Set5")
    for axis, cost in zip(drawn[0].axes, tradeoff.COSTS, strict=True):
        extents = [text.get_window_extent() for text in axis.texts]
        assert len(extents) == len(tradeoff.points(TABLE, "Set5", cost.column)) > 1
        assert not any(a.overlaps(b) for a, b in itertools.combinations(extents, 2))
        frame = axis.get_window_extent()
        for each in extents:
            assert frame.x0 <= each.x0 < each.x1 <= frame.x1
            assert frame.y0 <= each.y0 < each.y1 <= frame.y1


@pytest.mark.parametrize("name", ["$x_1^2", r"\frac{", "a" * 90, "\x1b[2J", "one\ntwo"])
def test_names_are_text(name, drawn):
    """No mathematics, no control characters, no label as long as the panel."""
    made = TABLE | {"title": name, "rows": [[name, 1000, 1.0, 1.0, 30.0, 0.9], [name, None, None, None, 20.0, 0.9]]}
    tradeoff.tradeoff(made, "Set5")
    (label,) = (text.get_text() for text in drawn[0].axes[0].texts)
    assert len(label) <= 26
    assert label.isprintable()


def test_a_table_without_points_gets_one_line():
    with pytest.raises(UserError, match=r"--plot Set14: the table has no PSNR on it, only on: Set5"):
        tradeoff.tradeoff(TABLE, "Set14")
    with pytest.raises(UserError, match=r"--plot Set5: no row has a PSNR on Set5 and a cost"):
        tradeoff.tradeoff(TABLE | {"rows": TABLE["rows"][:1]}, "Set5")


# --- compare.py ---


@pytest.fixture
def written(tmp_path):
    tables.write_all(TABLE, str(tmp_path / "t"))
    return tmp_path / "t.json"


def test_a_table_is_drawn_while_it_is_made_and_again(tmp_path, photo, monkeypatch, capsys):
    monkeypatch.setattr(compare, "OUTPUT", (72, 128))
    write_png(tmp_path / "benchmark/One/HR/a.png", photo[:60, :64])
    save_tensors(tmp_path / "net.pt", pack(KRGN(scale=2, n_feats=8, n_resgroups=1), "KRGN"))
    flags = ("--cpu", "--data_test", "One", "--dir_data", tmp_path, "--n_runs", "1", "--ext", "img", "--plot", "One")
    compare.main([str(word) for word in ("bicubic", tmp_path / "net.pt", *flags, "--out", tmp_path / "out/t")])
    files = [tmp_path / f"out/t-One.{form}" for form in ("png", "pdf")]
    assert f"t.tex, {files[0]}, {files[1]}" in capsys.readouterr().out
    before = files[0].read_bytes()
    files[0].unlink()
    compare.main(["--table", str(tmp_path / "out/t.json"), "--plot", "One"])
    assert files[0].read_bytes() == before
    compare.main(["--table", str(tmp_path / "out/t.json"), "--plot", "One", "--out", str(tmp_path / "paper/fig")])
    assert sorted(path.name for path in (tmp_path / "paper").iterdir()) == ["fig-One.pdf", "fig-One.png"]


def test_files_of_others_are_left_alone(written, tmp_path):
    draw = ["--table", str(written), "--plot", "Set5"]
    compare.main(draw)
    compare.main(draw)  # its own figures may be replaced
    for form in ("png", "pdf"):
        mine = tmp_path / f"t-Set5.{form}"
        mine.write_bytes(b"mine")
        with pytest.raises(UserError, match=rf"t-Set5\.{form}: exists and was not drawn by compare\.py"):
            compare.main(draw)
        with pytest.raises(UserError, match="was not drawn by compare"):  # before anything is measured
            compare.main(["none.pt", "--plot", "Set5", "--data_test", "Set5", "--out", str(tmp_path / "t")])
        assert mine.read_bytes() == b"mine"
        mine.unlink()
        compare.main(draw)


def test_mistakes(written, tmp_path):
    for flags, words in {
        ("bicubic", "--plot", "Set5"): "--plot Set5 writes files beside the table: give --out",
        ("bicubic", "--plot", "B100", "--out", "t"): r"--plot B100: is not among --data_test Set5\+Set14",
        ("bicubic", "--plot", "Set5", "--out", "t"): "bicubic has no latency",
        ("--table", str(written)): "--plot Set5",
        ("--table", str(written), "--plot", "Set14"): "only on: Set5",
        ("--table", str(written), "--plot", "Set5", "bicubic"): "drop bicubic",
        ("--table", str(written), "--plot", "Set5", "--chop"): "drop --chop",
        ("--table", str(tmp_path / "no.json"), "--plot", "Set5"): "--table .*no.json",
        ("--table", str(written), "--plot", "Set5", "--out", f"{tmp_path}/"): "is a folder",
    }.items():
        with pytest.raises(UserError, match=words):
            compare.main(list(flags))
    (tmp_path / "odd.json").write_text(json.dumps({"title": "x"}))
    assert_one_line(program("compare.py", "--table", tmp_path / "odd.json", "--plot", "Set5"), "expected", "compare.py")
    assert_one_line(program("compare.py"), "required: ROW", "compare.py bicubic KRGN_x4")
