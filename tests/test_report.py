"""report.py: the page, looked at in a headless Chromium, the crop figure, and wrong input."""

import io
import json
import re

import browser
import numpy as np
import pytest
import torch
from conftest import assert_one_line, program
from helpers import randomise
from PIL import Image

import main as main_program
import report
from data import resize
from data.image import read_image, write_png
from evaluation.metrics import Protocol, Scores, psnr_ssim, rgb_to_y, scoring
from evaluation.results import SetResult, read_result
from model.checkpoint import pack
from model.krgn import KRGN
from option import parse_args
from reporting import comparison, figures
from reporting import page as pages
from runtime.errors import UserError
from runtime.files import save_tensors

PROTOCOL = scoring("y")

SIZES = {"ear": (60, 90), "eye": (72, 72), "fur": (80, 50)}  # (height, width): wide, square, tall


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.tensor(pixels).permute(2, 0, 1)


def write_test(folder, photo, noise: float, set_name: str = "Cat", names=tuple(SIZES), gt: bool = True) -> None:
    """What main.py --test_only --save_results --save_gt leaves at x2; SR is bicubic's residual by half, and noise."""
    rows = []
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        height, width = SIZES[name]
        hr = photo[40 + 60 * number :, 90 + 70 * number :][:height, :width]
        lr = resize.downscale(hr, 2)
        sr = (hr.astype(float) + resize.upscale(lr, 2)) / 2 + rng.normal(0, noise, hr.shape) * (number + 1)
        sr = sr.round().clip(0, 255).astype(np.uint8)
        for kind, pixels in (("SR", sr), ("LR", lr), ("HR", hr))[: 3 if gt else 1]:
            write_png(folder / f"results-{set_name}/{name}_x2_{kind}.png", pixels)
        psnr, ssim = psnr_ssim(tensor(sr), tensor(hr), 2)
        rows.append({"image": name, "PSNR": psnr, "SSIM": ssim})
    result = SetResult(
        set_name=set_name,
        scale=2,
        network="KRGN x2",
        protocol=Protocol(crop_border=2),
        scores=Scores(rows),
        seconds=0.1,
    )
    (folder / f"scores-{set_name}.json").write_text(result.to_json())


def read_scores(folder, set_name: str = "Cat") -> dict[str, tuple[float, float]]:
    return read_result(folder / f"scores-{set_name}.json").by_image


def edit(path, change) -> None:
    """Changes the content of a JSON file by a function."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def page_data(out) -> dict:
    page = (out / "index.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


@pytest.fixture
def tests(tmp_path, photo):
    """Two tested experiments, `good` and `bad`; the second wrote no LR and HR."""
    write_test(tmp_path / "good", photo, 2)
    write_test(tmp_path / "bad", photo, 6, gt=False)
    return tmp_path


def make(folder, *flags) -> None:
    report.main([str(folder / "good"), f"worse & <b>bad</b>={folder / 'bad'}", "--out", str(folder / "page"), *flags])


# --- what the page says ---


def test_a_page_of_what_main_wrote(small_set, tmp_path, capsys):
    """From main.py's own files: bicubic, scores, protocol and pictures are those of the test."""
    save_tensors(tmp_path / "net.pt", pack(randomise(KRGN(scale=2, n_feats=8, n_resgroups=1)), "KRGN"))
    flags = f"--cpu --n_threads 0 --test_only --pre_train {tmp_path}/net.pt --dir_data {small_set} --data_test Small"
    flags += f" --data_range 1-4/5-6 --dir_experiment {tmp_path} --save net --chop --save_results --save_gt"
    main_program.main(parse_args(flags.split()))
    report.main([str(tmp_path / "net"), "--out", str(tmp_path / "page")])

    page = (tmp_path / "page/index.html").read_text()
    assert f"Protocol: {PROTOCOL}; LR bicubic; four quadrants." in page
    assert not re.search(r"(src|href)=.?(https?:)?//", page)
    images = page_data(tmp_path / "page")["images"]
    said = read_scores(tmp_path / "net", "Small")
    assert {image["name"] for image in images} == said.keys()
    for image in images:
        bicubic, net, hr = image["views"]
        pixels = {view["label"]: read_image(tmp_path / "page" / view["src"]) for view in image["views"]}
        assert net["scores"] == pytest.approx(said[image["name"]])
        files = tmp_path / "net/results-Small"
        assert np.array_equal(pixels["net"], read_image(files / f"{image['name']}_x2_SR.png"))
        assert np.array_equal(pixels["HR"], read_image(files / f"{image['name']}_x2_HR.png"))
        enlarged = resize.upscale(read_image(files / f"{image['name']}_x2_LR.png"), 2)
        assert np.array_equal(pixels["bicubic"], enlarged)
        assert bicubic["scores"] == pytest.approx(psnr_ssim(tensor(enlarged), tensor(pixels["HR"]), 2))
        assert "scores" not in hr
    means = np.mean([image["views"][0]["scores"] for image in images], axis=0)
    row = re.search(r'<th scope="row">bicubic</th>(.*?)</tr>', page)[1]
    assert re.findall(r"[\d.]+", row) == [f"{means[0]:.2f}", f"{means[1]:.4f}"]
    assert "2 images" in capsys.readouterr().out


def test_names_are_text_and_nothing_else(tests):
    make(tests, "--title", "<i>& $title")
    page = (tests / "page/index.html").read_text()
    assert "<title>&lt;i&gt;&amp; $title</title>" in page
    assert "<b>" not in page
    assert page_data(tests / "page")["images"][0]["views"][2]["label"] == "worse & <b>bad</b>"


def test_error_maps():
    hr = np.zeros((40, 60, 3), np.uint8)
    sr = hr.copy()
    sr[20:30, 40:50] = 200
    error = pages.luma_error(sr, hr)
    expected = (rgb_to_y(tensor(sr)) - rgb_to_y(tensor(hr))).abs()[0].numpy()
    assert np.array_equal(error, expected)
    picture = pages.error_picture(error)
    assert (picture[0, 0] == pages.error_picture(np.zeros((1, 1)))[0, 0]).all()
    assert (picture[25, 45] == pages.error_picture(np.full((1, 1), pages.ERROR_MAX))[0, 0]).all()
    # Lightness alone tells the error: it rises all along the scale.
    scale = pages.error_picture(np.linspace(0, pages.ERROR_MAX, 33)[None])
    assert (np.diff(rgb_to_y(tensor(scale)).numpy()[0, 0]) > 0).all()
    gray = pages.luma_error(sr[..., :1], hr[..., :1])
    assert gray[25, 45] == 200


def test_crops_begin_at_the_largest_error():
    error = np.zeros((300, 200))
    error[220:268, 100:148] = 1
    assert pages.worst_point(error) == (124, 244)
    assert pages.worst_point(np.ones((9, 200))) == (24, 4)


def test_the_best_are_told_by_printed_digits():
    scores = {"a": (30.001, 0.9), "b": (29.999, 0.91), "c": (float("nan"), 0.5)}
    assert comparison.best_scores(scores) == {"a": [True, False], "b": [True, True], "c": [False, False]}
    assert comparison.printed((float("inf"), 1.0)) == ["∞", "1.0000"]
    assert comparison.printed((float("nan"), 1.0)) == ["n/a", "1.0000"]


def test_sets_of_the_page(tests, photo, capsys):
    """Only common images; sets in natural order; ways of scoring that differ are told apart."""
    for name, folder in (("Set14", "good"), ("Set5", "good"), ("Set5", "bad")):
        write_test(tests / folder, photo, 3, name, ("eye",))
    for path in (tests / "bad").glob("scores-*.json"):
        edit(path, lambda content: content["protocol"].update(chop=True, precision="bf16"))
    make(tests)
    assert [(image["set"], image["name"]) for image in page_data(tests / "page")["images"]] == [
        *(("Cat", name) for name in SIZES),
        ("Set5", "eye"),
    ]
    assert "left out, because not every experiment has them: Set14/eye" in capsys.readouterr().out
    page = (tests / "page/index.html").read_text()
    assert f"good on Cat, Set5: {PROTOCOL}; LR bicubic; whole image." in page
    assert f"on Cat, Set5: {PROTOCOL}; LR bicubic; four quadrants; bf16 precision." in page


def test_a_table_of_compare(tests):
    table = {
        "title": "All < there is",
        "columns": ["method", "parameters", "Set5 PSNR", "latency (ms)"],
        "rows": [["KRGN", 528016, 32.376, 12.34], ["plain", None, 32.1, 0.5], ["<x>", "1K", float("nan"), 2.0]],
        "notes": ["measured & published"],
    }
    (tests / "table.json").write_text(json.dumps(table))
    make(tests, "--table", str(tests / "table.json"))
    page = (tests / "page/index.html").read_text()
    assert "All &lt; there is" in page
    assert "measured &amp; published" in page
    assert "<td>528,016</td><td><strong>32.38</strong></td><td>12.3</td>" in page
    assert "<td></td><td>32.10</td><td>0.5</td>" in page
    assert "<td>1K</td><td>n/a</td>" in page


# --- whose files ---


def test_a_page_is_renewed_and_foreign_folders_are_left_alone(tests, capsys):
    make(tests)
    page = tests / "page"
    (page / "notes.txt").write_text("mine")
    (page / "images/Cat/mine.png").write_text("mine")
    for name in ("good", "bad"):
        edit(tests / name / "scores-Cat.json", lambda content: content["images"].pop())
    make(tests)
    assert not list(page.glob("images/Cat/fur*"))
    assert (page / "images/Cat/mine.png").read_text() == (page / "notes.txt").read_text() == "mine"
    assert len(page_data(page)["images"]) == 2

    (tests / "photos").mkdir()
    (tests / "photos/index.html").write_text("mine")
    with pytest.raises(UserError, match="not made by this program"):
        report.main([str(tests / "good"), "--out", str(tests / "photos")])
    assert (tests / "photos/index.html").read_text() == "mine"


def rename_set(folder) -> None:
    edit(folder / "scores-Cat.json", lambda content: content.update(set="Dog"))
    (folder / "scores-Cat.json").rename(folder / "scores-Dog.json")


def other_score(content: dict) -> None:
    content["images"][0]["PSNR"] += 0.01


MISTAKES = {
    "older test": (
        lambda f: (f / "bad/scores-Cat.json").rename(f / "bad/scores-Cat.csv"),
        "has scores-Cat.csv of an older version, but no scores-Cat.json: test again with main.py --test_only",
    ),
    "renamed": (
        lambda f: (f / "bad/scores-Cat.json").rename(f / "bad/scores-Dog.json"),
        "has scores of Cat",
    ),
    "no folder": (lambda f: (f / "bad").rename(f / "gone"), "no such folder"),
    "not tested": (lambda f: (f / "bad/scores-Cat.json").unlink(), "has no scores-<Set>.json: test again with main.py"),
    "no HR": (lambda f: (f / "good/results-Cat/ear_x2_HR.png").unlink(), "--save_results --save_gt"),
    "no SR": (lambda f: (f / "bad/results-Cat/ear_x2_SR.png").unlink(), "--save_results --save_gt"),
    "other content": (
        lambda f: (f / "bad/scores-Cat.json").write_text('{"a": 1}'),
        "is not what main.py writes (no 'format'): test again",
    ),
    "other test": (lambda f: edit(f / "good/scores-Cat.json", other_score), "different tests"),
    "other scale": (
        lambda f: edit(f / "bad/scores-Cat.json", lambda content: content.update(scale=3)),
        "different scales (good x2",
    ),
    "nothing common": (lambda f: rename_set(f / "bad"), "no image was scored"),
    "other size": (
        lambda f: write_png(f / "bad/results-Cat/ear_x2_SR.png", np.zeros((9, 9, 3), np.uint8)),
        "9x9 pixels, expected 90x60",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(tests, mistake):
    break_it, words = MISTAKES[mistake]
    break_it(tests)
    with pytest.raises(UserError) as caught:
        make(tests)
    assert words in str(caught.value)
    assert not (tests / "page").exists()


def test_other_lr_images_are_not_compared(tests, photo):
    write_test(tests / "bad", photo, 6)
    write_png(tests / "bad/results-Cat/ear_x2_LR.png", np.zeros((30, 45, 3), np.uint8))
    with pytest.raises(UserError, match="differ: compare experiments that were tested on the same images"):
        make(tests)


def test_long_names_are_shortened(tmp_path, photo, monkeypatch):
    """To which the page's pictures add more than tests' do."""
    long = "n" * 240
    monkeypatch.setitem(SIZES, long, (40, 50))
    write_test(tmp_path / "test", photo, 2, names=(long,))
    report.main([str(tmp_path / "test"), "--out", str(tmp_path / "page")])
    assert page_data(tmp_path / "page")["images"][0]["name"] == long
    assert len(list((tmp_path / "page/images/Cat").iterdir())) == 6


def test_mistakes_of_flags(tests):
    good = str(tests / "good")
    for flags, words in (
        ([good, good], "two columns would be called 'good'"),
        ([f"HR={good}"], "two columns would be called 'HR'"),
        ([f"={good}"], "has no name before the ="),
        ([good, "--table", str(tests / "no.json")], "no such file"),
        ([good, "--table", str(tests / "good/results-Cat/ear_x2_HR.png")], "no JSON"),
    ):
        with pytest.raises(UserError) as caught:
            report.main([*flags, "--out", str(tests / "page")])
        assert words in str(caught.value)
    for wrong in ([], {"title": "a", "columns": ["b"], "rows": [["c", 1]], "notes": []}, {"title": 1}):
        (tests / "table.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="with a cell for each column"):
            make(tests, "--table", str(tests / "table.json"))
    assert not (tests / "page").exists()
    assert_one_line(program("report.py", tests / "none", "--out", tests / "page"), "none", "no such folder")


# --- the figure ---


def test_the_figure(tests, monkeypatch):
    drawn = {}
    original = figures.crop_comparison

    def spy(name, whole, box, crops):
        drawn.update(name=name, box=box, crops=crops)
        return original(name, whole, box, crops)

    monkeypatch.setattr(figures, "crop_comparison", spy)
    make(tests, "--figure", "eye", "10", "20", "40", "24")
    path = tests / "page/figure_Cat_eye_10_20_40_24.png"
    assert min(Image.open(path).size) > 300
    assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert not (tests / "page/index.html").exists()
    assert [label for label, _, _ in drawn["crops"]] == ["HR", "bicubic", "good", "worse & <b>bad</b>"]
    hr = read_image(tests / "good/results-Cat/eye_x2_HR.png")
    assert np.array_equal(drawn["crops"][0][2], hr[20:44, 10:50])
    score = read_scores(tests / "good")["eye"]
    assert drawn["crops"][2][1] == [(f"{score[0]:.2f}", True), (f"{score[1]:.4f}", True)]
    assert [best for _, best in drawn["crops"][1][1]] == [False, False]


def test_mistakes_of_the_figure(tests, photo):
    for words, said in (
        (("eye", "40", "0", "40", "10"), "does not lie within Cat/eye, which has 72x72 pixels"),
        (("eye", "-1", "0", "4", "10"), "does not lie within"),
        (("eye", "0", "0", "0", "10"), "does not lie within"),
        (("eye", "a", "0", "4", "10"), "four whole numbers"),
        (("nose", "0", "0", "4", "10"), "give one of Cat/ear, Cat/eye, Cat/fur"),
    ):
        with pytest.raises(UserError) as caught:
            make(tests, "--figure", *words)
        assert said in str(caught.value)
    for name in ("good", "bad"):
        write_test(tests / name, photo, 3, "Dog", ("eye",))
    with pytest.raises(UserError, match="give Cat/eye or Dog/eye"):
        make(tests, "--figure", "eye", "0", "0", "8", "8")
    assert not (tests / "page").exists()


# --- in a browser ---


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    found = browser.find()
    if found is None:
        pytest.skip(f"needs a browser: one of {', '.join(browser.PROGRAMS)} (Debian: apt install chromium)")
    with browser.Browser(found, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory, photo):
    """(address of a page, folder of the experiments)"""
    folder = tmp_path_factory.mktemp("a page #1 ?")  # a name that an address must quote
    write_test(folder / "good", photo, 2)
    write_test(folder / "bad", photo, 6)
    make(folder)
    return (folder / "page/index.html").as_uri(), folder


@pytest.fixture
def opened(chromium, page):
    chromium.problems.clear()
    chromium.size(1280, 900)
    chromium.open(page[0])
    yield chromium
    assert chromium.problems == []


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def choose(opened, name: str, value: str) -> None:
    opened.run(
        f"(s => {{ s.value = {value!r}; s.dispatchEvent(new Event('change')) }})(document.getElementById({name!r}))"
    )
    opened.pictures()


def test_the_slider_moves_by_keyboard_and_the_picture_with_it(opened, page):
    name = opened.run("state.image.name")
    before = pixels_of(opened.screenshot("#stage"))
    opened.run("document.getElementById('slider').focus()")
    opened.press("ArrowRight", 20)
    assert opened.run("document.getElementById('slider').value") == "70"
    assert opened.run("document.getElementById('slider').getAttribute('aria-valuetext')") == "70 % bicubic, 30 % good"
    assert opened.run("document.getElementById('left-layer').style.clipPath") == "inset(0px 30% 0px 0px)"
    after = pixels_of(opened.screenshot("#stage"))
    width = before.shape[1]
    assert np.abs(before - after)[:, int(0.53 * width) : int(0.67 * width)].max() > 8
    assert np.array_equal(before[:, int(0.75 * width) :], after[:, int(0.75 * width) :])

    # At the left end the right picture is all there is, and the other way round.
    shown = {}
    for key, side in (("Home", "right"), ("End", "left")):
        opened.press(key)
        choose(opened, side, "3")
        shown[side] = pixels_of(opened.screenshot("#stage"))
        choose(opened, side, "1" if side == "right" else "0")
        assert np.abs(pixels_of(opened.screenshot("#stage")) - shown[side]).max() > 8
    middle = slice(int(0.1 * width), int(0.9 * width))
    assert np.array_equal(shown["left"][:, middle], shown["right"][:, middle])

    texts = opened.run("[...document.querySelectorAll('figcaption')].map(c => c.innerText.split('\\n'))")
    good, bad = (read_scores(page[1] / folder)[name] for folder in ("good", "bad"))
    assert texts[1] == ["good", f"{good[0]:.2f} / {good[1]:.4f}"]
    assert texts[2] == ["worse & <b>bad</b>", f"{bad[0]:.2f} / {bad[1]:.4f}"]
    assert opened.run("[...document.querySelectorAll('figcaption strong')].map(s => s.innerText)") == [
        f"{good[0]:.2f}",
        f"{good[1]:.4f}",
    ]


def test_worst_and_best_first(opened, page):
    scores = {folder: read_scores(page[1] / folder) for folder in ("good", "bad")}
    names = "[...document.querySelectorAll('#list .label')].map(l => l.innerText)"
    expected = sorted(scores["good"], key=lambda name: scores["good"][name][0])
    assert opened.run(names) == expected
    choose(opened, "order", "best")
    assert opened.run(names) == expected[::-1]
    choose(opened, "by", "2")
    assert opened.run(names) == sorted(scores["bad"], key=lambda name: -scores["bad"][name][0])
    choose(opened, "order", "name")
    assert opened.run(names) == sorted(SIZES)
    # The list's links open an image by keyboard, and the address keeps it.
    opened.run("document.querySelectorAll('#list a')[2].focus()")
    opened.press("Enter")
    opened.wait("state.image.name === 'fur'")
    assert opened.run("document.querySelector('#list [aria-current]').innerText").startswith("fur")
    opened.open(page[0] + "#Cat/ear")
    assert opened.run("document.getElementById('name').innerText").startswith("ear Cat \N{MULTIPLICATION SIGN}2, 90")


def test_crops_move_and_zoom_together(opened, page):
    opened.open(page[0] + "#Cat/eye")
    crops = "[...document.querySelectorAll('.crop img')].map(i => i.style.transform + i.style.width)"
    before = opened.run(crops)
    assert len(set(before)) == 1
    assert len(before) == 4
    opened.run("document.getElementById('stage').focus()")
    opened.press("+", 5)
    assert opened.run("document.getElementById('zoom').value") == "32\N{MULTIPLICATION SIGN}"
    opened.press("ArrowLeft", 2)
    opened.press("ArrowRight")
    after = opened.run(crops)
    assert len(set(after)) == 1
    assert after != before
    # Each pixel of the image is a square of 32x32 screen pixels of one colour.
    opened.run("document.getElementById('slider').focus()")
    opened.press("Home")
    opened.run("document.getElementById('box').hidden = document.getElementById('divider').hidden = true")
    opened.pictures()
    shot = pixels_of(opened.screenshot("#stage"))
    x, y = opened.run(
        "[...document.getElementById('right-picture').style.transform.matchAll(/(-?\\d+)px/g)].map(m => Number(m[1]))"
    )
    top, left = y % 32 + 32, x % 32 + 32
    square = shot[top : top + 32, left : left + 32]
    source = read_image(page[1] / "good/results-Cat/eye_x2_SR.png")[(top - y) // 32, (left - x) // 32]
    assert (square == source).all()

    # Dragging a crop moves the pictures with it; the zoom is left by its button.
    opened.run("document.querySelector('.crop').scrollIntoView({block: 'center'})")
    box = opened.run("(({x, y}) => [x, y])(document.querySelector('.crop').getBoundingClientRect())")
    at = opened.run("[state.x, state.y]")
    opened.drag((box[0] + 50, box[1] + 50), (box[0] + 82, box[1] + 50))
    assert opened.run("[state.x, state.y]") == pytest.approx([at[0] - 1, at[1]], abs=0.02)
    opened.run("document.getElementById('zoom-fit').click()")
    assert opened.run("document.getElementById('zoom').value") == "fit"


def test_dragging_on_the_pictures(opened):
    opened.run("document.getElementById('stage').scrollIntoView({block: 'center'})")
    x, y, width, height = opened.run(
        "(({x, y, width, height}) => [x, y, width, height])(document.getElementById('stage').getBoundingClientRect())"
    )
    opened.drag((x + width / 2, y + height / 2), (x + width / 4, y + height / 2))
    assert opened.run("state.split") == 25
    opened.drag((x + 0.75 * width, y + 0.5 * height), (x + 0.75 * width, y + 0.5 * height))
    size = opened.run("[state.image.width, state.image.height]")
    assert opened.run("[state.x, state.y]") == pytest.approx([0.75 * size[0], 0.5 * size[1]], abs=1)
    assert opened.run("state.split") == 25


def test_error_maps_have_a_legend(opened):
    assert opened.run("document.getElementById('legend').hidden")
    opened.run("document.getElementById('maps').click()")
    opened.pictures()
    assert opened.run("document.getElementById('legend').innerText.includes('32 and more')")
    sources = opened.run("[...document.querySelectorAll('.crop img')].map(i => i.src.split('_').pop())")
    assert sources == ["error.png", "error.png", "error.png", "HR.png"]
    opened.run("document.getElementById('maps').click()")
    choose(opened, "right", "m1")
    assert opened.run("document.getElementById('right-picture').alt").startswith("Error map of ")
    assert not opened.run("document.getElementById('legend').hidden")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_widths_and_colours(opened, page, width, dark):
    """Nothing overflows; text has the contrast that WCAG AA asks for, 4.5, in both schemes."""
    opened.size(width, 800, dark=dark)
    opened.open(page[0])
    assert opened.run("document.documentElement.scrollWidth") == width
    ground = pixels_of(opened.screenshot())[0, 0]
    assert (ground.mean() < 60) == dark
    colors = opened.run(
        "['body', '.note', '.controls label', '#list .score', 'button'].map(s => getComputedStyle("
        "document.querySelector(s)).color.match(/\\d+/g).map(Number))"
    )
    for color in colors:
        light, shade = sorted((_luminance(color), _luminance(ground)), reverse=True)
        assert (light + 0.05) / (shade + 0.05) >= 4.5


def _luminance(color) -> float:
    """WCAG's relative luminance of an sRGB colour in 0..255."""
    channels = [value / 255 for value in color]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def test_everything_has_a_name_and_shows_its_focus(opened):
    nodes = opened.call("Accessibility.getFullAXTree")["nodes"]
    named = {}
    for node in nodes:
        role = node.get("role", {}).get("value")
        if not node.get("ignored"):
            named.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    assert named["slider"] == ["Boundary between the pictures"]
    assert {"Left", "Right", "Order"} <= set(named["combobox"])
    assert all(
        name.strip() for role in ("slider", "combobox", "button", "checkbox", "link", "image") for name in named[role]
    )

    seen = []
    opened.run("document.activeElement.blur()")
    for _ in range(20):
        opened.press("Tab")
        focused = opened.run("document.activeElement.id || document.activeElement.className || 'link'")
        if focused not in ("link", "BODY"):
            opened.wait("getComputedStyle(document.activeElement).outlineStyle === 'solid'")
        seen.append(focused)
    order = ["scroll", "order", "by", "link", "next", "left", "right", "zoom-in", "stage", "slider", "maps"]
    places = [seen.index(name) for name in order]
    assert places == sorted(places)
