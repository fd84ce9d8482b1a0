"""Figure 4 of the paper: how different the kernels of a layer are from one another, before and after recalibration.

    python kl.py --pre_train ../experiment/krgn_x4/model/model_best.pt --out ../experiment/krgn_x4/kernels

For each chosen block a matrix: entry (i, j) is the KL divergence between the kernels of channels i and j, each
flattened and passed through a softmax; taken for i < j and mirrored. Upper row: the basis W_b. Lower row: the
recalibrated W_t. Near 0 everywhere means redundant kernels.
"""

import io
import logging
from pathlib import Path

import numpy as np
import torch

import figures
from errors import UserError, run
from model import MODELS
from model.checkpoint import model_of, rebuild, unpack
from option import Parser
from utility import load_tensors, start_log, write_bytes

log = logging.getLogger("krgn")

PAPER_BLOCKS = (1, 2, 4, 5, 6)


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(prog="kl.py", description="Draw the KL divergences between kernels (Figure 4).")
    parser.add_argument("--pre_train", required=True, metavar="FILE", help="checkpoint, best in training form")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for kl.png and a .npy file of each matrix")
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
        "--vmax", type=float, default=0.10, help="divergence at the dark end of the scale (default 0.10)"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Draws one figure; `errors.run` says how failures end."""
    args = build_parser().parse_args(argv)
    start_log()
    checkpoint = unpack(load_tensors(Path(args.pre_train)), args.pre_train)
    network = rebuild(checkpoint)
    shape = network.hyperparameters
    blocks = choose_blocks(args.blocks, shape.get("n_resgroups", shape.get("n_resblocks")))
    kernel_sets = MODELS[model_of(checkpoint)].kernel_sets
    there = len(kernel_sets(network, 1))
    if not 1 <= args.layer <= there:
        raise UserError(f"--layer {args.layer}: a block has {there} convolutions: give a number from 1 to {there}")
    if not args.vmax > 0:
        raise UserError(f"--vmax {args.vmax}: expected a divergence above 0, such as 0.1")

    layers = [kernel_sets(network, block)[args.layer - 1] for block in blocks]
    if checkpoint.recalibrated:
        kernels = {"W_b": [layer.weight for layer in layers], "W_t": [layer.kernel() for layer in layers]}
    else:
        form = (
            "is folded: its basis is gone" if checkpoint.facts.get("folded") else "has plain kernels: it has no basis"
        )
        log.info("%s %s, so there is one row; --pre_train a checkpoint in training form for two", args.pre_train, form)
        kernels = {"W_t" if checkpoint.facts.get("folded") else "W": [layer.weight for layer in layers]}

    matrices = {
        row: [kl_matrix(kernel.detach()).numpy() for kernel in row_kernels] for row, row_kernels in kernels.items()
    }
    for row, row_matrices in matrices.items():
        for block, matrix in zip(blocks, row_matrices, strict=True):
            buffer = io.BytesIO()
            np.save(buffer, matrix, allow_pickle=False)
            write_bytes(Path(args.out) / f"kl_block{block}_layer{args.layer}_{row}.npy", buffer.getvalue())
    write_bytes(Path(args.out) / "kl.png", figures.kernel_matrices(matrices, blocks, vmax=args.vmax))

    for index, block in enumerate(blocks):
        means = [f"{row} {mean_divergence(row_matrices[index]):.4f}" for row, row_matrices in matrices.items()]
        log.info("block %d: mean divergence %s", block, " -> ".join(means))
    means = [f"{row} {np.mean([mean_divergence(m) for m in matrices[row]]):.4f}" for row in matrices]
    log.info("all blocks drawn: mean divergence %s; figure: %s", " -> ".join(means), Path(args.out) / "kl.png")


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


def mean_divergence(matrix: np.ndarray) -> float:
    """Mean over all pairs of different channels; 0 for a single channel."""
    n = len(matrix)
    return float(matrix.sum() / (n * (n - 1))) if n > 1 else 0.0


if __name__ == "__main__":
    run(main)
