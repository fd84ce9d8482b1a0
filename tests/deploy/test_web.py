"""The page that runs a network in the browser: its folder, its package of npm, and the page itself in Chromium."""

import base64
import contextlib
import functools
import hashlib
import http.server
import io
import json
import re
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import browser
import numpy as np
import pytest
import torch
from helpers import randomise
from PIL import Image

import export
from data import resize
from deploy import npm, web_form
from deploy.context import ExportContext
from model.checkpoint import pack, rebuild, unpack
from model.edsr import EDSR
from model.krgn import KRGN
from model.weights import load_tensors
from runtime.errors import UserError
from runtime.files import digest, save_tensors

SHAPE = {"scale": 3, "n_feats": 8, "n_resgroups": 1, "groups": 4}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A small network's folder, made once."""
    try:
        npm.package_files(web_form.ONNXRUNTIME, ())
    except UserError as error:
        pytest.skip(f"onnxruntime-web is needed: {error}")
    folder = tmp_path_factory.mktemp("web")
    torch.manual_seed(3)
    save_tensors(folder / "trained.pt", pack(randomise(KRGN(**SHAPE), 0.1), "KRGN"))
    flags = ["--pre_train", str(folder / "trained.pt"), "--out", str(folder / "out"), "--formats", "web"]
    export.main(flags)
    return folder / "out"


@pytest.fixture(scope="module")
def extreme(tmp_path_factory) -> tuple[Path, KRGN, ExportContext]:
    """The graph of a network with weights that float16 cannot hold, the network, and what it was exported with."""
    path, network = tmp_path_factory.mktemp("extreme") / "x_web.onnx", KRGN(**SHAPE, recalibrated=False).eval()
    with torch.no_grad():
        network.features_fusion_module[2].weight *= 1e6
        network.upsampler[0].weight *= 1e-6
    context = ExportContext(torch.rand(1, 3, 20, 24) * 255)
    web_form.write_onnx(network, path, context)
    return path, network, context


def by_torch(site: Path, pixels: np.ndarray) -> np.ndarray:
    """The folded network's picture, uint8 (H, W, 3) -> float (3 H, 3 W, 3)."""
    network = rebuild(unpack(load_tensors(site / "KRGN_x3.safetensors"), "")).eval()
    with torch.no_grad():
        image = network(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())[0]
    return image.round().clamp(0, 255).permute(1, 2, 0).numpy()


# --- the folder ---


def test_the_folder_is_whole_and_names_no_other_host(site):
    report = json.loads((site / "export.json").read_text())
    entry = report["files"]["KRGN_x3_web.onnx"]
    assert entry["format"] == "web"
    assert entry["max_error"] < 0.5
    names = {"KRGN_x3_web.onnx", *web_form.FILES}
    assert set(entry["files"]) == names
    assert {path.name for path in site.iterdir()} == names | {"KRGN_x3.safetensors", "export.json", "README.md"}
    for name in ("index.html", "page.css", "page.js", "worker.js"):
        text = (site / name).read_text()
        assert not re.search(r"""\b(?:https?|wss?):|["'(]//\w""", text), name
        assert "@" not in re.sub(r"@media", "", text), name  # every word of the template is replaced
        for target in re.findall(r"""(?:href|src)="([^"#:]+)"|["']\./([\w.-]+\.mjs)["']""", text):
            assert (site / "".join(target)).is_file(), target
    for name in web_form.RUNTIME:  # all they may name is an explanation in an error message
        hosts = set(re.findall(rb"https?://([\w.-]+\w)", (site / name).read_bytes())) if name.endswith("mjs") else set()
        assert hosts <= {b"web.dev"}


def test_kernels_are_stored_in_float16_where_that_is_invisible(site, extreme, tmp_path):
    import onnx

    model = onnx.load(site / "KRGN_x3_web.onnx")
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) >= 2}
    assert kinds == {onnx.TensorProto.FLOAT16}
    graph, network, context = extreme
    path = Path(shutil.copy(graph, tmp_path))
    web_form.store_weights_in_float16(path, network, context)
    assert all(tensor.data_type != onnx.TensorProto.FLOAT16 for tensor in onnx.load(path).graph.initializer)
    image = context.example
    with torch.no_grad():
        assert np.abs(web_form.read_web(path, {})(image.numpy()) - network(image).numpy()).max() < 0.01
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("network", "exact"), [(KRGN(**SHAPE), False), (EDSR(scale=2, n_feats=8, n_resblocks=2), True)]
)
def test_the_page_knows_whether_tiles_are_exact(network, exact, tmp_path):
    (tmp_path / "NAME_x2_web.onnx").write_bytes(b"x")
    page = web_form._page(network.eval(), tmp_path / "NAME_x2_web.onnx")
    facts = json.loads(re.search(r'id="facts">(.*?)</script>', page)[1])
    assert facts["exactTiles"] is exact
    assert facts["halo"] == (8 if exact else 32)
    assert (facts["file"], facts["scale"]) == ("NAME_x2_web.onnx", network.hyperparameters["scale"])


def test_check_finds_what_was_changed(site, extreme, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(site, out)
    export.main(["--check", str(out)])
    assert f"all {len(web_form.FILES) + 2} files are as they were exported" in capsys.readouterr().out
    (out / "page.js").write_text("// other")
    (out / "sample.png").unlink()
    with pytest.raises(UserError, match=r"page\.js is changed; sample\.png is missing"):
        export.main(["--check", str(out)])
    for name in ("page.js", "sample.png"):
        shutil.copy(site / name, out)
    # Another network's graph, and a report that vouches for it.
    path = out / "KRGN_x3_web.onnx"
    shutil.copy(extreme[0], path)
    report = json.loads((out / "export.json").read_text())
    report["files"][path.name]["files"][path.name]["sha256"] = digest(path)
    (out / "export.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match=r"KRGN_x3_web\.onnx differs by"):
        export.main(["--check", str(out)])


def test_a_page_of_others_is_left_alone(site, tmp_path):
    (tmp_path / "index.html").write_text("somebody's")
    to = ["--pre_train", str(site.parent / "trained.pt"), "--out", str(tmp_path)]
    with pytest.raises(UserError, match=r"index\.html: exists and is not listed"):
        export.main([*to, "--formats", "web"])
    export.main([*to, "--formats", "pt"])  # which writes no page
    assert (tmp_path / "index.html").read_text() == "somebody's"


def test_a_network_of_one_colour_is_refused_before_anything_is_written(tmp_path):
    save_tensors(tmp_path / "gray.pt", pack(KRGN(**SHAPE, n_colors=1), "KRGN"))
    with pytest.raises(UserError, match="got a network of 1 channel, expected RGB: export it as onnx"):
        export.main(["--pre_train", str(tmp_path / "gray.pt"), "--out", str(tmp_path / "out"), "--formats", "web"])
    assert not (tmp_path / "out").exists()


# --- the package ---


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry with a package of one file, an empty cache, and no npm: (package, archive, log of requests)."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        info = tarfile.TarInfo("package/dist/a.mjs")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"hello"))
    archive, asked = content.getvalue(), []

    class Registry(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(archive)

        def log_message(self, *_):
            pass

    integrity = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(npm, "REGISTRY", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(npm.shutil, "which", lambda _: None)
        yield npm.Package("thing", "1.2.3", integrity), archive, asked
        server.shutdown()


def test_a_package_is_downloaded_once(registry, monkeypatch, tmp_path):
    package, archive, asked = registry
    for _ in range(2):
        assert npm.package_files(package, ("dist/a.mjs",)) == {"dist/a.mjs": b"hello"}
    assert asked == ["/thing/-/thing-1.2.3.tgz"]
    kept = tmp_path / "cache/krgn/thing-1.2.3.tgz"
    assert kept.read_bytes() == archive
    kept.write_bytes(archive[:-1])  # as a disk that was full leaves it
    assert npm.package_files(package, ("dist/a.mjs",)) == {"dist/a.mjs": b"hello"}
    assert len(asked) == 2
    assert kept.read_bytes() == archive
    monkeypatch.setattr(npm, "REGISTRY", "http://127.0.0.1:9")  # no network any more
    npm.package_files(package, ())


@pytest.mark.usefixtures("registry")
def test_another_archive_than_the_pinned_one_is_refused(tmp_path):
    other = npm.Package("thing", "1.2.3", "sha512-" + "A" * 86 + "==")
    with pytest.raises(UserError, match=r"thing-1\.2\.3\.tgz with another SHA-512"):
        npm.package_files(other, ())
    assert not list(tmp_path.rglob("*.tgz"))


def test_without_network_and_cache_one_line_says_what_to_do(registry, monkeypatch, tmp_path):
    monkeypatch.setattr(npm, "REGISTRY", "http://127.0.0.1:9")
    save_tensors(tmp_path / "trained.pt", pack(KRGN(**SHAPE), "KRGN"))
    with pytest.raises(
        UserError, match=r"not in \S*cache/krgn and cannot be downloaded .*npm pack onnxruntime-web@"
    ) as e:
        export.main(["--pre_train", str(tmp_path / "trained.pt"), "--out", str(tmp_path / "out"), "--formats", "web"])
    assert "\n" not in str(e.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("registry")
def test_a_download_that_ends_early_is_one_line(monkeypatch):
    class Short(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"half")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Short) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(npm, "REGISTRY", f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(UserError, match=r"cannot be downloaded \(IncompleteRead\(4 bytes read"):
            npm.package_files(npm.Package("thing", "1.2.3", "sha512-x"), ())
        server.shutdown()


@pytest.mark.skipif(not shutil.which("bash"), reason="npm's place is taken by a script")
def test_npm_fetches_where_it_is_installed(registry, monkeypatch, tmp_path):
    package, archive, asked = registry
    (tmp_path / "archive").write_bytes(archive)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    script = tmp_path / "bin/npm"
    script.parent.mkdir()
    script.write_text(
        f'#!/usr/bin/env bash\n[ "$1 $2" = "pack thing@1.2.3" ] && cp {tmp_path}/archive "$4/thing-1.2.3.tgz"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    assert npm.package_files(package, ("dist/a.mjs",)) == {"dist/a.mjs": b"hello"}
    assert not asked
    shutil.rmtree(tmp_path / "cache")
    script.write_text("#!/usr/bin/env bash\necho 'npm error: no such host' >&2\necho more >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"cannot be downloaded \(npm error: no such host\): connect"):
        npm.package_files(package, ())


# --- the page in a browser ---


@contextlib.contextmanager
def serving(folder: Path):
    """The address at which a folder's own server serves it."""
    server = subprocess.Popen([sys.executable, folder / "serve.py", "0"], stdout=subprocess.PIPE, text=True)
    try:
        yield server.stdout.readline().split()[0]
    finally:
        server.terminate()
        server.wait(10)
        server.stdout.close()


@pytest.fixture(scope="module")
def served(site):
    with serving(site) as address:
        yield address


@contextlib.contextmanager
def browsing(tmp_path_factory, **options):
    """A browser, and the folder for its downloads as an attribute of it."""
    program = browser.find()
    if program is None:
        pytest.skip("needs Chromium (apt install chromium)")
    with browser.Browser(program, tmp_path_factory.mktemp("profile"), **options) as page:
        page.downloads = tmp_path_factory.mktemp("downloads")
        page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(page.downloads))
        yield page


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browsing(tmp_path_factory) as page:
        yield page


@pytest.fixture
def page(chromium, served):
    """The page, opened anew; at the end it must have asked no other host, and complained of nothing."""
    chromium.problems.clear()
    visit(chromium, served)
    yield chromium
    elsewhere = [
        problem for problem in chromium.problems if not problem.startswith((f"asks for {served}", "asks for blob:"))
    ]
    assert [problem for problem in elsewhere if "No available adapters" not in problem] == []


def visit(page, address: str) -> None:
    page.size(900, 800)
    page.open(address)
    page.wait("document.documentElement.dataset.ready === ''")


def give(page, path: Path) -> None:
    """Chooses a file, as the browser's dialog does."""
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


def text(page, name: str) -> str:
    return page.run(f"document.getElementById({name!r}).textContent")


def computed(page) -> Image.Image:
    """Waits for the result and downloads it."""
    page.wait("!document.getElementById('result').hidden || !document.getElementById('problem').hidden")
    assert text(page, "problem") == ""
    for path in page.downloads.iterdir():
        path.unlink()
    page.run("document.getElementById('download').click()")
    end = time.monotonic() + browser.TIMEOUT
    # Chromium makes an empty file of that name first, and moves the complete one there.
    while not (found := [path for path in page.downloads.glob("*.png") if path.stat().st_size]):
        assert time.monotonic() < end, "nothing was downloaded"
        time.sleep(0.02)
    image = Image.open(io.BytesIO(found[0].read_bytes()))
    image.name = found[0].name
    return image


def problem(page) -> str:
    page.wait("!document.getElementById('problem').hidden")
    return text(page, "problem")


@pytest.fixture
def photograph(tmp_path, photo) -> tuple[Path, np.ndarray]:
    """A file of 64x48 pixels, and its pixels."""
    pixels = photo[100:148, 120:184]
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    return tmp_path / "cat.png", pixels


def test_a_photograph_is_what_torch_computes(page, site, photograph):
    path, pixels = photograph
    give(page, path)
    image = computed(page)
    assert image.name == "cat_x3.png"
    assert np.abs(np.asarray(image.convert("RGB")) - by_torch(site, pixels)).max() <= 1
    assert re.fullmatch(
        r"64 . 48 to 192 . 144 pixels in .+ s: [\d.]+ megapixels a second \(\d+ threads?\)\.", text(page, "status")
    )
    assert "Computed whole" in text(page, "exactness")
    assert "no WebGPU" in text(page, "engine-note")
    assert page.run("crossOriginIsolated")  # so that there are threads
    bicubic = page.run(
        "[...document.getElementById('bicubic').getContext('2d').getImageData(0, 0, 192, 144).data]",
    )
    expected = resize.upscale(pixels, 3).astype(int)
    assert np.abs(np.reshape(bicubic, (144, 192, 4))[:, :, :3] - expected).max() <= 1


def test_any_static_server_serves_it_with_one_thread(chromium, site, photograph):
    path, pixels = photograph

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        visit(chromium, f"http://127.0.0.1:{server.server_address[1]}/index.html")
        assert "one thread, because this server does not send the headers" in text(chromium, "engine-note")
        give(chromium, path)
        assert np.abs(np.asarray(computed(chromium).convert("RGB")) - by_torch(site, pixels)).max() <= 1
        assert "(1 thread)" in text(chromium, "status")
        server.shutdown()


def test_tiles_are_put_together_without_seams(page, site, tmp_path, photo):
    """Each tile sees 32 pixels more on each side; KRGN's attention then averages over that window."""
    pixels = photo[20:170, 60:200]
    Image.fromarray(pixels).save(tmp_path / "p.png")
    page.run("document.getElementById('tile').value = '128'")
    give(page, tmp_path / "p.png")
    image = np.asarray(computed(page).convert("RGB"))
    assert "Computed in 4 tiles" in text(page, "exactness")
    assert "differs a little" in text(page, "exactness")
    for top, bottom in ((0, 75), (75, 150)):
        for left, right in ((0, 70), (70, 140)):
            y, x = max(0, top - 32), max(0, left - 32)
            window = by_torch(site, pixels[y : bottom + 32, x : right + 32])
            expected = window[3 * (top - y) : 3 * (bottom - y), 3 * (left - x) : 3 * (right - x)]
            assert np.abs(image[3 * top : 3 * bottom, 3 * left : 3 * right] - expected).max() <= 1


def test_alpha_is_enlarged(page, tmp_path, photo):
    pixels = np.dstack([photo[100:130, 120:150], np.full((30, 30), 255, np.uint8)])
    pixels[:, :10, 3] = 90
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    give(page, tmp_path / "alpha.png")
    image = computed(page)
    assert image.mode == "RGBA"
    expected = resize.upscale(np.ascontiguousarray(pixels[:, :, 3:]), 3)[:, :, 0].astype(int)
    assert np.abs(np.asarray(image)[:, :, 3] - expected).max() <= 1


def test_what_is_transparent_does_not_darken_edges(page, site, tmp_path):
    pixels = np.full((30, 40, 4), 250, np.uint8)
    pixels[:, :, 3] = 0
    pixels[8:20, 5:25, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "logo.png")
    give(page, tmp_path / "logo.png")
    image = np.asarray(computed(page)).astype(int)
    seen = image[:, :, 3] > 127  # a canvas rounds the colours of what is fainter
    assert seen.sum() > 2000
    expected = by_torch(site, pixels[:, :, :3])
    assert np.abs(image[:, :, :3] - expected)[seen].max() <= 2


def test_bicubic_does_not_show_through_the_result(page, tmp_path):
    Image.new("RGBA", (40, 30), (200, 40, 40, 128)).save(tmp_path / "pale.png")
    give(page, tmp_path / "pale.png")
    computed(page)
    page.run("document.getElementById('slider').value = 25; document.getElementById('slider').oninput()")
    cuts = [
        [float(edge) for edge in re.findall(r"[\d.]+", page.run(f"document.getElementById('{name}').style.clipPath"))]
        for name in ("bicubic", "network")
    ]
    (_, right, _, _), (_, _, _, left) = ((cut * 4)[:4] if len(cut) == 1 else cut for cut in cuts)
    width = page.run("document.getElementById('pictures').getBoundingClientRect().width")
    assert left == pytest.approx(width / 4, abs=0.1)
    assert left + right == pytest.approx(width, abs=0.1)


@pytest.mark.parametrize("shape", [(200, 4), (4, 300)])
def test_the_names_fit_beside_each_other_on_narrow_pictures(page, tmp_path, shape):
    Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(tmp_path / "strip.png")
    give(page, tmp_path / "strip.png")
    computed(page)
    left, right, stage = (
        page.run(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
        for selector in (".name.left", ".name.right", "#stage")
    )
    assert stage["left"] <= left["left"] < left["right"] <= right["left"] < right["right"] <= stage["right"]
    assert all(stage["top"] <= name["top"] < name["bottom"] <= stage["bottom"] for name in (left, right))
    assert left["height"] < 30  # one line


def test_an_older_result_does_not_come_while_a_new_picture_is_read(page, tmp_path, photo):
    Image.fromarray(photo[:240, :240]).save(tmp_path / "first.png")  # not ready before the second is chosen
    Image.fromarray(photo[:20, :30]).save(tmp_path / "second.png")
    page.run(
        """void (() => {
            const decode = createImageBitmap;
            window.createImageBitmap = async (file, options) => {
                if (file.name === "second.png") await new Promise((done) => { window.decodeSecond = done; });
                return decode(file, options);
            };
        })()"""
    )
    give(page, tmp_path / "first.png")
    page.wait("/^Computing/.test(document.getElementById('status').textContent)")
    give(page, tmp_path / "second.png")
    page.wait("window.decodeSecond !== undefined")
    assert text(page, "status") == "Reading second.png …"
    time.sleep(2)  # the first would be ready
    assert page.run("document.getElementById('result').hidden")
    page.run("decodeSecond()")
    image = computed(page)
    assert (image.name, image.size) == ("second_x3.png", (90, 60))


def test_a_picture_may_come_before_the_browser_has_said_whether_it_has_webgpu(chromium, served, photograph):
    gpu = "{requestAdapter: () => new Promise(done => { window.say = done; })}"
    late = f"Object.defineProperty(navigator, 'gpu', {{value: {gpu}}})"
    script = chromium.call("Page.addScriptToEvaluateOnNewDocument", source=late)["identifier"]
    try:
        chromium.open(served)
        chromium.wait("window.say !== undefined")
        give(chromium, photograph[0])
        chromium.run("new Promise(done => setTimeout(done, 300)).then(() => say(null))")
        assert computed(chromium).size == (192, 144)
    finally:
        chromium.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)


def test_a_broken_file_leaves_the_result_before_it(page, tmp_path, photograph):
    give(page, photograph[0])
    computed(page)
    (tmp_path / "notes.txt").write_text("words")
    give(page, tmp_path / "notes.txt")
    assert problem(page).startswith("notes.txt cannot be read")
    assert re.match("64 . 48 to 192 . 144 pixels", text(page, "status"))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 no picture", b"words"])
def test_a_broken_file_gets_a_message_and_the_next_one_works(page, tmp_path, photograph, content):
    (tmp_path / "broken.jpg").write_bytes(content)
    give(page, tmp_path / "broken.jpg")
    assert problem(page).startswith("broken.jpg cannot be read: it is damaged")
    give(page, photograph[0])
    assert computed(page).size == (192, 144)


def test_of_a_picture_that_is_too_large_the_middle_is_offered(page, site, tmp_path, photo):
    pixels = np.zeros((4000, 3000, 3), np.uint8)
    pixels[1872:2128, 1372:1628] = photo[20:276, 40:296]
    Image.fromarray(pixels).save(tmp_path / "large.png")
    give(page, tmp_path / "large.png")
    assert re.search("has 3000 . 4000 pixels, and 9000 . 12000 after enlarging", problem(page))
    assert "of at most 7.1 megapixels." in text(page, "hint")
    page.run("document.getElementById('middle').click()")
    expected = by_torch(site, np.ascontiguousarray(photo[20:276, 40:296]))
    image = computed(page)
    assert image.name == "large_middle_x3.png"
    assert np.abs(np.asarray(image.convert("RGB")) - expected).max() <= 1


def test_cancel(page, photograph, tmp_path, photo):
    Image.fromarray(np.tile(photo, (3, 3, 1))).save(tmp_path / "long.png")
    give(page, tmp_path / "long.png")
    page.wait("/^Computing tile/.test(document.getElementById('status').textContent)")
    page.run("document.getElementById('cancel').click()")
    assert text(page, "status") == "Cancelled."
    assert page.run("document.activeElement.id") == "choose"
    give(page, photograph[0])
    assert computed(page).name == "cat_x3.png"


def test_by_keyboard(page):
    """Every control is reached by Tab; the sample is computed, and the divider moved, without a mouse."""

    def tab_to(name):
        for _ in range(12):
            if page.run("document.activeElement.id") == name:
                return
            page.press("Tab")
        raise AssertionError(f"{name} is not reached by Tab")

    tab_to("choose")
    tab_to("sample")
    page.press(" ")
    assert computed(page).name == "sample_x3.png"
    tab_to("engine")
    tab_to("tile")
    tab_to("slider")
    before = page.run("document.getElementById('network').style.clipPath")
    page.press("ArrowRight", 5)
    assert page.run("document.getElementById('slider').value") == "55"
    assert page.run("document.getElementById('network').style.clipPath") != before
    tab_to("actual")
    page.press(" ")
    assert page.run("document.getElementById('pictures').style.width") == "510px"
    tab_to("download")


def test_the_divider_follows_the_mouse(page, photograph):
    give(page, photograph[0])
    computed(page)
    page.run("document.getElementById('stage').scrollIntoView()")
    box = page.run("document.getElementById('pictures').getBoundingClientRect().toJSON()")
    y = box["y"] + 40
    page.drag((box["x"] + box["width"] / 2, y), (box["x"] + box["width"] / 4, y))
    assert abs(int(page.run("document.getElementById('slider').value")) - 25) <= 1


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_scrolls_in_one_direction(page, photograph, dark):
    page.size(360, 740, dark=dark)
    give(page, photograph[0])
    computed(page)
    assert page.run("document.documentElement.scrollWidth") <= 360
    page.run("document.getElementById('actual').click()")
    assert page.run("document.documentElement.scrollWidth") <= 360
    ground = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == dark


def test_a_file_that_the_server_lacks_is_named(chromium, site, tmp_path, photograph):
    shutil.copytree(site, tmp_path / "out")
    (tmp_path / "out/KRGN_x3_web.onnx").unlink()
    with serving(tmp_path / "out") as address:
        visit(chromium, address)
        give(chromium, photograph[0])
        assert "KRGN_x3_web.onnx: the server answers 404" in problem(chromium)


def test_webgpu_computes_the_same_and_where_it_fails_the_processor_does(
    site, served, tmp_path_factory, photograph, monkeypatch
):
    monkeypatch.setattr(browser, "TIMEOUT", 120)  # a GPU that the processor plays takes its time
    path, pixels = photograph
    with browsing(tmp_path_factory, webgpu=True) as page:
        visit(page, served)
        if page.run("document.getElementById('engine').value") != "webgpu":
            pytest.skip("this Chromium has no WebGPU")
        assert text(page, "engine-note") == ""
        give(page, path)
        assert np.abs(np.asarray(computed(page).convert("RGB")) - by_torch(site, pixels)).max() <= 1
        assert "(WebGPU)" in text(page, "status")

        copy = tmp_path_factory.mktemp("copy") / "out"
        shutil.copytree(site, copy)
        (copy / "ort.webgpu.min.mjs").unlink()
        with serving(copy) as address:
            visit(page, address)
            give(page, path)
            assert np.abs(np.asarray(computed(page).convert("RGB")) - by_torch(site, pixels)).max() <= 1
            assert re.match(r"WebGPU failed \(.+\); the processor computes\.", text(page, "engine-note"))
            assert re.search(r"threads?\)", text(page, "status"))


def test_no_script_of_the_folder_reaches_another_host(chromium, site, tmp_path, photograph):
    """By the page's security policy, which binds its worker too; a worker that tries is made here."""
    asked = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)

        def log_message(self, *_):
            pass

    shutil.copytree(site, tmp_path / "out")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server, serving(tmp_path / "out") as address:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        elsewhere = f"http://127.0.0.1:{server.server_address[1]}/"
        code = (site / "worker.js").read_text()
        tries = f'await fetch("{elsewhere}", {{ mode: "no-cors" }}).then(() => close(), () => 0);'
        (tmp_path / "out/worker.js").write_text(
            f"onmessage = (event) => kept.push(event); const kept = []; {tries}\n{code}\nkept.forEach(onmessage);"
        )
        visit(chromium, address)
        assert (
            chromium.run(f"fetch('{elsewhere}', {{mode: 'no-cors'}}).then(() => 'reached', () => 'refused')")
            == "refused"
        )
        give(chromium, photograph[0])
        computed(chromium)
        server.shutdown()
    assert asked == []


@pytest.mark.parametrize("port", ["x", "70000", "80 81"])
def test_the_server_refuses_what_is_no_port(site, port):
    run = subprocess.run([sys.executable, site / "serve.py", *port.split()], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr == "usage: python serve.py [PORT], a number below 65536\n"


def test_the_server_says_nothing_of_a_page_that_is_closed_while_it_is_loaded(site):
    server = subprocess.Popen(
        [sys.executable, site / "serve.py", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    port = int(server.stdout.readline().split()[0].rstrip("/").rsplit(":", 1)[1])
    for _ in range(2):  # the second is answered, so the first has been taken
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /ort-wasm-simd-threaded.wasm HTTP/1.0\r\n\r\n")
            assert client.recv(15) == b"HTTP/1.0 200 OK"
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # resets at once
    time.sleep(0.3)
    server.terminate()
    assert server.communicate(timeout=10)[1] == ""


def test_the_server_names_a_port_that_is_taken(site, served):
    port = served.rstrip("/").rsplit(":", 1)[1]
    run = subprocess.run([sys.executable, site / "serve.py", port], capture_output=True, text=True)
    assert f"port {port} cannot be used" in run.stderr
    assert len(run.stderr.splitlines()) == 1
