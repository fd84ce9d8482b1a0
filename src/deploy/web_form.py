"""A folder that any static server serves: one page that runs the network in the browser, by onnxruntime-web.

The page's parts are in `web/`. All that it loads lies in the folder, and pictures stay in the browser.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import skimage
import torch
from torch import nn

from data import resize
from data.image import read_image, write_png
from deploy import npm
from deploy.context import ExportContext, Runner
from deploy.onnx_form import read_onnx, write_onnx
from model import count_parameters
from model.tiling import Tiles
from runtime.errors import UserError
from runtime.files import digest

log = logging.getLogger("krgn")

ONNXRUNTIME = npm.Package(
    name="onnxruntime-web",
    version="1.30.0",
    integrity="sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
)
RUNTIME = (  # for the processor, and for WebGPU; a browser loads one of the two
    *("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    *("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
)
PAGE = ("page.css", "page.js", "worker.js", "serve.py", "onnxruntime-web.LICENSE.txt")
SAMPLE = "sample.png"
FILES = ("index.html", *PAGE, SAMPLE, *RUNTIME)  # beside the network, with the same names in every export

_TEMPLATES = Path(__file__).parent / "web"
SUFFIX = "_web.onnx"
LARGEST_ROUNDING = 0.25  # of the 0-255 range: what float16 weights may change; half of what may change a pixel by 2


def prepare_web(hyperparameters: Mapping) -> None:
    """Fetches onnxruntime-web, before anything is written.

    Raises:
        UserError: for a network that takes no RGB, or if the package cannot be had.
    """
    if hyperparameters["n_colors"] != 3:
        raise UserError(
            f"--formats web: got a network of {hyperparameters['n_colors']} channel, expected RGB: export it as onnx"
        )
    npm.package_files(ONNXRUNTIME, ())


def write_web(network: nn.Module, path: Path, context: ExportContext) -> None:
    """Writes the network as ONNX to `path`, and beside it the page, its sample picture and onnxruntime-web.

    Args:
        path: <name>_x<scale>_web.onnx.
    """
    write_onnx(network, path, context)
    store_weights_in_float16(path, network, context)
    folder = path.parent
    for name, content in npm.package_files(ONNXRUNTIME, tuple(f"dist/{name}" for name in RUNTIME)).items():
        (folder / Path(name).name).write_bytes(content)
    for name in PAGE:
        (folder / name).write_bytes((_TEMPLATES / name).read_bytes())
    scale = network.hyperparameters["scale"]
    sample = read_image(Path(skimage.__file__).parent / "data/astronaut.png")  # by NASA, in the public domain
    write_png(folder / SAMPLE, resize.downscale(sample, scale))
    (folder / "index.html").write_text(_page(network, path), encoding="utf-8")


def read_web(path: Path, _) -> Runner:
    """Runs the page's network by onnxruntime on the CPU."""
    return read_onnx(path, _)


def _page(network: nn.Module, path: Path) -> str:
    """index.html, with what the page must know about the network."""
    name, shape = path.name.removesuffix(SUFFIX), network.hyperparameters
    tiles = Tiles(network, scale=shape["scale"], tile=256, n_colors=shape["n_colors"])
    facts = {
        "name": name,
        "file": path.name,
        "bytes": path.stat().st_size,
        "version": digest(path)[:12],  # part of the file's address, or a browser might keep an older one
        "scale": shape["scale"],
        "range": shape["rgb_range"],
        # A KRGN is exact in tiles only block by block, which a graph is not.
        "halo": tiles.halo if tiles.exact and not tiles.in_stages else 32,
        "exactTiles": tiles.exact and not tiles.in_stages,
    }
    text = (_TEMPLATES / "index.html").read_text(encoding="utf-8")
    words = {
        "@NAME@": name.replace("_", " "),
        "@SCALE@": str(shape["scale"]),
        "@PARAMETERS@": f"{count_parameters(network):,}",
        "@RUNTIME@": ONNXRUNTIME.version,
        "@NETWORK@": json.dumps(facts),
    }
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def store_weights_in_float16(path: Path, network: nn.Module, context: ExportContext) -> None:
    """Stores the kernels of an ONNX file in float16, two fifths of its size, and drops what only debuggers read.

    Every kernel is cast to float32 when the file is loaded, so all arithmetic stays in float32. The kernels stay in
    float32 if the outputs for the context's example change by more than `LARGEST_ROUNDING`.
    """
    import onnx

    model = onnx.load(path)
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    onnx.save(model, path)
    casts = []
    for tensor in list(model.graph.initializer):
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.ndim < 2:
            continue
        with np.errstate(over="ignore"):  # the comparison below finds an infinity
            half = onnx.numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}_float16")
        model.graph.initializer.remove(tensor)
        model.graph.initializer.append(half)
        casts.append(onnx.helper.make_node("Cast", [half.name], [tensor.name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    smaller = path.with_suffix(".float16")
    onnx.save(model, smaller)
    image = context.example
    with torch.no_grad():
        expected = network(image).numpy()
    change = np.abs(read_onnx(smaller, {})(image.numpy()) - expected).max() * 255 / network.hyperparameters["rgb_range"]
    if change <= LARGEST_ROUNDING:
        smaller.replace(path)
    else:
        smaller.unlink()
        log.info("%s: float16 would change pixels by %.2f of 255, so the weights stay in float32", path.name, change)
