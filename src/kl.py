"""Shows how different the kernels of a layer are from one another, before and after recalibration.

    python kl.py
    python kl.py --pre_train ../experiment/my_krgn_x4/model/model_best.pt --out ../experiment/my_krgn_x4/kernels

Without flags it examines the released KRGN_x4 and writes into experiment/kernels_KRGN_x4.

kl.png               Figure 4 of the paper: a matrix for each chosen block; entry (i, j) is the KL divergence between
                     the flattened kernels of channels i and j after a softmax, computed for i < j and mirrored.
                     Upper row: the basis W_b. Lower row: the recalibrated W_t. Near 0 everywhere: redundant kernels.
layers.png           mean divergence and effective rank of the kernels of every layer, before and after.
receptive_field.png  how much each input pixel influences the middle output pixel.
epochs.png           with several checkpoints: the mean divergence of all layers over training.

The numbers of each figure are written beside it, as .npy or .csv. `evaluation/kernels.py` defines the measures.
"""

import io
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from evaluation.kernels import effective_rank, effective_receptive_field, half_width, kl_matrix, mean_divergence
from model import cffb
from model.checkpoint import Checkpoint, model_of, rebuild, unpack
from model.networks import MODELS
from model.recalibration import fold
from model.tiling import Tiles
from model.weights import load_tensors
from option import build_parser as training_parser
from reporting import figures
from runtime.csvfiles import csv_text
from runtime.errors import UserError, run
from runtime.files import write_bytes
from runtime.flags import Parser, number, path_flag, weights_file, weights_name
from runtime.log import start_log

log = logging.getLogger("krgn")

PAPER_BLOCKS = (1, 2, 4, 5, 6)
DEFAULT = "KRGN_x4"


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(
        prog="kl.py",
        description="Draw how different a network's kernels are (Figure 4 and more).",
        examples=(
            "python kl.py",
            "python kl.py --pre_train KRGN_x4 --out ../experiment/kernels_x4",
            "python kl.py --pre_train KRGN_x4 --out ../experiment/kernels_x4_dilated --blocks 1+5+9 --layer 2",
        ),
    )
    parser.add_argument(
        "--pre_train",
        type=weights_file,
        nargs="+",
        metavar="FILE",
        help="checkpoint, preferably in training form; of several, given in order of training, the last is examined "
        "(default KRGN_x4)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=path_flag,
        help="folder for the figures and their numbers (default: kernels_NAME in experiment/, with the network's name)",
    )
    parser.add_argument(
        "--blocks",
        metavar="B+B",
        help="blocks (PMRBs), counted from 1, as in 1+2+4 (default: those of 1+2+4+5+6 that exist)",
    )
    parser.add_argument(
        "--layer",
        type=int,
        default=1,
        metavar="N",
        help="which convolution of a block, in order of execution; KRGN has 18, the even ones dilated (default 1)",
    )
    parser.add_argument(
        "--vmax", type=number(above=0), default=0.10, help="divergence at the dark end of the scale (default 0.10)"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Draws the figures; `errors.run` defines how failures end."""
    args = build_parser().parse_args(argv)
    start_log()
    cffb.build_when_needed()
    examined = [read(path) for path in args.pre_train or [weights_file(DEFAULT)]]
    last = examined[-1]
    out = Path(args.out) if args.out else default_folder(last.checkpoint.path)
    blocks = choose_blocks(args.blocks, last.n_blocks)
    per_block = len(last.layers(1))
    if not 1 <= args.layer <= per_block:
        raise UserError(
            f"--layer {args.layer}: a block has {per_block} convolutions: give a number from 1 to {per_block}"
        )
    if len({(one.checkpoint.recalibrated, one.folded) for one in examined}) > 1:
        raise UserError("--pre_train: some files are in training form and others are not: give files of one form")
    if not last.checkpoint.recalibrated:
        form = "is folded: its basis is gone" if last.folded else "has plain kernels: it has no basis"
        log.info("%s %s, so there is one row; a checkpoint in training form has two", last.checkpoint.path, form)

    draw_matrices(last, out, blocks=blocks, layer=args.layer, vmax=args.vmax)
    draw_layers(last, out)
    draw_field(last.network, out)
    if len(examined) > 1:
        draw_growth(examined, out)
    log.info("figures: %s", out)


@dataclass(frozen=True)
class Examined:
    """A checkpoint and its network, in the checkpoint's form."""

    checkpoint: Checkpoint
    network: nn.Module

    @property
    def folded(self) -> bool:
        """Whether its kernels are folded ones."""
        return bool(self.checkpoint.facts.get("folded"))

    @property
    def n_blocks(self) -> int:
        """How many blocks the network has."""
        shape = self.network.hyperparameters
        return shape.get("n_resgroups", shape.get("n_resblocks"))

    def layers(self, block: int) -> list[nn.Conv2d]:
        """The convolutions of a block, counted from 1, in order of execution."""
        return MODELS[model_of(self.checkpoint)].kernel_sets(self.network, block)

    def all_layers(self) -> list[nn.Conv2d]:
        """The convolutions of all blocks, in order of execution."""
        return [layer for block in range(1, self.n_blocks + 1) for layer in self.layers(block)]

    def kernels(self, layers: Iterable[nn.Conv2d]) -> dict[str, list[torch.Tensor]]:
        """The layers' kernels: {"W_b": basis, "W_t": recalibrated}, {"W_t"} of a folded file, {"W"} of a plain one."""
        with torch.no_grad():
            weights = [layer.weight.detach() for layer in layers]
            if self.checkpoint.recalibrated:
                return {"W_b": weights, "W_t": [layer.kernel() for layer in layers]}
            return {"W_t" if self.folded else "W": weights}


def read(path: str) -> Examined:
    """Reads a checkpoint and rebuilds its network; UserError if it is not one."""
    checkpoint = unpack(load_tensors(Path(path)), path)
    return Examined(checkpoint, rebuild(checkpoint))


def default_folder(path: str) -> Path:
    """The folder for the figures of a checkpoint: experiment/kernels_NAME, of its experiment's name or its own."""
    return Path(training_parser().get_default("dir_experiment"), f"kernels_{weights_name(path)}")


def choose_blocks(text: str | None, n_blocks: int) -> list[int]:
    """The blocks that "1+2+4" names, or those of the paper that the network has.

    Raises:
        UserError: for any other text, and for blocks that the network does not have.
    """
    if text is None:
        return [block for block in PAPER_BLOCKS if block <= n_blocks]
    parts = text.split("+")
    if not all(part.isdecimal() and 1 <= int(part) <= n_blocks for part in parts):
        raise UserError(f"--blocks {text}: the network has blocks 1 to {n_blocks}: give some of them, joined by +")
    return [int(part) for part in parts]


def draw_matrices(examined: Examined, out: Path, *, blocks: list[int], layer: int, vmax: float) -> None:
    """Draws Figure 4, of one layer (counted from 1) of each of the blocks."""
    rows = examined.kernels([examined.layers(block)[layer - 1] for block in blocks])
    matrices = {row: [kl_matrix(kernel).numpy() for kernel in kernels] for row, kernels in rows.items()}
    for row, row_matrices in matrices.items():
        for block, matrix in zip(blocks, row_matrices, strict=True):
            write_array(out / f"kl_block{block}_layer{layer}_{row}.npy", matrix)
    write_bytes(out / "kl.png", figures.kernel_matrices(matrices, blocks, vmax=vmax))
    means = {row: [mean_divergence(matrix) for matrix in row_matrices] for row, row_matrices in matrices.items()}
    for index, block in enumerate(blocks):
        by_row = " -> ".join(f"{row} {values[index]:.4f}" for row, values in means.items())
        log.info("block %d: mean divergence %s", block, by_row)
    log.info("all blocks drawn: mean divergence %s", as_text(means))


def draw_layers(examined: Examined, out: Path) -> None:
    """Draws the mean divergence and the effective rank of every layer."""
    layers = examined.all_layers()
    rows = examined.kernels(layers)
    values = {"mean KL divergence": divergences(rows)}
    values["effective rank"] = {row: [effective_rank(kernel) for kernel in kernels] for row, kernels in rows.items()}
    header = ["layer", *(f"{measure} {row}" for measure in ("divergence", "effective rank") for row in rows)]
    columns = [column for by_row in values.values() for column in by_row.values()]
    write_csv(out / "layers.csv", header, [[number, *row] for number, row in enumerate(zip(*columns, strict=True), 1)])
    write_bytes(out / "layers.png", figures.layers(values, len(examined.layers(1))))
    for measure, by_row in values.items():
        log.info("all %d layers: %s %s", len(layers), measure, as_text(by_row))


def draw_field(network: nn.Module, out: Path) -> None:
    """Draws the effective receptive field, and how far the convolutions reach."""
    share = effective_receptive_field(network)
    half = half_width(share, 0.95)
    scale = network.hyperparameters["scale"]
    tiles = Tiles(fold(network).eval(), scale=scale, tile=64, n_colors=network.hyperparameters["n_colors"])
    reach = tiles.halo * len(network.body) + tiles.head_halo + tiles.tail_halo if tiles.in_stages else tiles.halo
    write_array(out / "receptive_field.npy", share)
    write_bytes(out / "receptive_field.png", figures.receptive_field(share, half, reach))
    limit = f"convolutions reach {reach} LR pixels" if tiles.exact else "it has global statistics"
    log.info("receptive field: 95 %% of the gradient within %d LR pixels; %s", half, limit)


def draw_growth(examined: list[Examined], out: Path) -> None:
    """Draws the mean divergence of all layers in each checkpoint, over the epochs if the files state them."""
    means = [
        {row: float(np.mean(values)) for row, values in divergences(one.kernels(one.all_layers())).items()}
        for one in examined
    ]
    epochs = [one.checkpoint.facts.get("epoch") for one in examined]
    stated = all(isinstance(epoch, int) for epoch in epochs) and len(set(epochs)) == len(epochs)
    x, xlabel = (epochs, "epoch") if stated else (list(range(1, len(examined) + 1)), "checkpoint")
    rows = {row: [values[row] for values in means] for row in means[0]}
    table = [[one.checkpoint.path, at, *values.values()] for one, at, values in zip(examined, x, means, strict=True)]
    write_csv(out / "epochs.csv", ["file", xlabel, *rows], table)
    write_bytes(out / "epochs.png", figures.growth(x, rows, xlabel))


def divergences(rows: dict[str, list[torch.Tensor]]) -> dict[str, list[float]]:
    """The mean divergence of each layer's kernels."""
    return {row: [mean_divergence(kl_matrix(kernel).numpy()) for kernel in kernels] for row, kernels in rows.items()}


def as_text(rows: dict[str, list[float]]) -> str:
    """The mean of each row, as in "W_b 0.0100 -> W_t 0.0200"."""
    return " -> ".join(f"{row} {np.mean(values):.4f}" for row, values in rows.items())


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    """Writes a .csv file."""
    write_bytes(path, csv_text([header, *rows]).encode())


if __name__ == "__main__":
    run(main)
