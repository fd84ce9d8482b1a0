"""Looks at a network's kernels: how different those of a layer are from one another, before and after recalibration.

    python kl.py --pre_train ../experiment/my_krgn_x4/model/model_best.pt --out ../experiment/my_krgn_x4/kernels

kl.png               Figure 4 of the paper: for chosen blocks a matrix; entry (i, j) is the KL divergence between the
                     kernels of channels i and j, flattened, through a softmax; taken for i < j and mirrored.
                     Upper row: the basis W_b. Lower row: the recalibrated W_t. Near 0 everywhere: redundant kernels.
layers.png           mean divergence and effective rank of every layer's kernels, before and after.
receptive_field.png  how much each input pixel moves the middle output pixel.
epochs.png           with several checkpoints: how the mean divergence of all layers grew.

The numbers of each figure are written beside it, as .npy or .csv.
"""

import io
import logging
from pathlib import Path

import numpy as np
import skimage
import torch
from torch import nn

from data import resize
from data.color import to_tensor
from data.image import read_image
from model import MODELS
from model.checkpoint import Checkpoint, model_of, rebuild, unpack
from model.recalibration import fold
from model.tiling import Tiles
from option import Parser, number, path_flag, weights_file
from reporting import figures
from reporting.tables import csv_text
from runtime.errors import UserError, run
from runtime.files import write_bytes
from runtime.log import start_log
from runtime.tensor_files import load_tensors

log = logging.getLogger("krgn")

PAPER_BLOCKS = (1, 2, 4, 5, 6)
FIELD = 129  # LR pixels of the receptive field's figure
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png")


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(prog="kl.py", description="Draw how different a network's kernels are (Figure 4, and more).")
    parser.add_argument(
        "--pre_train",
        type=weights_file,
        required=True,
        nargs="+",
        metavar="FILE",
        help="checkpoint, best in training form; of several ones, in the order of training, the last is looked at",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", type=path_flag, help="folder for the figures and their numbers"
    )
    parser.add_argument(
        "--blocks", metavar="B+B", help="blocks (PMRBs) from 1 on, as in 1+2+4 (default: those of 1+2+4+5+6 that exist)"
    )
    parser.add_argument(
        "--layer",
        type=int,
        default=1,
        metavar="N",
        help="which of a block's convolutions, in order of execution; KRGN has 18, even ones dilated (default 1)",
    )
    parser.add_argument(
        "--vmax", type=number(above=0), default=0.10, help="divergence at the dark end of the scale (default 0.10)"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Draws the figures; `errors.run` says how failures end."""
    args = build_parser().parse_args(argv)
    start_log()
    read = [unpack(load_tensors(Path(path)), path) for path in args.pre_train]
    networks = [rebuild(checkpoint) for checkpoint in read]
    checkpoint, network, out = read[-1], networks[-1], Path(args.out)
    n_blocks = count_blocks(network)
    blocks = choose_blocks(args.blocks, n_blocks)
    sets = [kernel_sets(checkpoint, network, block) for block in range(1, n_blocks + 1)]
    if not 1 <= args.layer <= len(sets[0]):
        raise UserError(
            f"--layer {args.layer}: a block has {len(sets[0])} convolutions: give a number from 1 to {len(sets[0])}"
        )
    if len({(other.recalibrated, bool(other.facts.get("folded"))) for other in read}) > 1:
        raise UserError("--pre_train: some files are in training form and others are not: give files of one form")
    if not checkpoint.recalibrated:
        folded = checkpoint.facts.get("folded")
        form = "is folded: its basis is gone" if folded else "has plain kernels: it has no basis"
        log.info("%s %s, so there is one row; a checkpoint in training form has two", checkpoint.path, form)

    draw_matrices(checkpoint, [sets[block - 1][args.layer - 1] for block in blocks], blocks, args, out)
    draw_layers(checkpoint, [layer for block in sets for layer in block], len(sets[0]), out)
    draw_field(network, out)
    if len(networks) > 1:
        draw_growth(read, networks, out)
    log.info("figures: %s", out)


def count_blocks(network: nn.Module) -> int:
    """How many blocks a network has."""
    shape = network.hyperparameters
    return shape.get("n_resgroups", shape.get("n_resblocks"))


def kernel_sets(checkpoint: Checkpoint, network: nn.Module, block: int) -> list[nn.Conv2d]:
    """The convolutions of a block, counted from 1."""
    return MODELS[model_of(checkpoint)].kernel_sets(network, block)


def kernels_of(checkpoint: Checkpoint, layers: list[nn.Conv2d]) -> dict[str, list[torch.Tensor]]:
    """The layers' kernels: {"W_b": basis, "W_t": recalibrated}, {"W_t"} of a folded file, {"W"} of a plain one."""
    with torch.no_grad():
        if checkpoint.recalibrated:
            return {"W_b": [layer.weight.detach() for layer in layers], "W_t": [layer.kernel() for layer in layers]}
        return {"W_t" if checkpoint.facts.get("folded") else "W": [layer.weight.detach() for layer in layers]}


def draw_matrices(checkpoint: Checkpoint, layers: list[nn.Conv2d], blocks: list[int], args, out: Path) -> None:
    """Figure 4."""
    matrices = {
        row: [kl_matrix(kernel).numpy() for kernel in kernels]
        for row, kernels in kernels_of(checkpoint, layers).items()
    }
    for row, row_matrices in matrices.items():
        for block, matrix in zip(blocks, row_matrices, strict=True):
            write_array(out / f"kl_block{block}_layer{args.layer}_{row}.npy", matrix)
    write_bytes(out / "kl.png", figures.kernel_matrices(matrices, blocks, vmax=args.vmax))
    for index, block in enumerate(blocks):
        means = [f"{row} {mean_divergence(row_matrices[index]):.4f}" for row, row_matrices in matrices.items()]
        log.info("block %d: mean divergence %s", block, " -> ".join(means))
    means = [f"{row} {np.mean([mean_divergence(m) for m in matrices[row]]):.4f}" for row in matrices]
    log.info("all blocks drawn: mean divergence %s", " -> ".join(means))


def draw_layers(checkpoint: Checkpoint, layers: list[nn.Conv2d], per_block: int, out: Path) -> None:
    """Mean divergence and effective rank of every layer."""
    rows = kernels_of(checkpoint, layers)
    divergences = {row: [mean_divergence(kl_matrix(kernel).numpy()) for kernel in rows[row]] for row in rows}
    ranks = {row: [effective_rank(kernel) for kernel in rows[row]] for row in rows}
    header = ["layer", *(f"{measure} {row}" for measure in ("divergence", "effective rank") for row in rows)]
    columns = [*divergences.values(), *ranks.values()]
    write_csv(out / "layers.csv", header, [[number, *row] for number, row in enumerate(zip(*columns, strict=True), 1)])
    values = {"mean KL divergence": divergences, "effective rank": ranks}
    write_bytes(out / "layers.png", figures.layers(values, per_block))
    for measure, found in values.items():
        means = " -> ".join(f"{row} {np.mean(value):.4f}" for row, value in found.items())
        log.info("all %d layers: %s %s", len(layers), measure, means)


def draw_field(network: nn.Module, out: Path) -> None:
    """The effective receptive field, and how far the local operators reach."""
    share = effective_field(network)
    middle, half = FIELD // 2, 0
    while share[middle - half : middle + half + 1, middle - half : middle + half + 1].sum() < 0.95:
        half += 1
    scale = network.hyperparameters["scale"]
    tiles = Tiles(fold(network).eval(), scale=scale, tile=64, n_colors=network.hyperparameters["n_colors"])
    reach = tiles.halo * len(network.body) + tiles.head_halo + tiles.tail_halo if tiles.in_stages else tiles.halo
    write_array(out / "receptive_field.npy", share)
    write_bytes(out / "receptive_field.png", figures.receptive_field(share, half, reach))
    said = f"convolutions reach {reach} LR pixels" if tiles.exact else "it has global statistics"
    log.info("receptive field: 95 %% of the gradient within %d LR pixels; %s", half, said)


def draw_growth(read: list[Checkpoint], networks: list[nn.Module], out: Path) -> None:
    """The mean divergence of all layers in each checkpoint; all are of one form."""
    found: list[dict[str, float]] = []
    for checkpoint, network in zip(read, networks, strict=True):
        blocks = range(1, count_blocks(network) + 1)
        layers = [layer for block in blocks for layer in kernel_sets(checkpoint, network, block)]
        rows = kernels_of(checkpoint, layers)
        found.append({row: float(np.mean([mean_divergence(kl_matrix(k).numpy()) for k in rows[row]])) for row in rows})
    epochs = [checkpoint.facts.get("epoch") for checkpoint in read]
    stated = all(isinstance(epoch, int) for epoch in epochs) and len(set(epochs)) == len(epochs)
    x, xlabel = (epochs, "epoch") if stated else (list(range(1, len(read) + 1)), "checkpoint")
    rows = {row: [values[row] for values in found] for row in found[0]}
    table = [[path.path, number, *values.values()] for path, number, values in zip(read, x, found, strict=True)]
    write_csv(out / "epochs.csv", ["file", xlabel, *rows], table)
    write_bytes(out / "epochs.png", figures.growth(x, rows, xlabel))


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    """Writes a .csv file."""
    write_bytes(path, csv_text([header, *rows]).encode())


def choose_blocks(text: str | None, there: int) -> list[int]:
    """The blocks that "1+2+4" names, or the paper's as far as the network has them.

    Raises:
        UserError: for anything else, and for blocks that the network does not have.
    """
    if text is None:
        return [block for block in PAPER_BLOCKS if block <= there]
    parts = text.split("+")
    if not all(part.isdecimal() and 1 <= int(part) <= there for part in parts):
        raise UserError(f"--blocks {text}: the network has blocks 1 to {there}: give some of them, joined by +")
    return [int(part) for part in parts]


def kl_matrix(kernels: torch.Tensor) -> torch.Tensor:
    """KL divergences between all pairs of kernels, float64 (n, n), symmetric, zero on the diagonal.

    Args:
        kernels: (n, ...), one kernel for each output channel. Entry (i, j), i < j, is sum_k p_i log(p_i / p_j) with
            p = softmax of the flattened kernel, and stands at (j, i) too, as in Figure 4.
    """
    log_p = torch.log_softmax(kernels.double().flatten(1), dim=1)
    p = log_p.exp()
    upper = torch.triu((p * log_p).sum(dim=1, keepdim=True) - p @ log_p.T, diagonal=1).clamp(min=0)
    return upper + upper.T


def effective_rank(kernels: torch.Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli, EUSIPCO 2007) of a layer's kernels.

    Args:
        kernels: (n, ...), one kernel for each output channel; flattened to (n, k). From 1, all kernels are multiples of
            one, to min(n, k).
    """
    singular = torch.linalg.svdvals(kernels.double().flatten(1))
    p = singular / singular.sum()
    p = p[p > 0]
    return float(torch.exp(-(p * p.log()).sum()))


def effective_field(network: nn.Module) -> np.ndarray:
    """The effective receptive field (arXiv 1701.04128), (FIELD, FIELD), of 1 in all.

    The size of the gradient of the middle output pixels with respect to each input pixel, summed over colours and
    averaged over three photographs that scikit-image ships, shrunk by 2.
    """
    shape = network.hyperparameters
    folded = fold(network).eval()
    total = torch.zeros(FIELD, FIELD, dtype=torch.float64)
    for name in PHOTOGRAPHS:
        pixels = resize.downscale(read_image(Path(skimage.__file__).parent / "data" / name), 2)
        top, left = ((side - FIELD) // 2 for side in pixels.shape[:2])
        photo = to_tensor(pixels[top : top + FIELD, left : left + FIELD], shape["n_colors"])
        image = (photo[None].float() * (shape["rgb_range"] / 255)).requires_grad_()
        start = FIELD // 2 * shape["scale"]
        middle = slice(start, start + shape["scale"])
        folded(image)[..., middle, middle].sum().backward()
        total += image.grad[0].abs().sum(dim=0)
    return (total / total.sum()).numpy()


def mean_divergence(matrix: np.ndarray) -> float:
    """Mean over all pairs of different channels; 0 for a single channel."""
    n = len(matrix)
    return float(matrix.sum() / (n * (n - 1))) if n > 1 else 0.0


if __name__ == "__main__":
    run(main)
