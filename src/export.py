"""Fold a checkpoint: training form -> a file of plain kernels with the same function, checked before it is written.

    python export.py --pre_train ../experiment/krgn_x4/model/model_best.pt --out ../experiment/krgn_x4/export

The folded file is a checkpoint like any other: `main.py --test_only --pre_train` takes it, and its state dict has the
published names, so it loads strictly into code written for the published release.
"""

import logging
from pathlib import Path

import torch
from torch import nn

from errors import UserError, run
from model import count_parameters
from model.checkpoint import model_of, pack, rebuild, unpack
from model.recalibration import fold
from option import Parser, whole_number
from utility import load_tensors, save_tensors, start_log

log = logging.getLogger("krgn")

TOLERANCE = 1e-3  # of the 0-255 range: what a fold may change by rounding, far below half a gray level


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(prog="export.py", description="Fold a checkpoint into plain kernels.")
    parser.add_argument("--pre_train", required=True, metavar="FILE", help="checkpoint to fold")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for <model>_x<scale>_folded.pt")
    parser.add_argument(
        "--dilation", type=whole_number(1), metavar="N", help="for a bare state dict, which does not say it (default 3)"
    )
    parser.add_argument(
        "--res_scale", type=float, metavar="F", help="likewise, of an EDSR: 0.1 for the full network (default 1)"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Folds one checkpoint; `errors.run` says how failures end."""
    args = build_parser().parse_args(argv)
    start_log()
    checkpoint = unpack(load_tensors(Path(args.pre_train)), args.pre_train)
    network = rebuild(checkpoint, dilation=args.dilation, res_scale=args.res_scale)
    folded = fold(network)
    deviation = largest_deviation(network, folded)
    if not deviation < TOLERANCE:
        raise UserError(
            f"{args.pre_train}: the folded network differs by {deviation:.1e} of 255, allowed is {TOLERANCE:.0e}: "
            "not written; the weights are damaged or far out of range"
        )
    model = model_of(checkpoint)
    path = Path(args.out) / f"{model}_x{network.hyperparameters['scale']}_folded.pt"
    refuse_foreign(path)
    kept = {name: checkpoint.facts[name] for name in ("epoch", "psnr") if name in checkpoint.facts}
    was_folded = checkpoint.recalibrated or checkpoint.facts.get("folded", False)  # plain kernels had nothing to fold
    save_tensors(path, pack(folded, model, folded=was_folded, source=str(args.pre_train), **kept))
    log.info(
        "%s: %s parameters, %s in training form; largest difference on random images %.1e of 255",
        path,
        f"{count_parameters(folded):,}",
        f"{count_parameters(network):,}",
        deviation,
    )


def largest_deviation(network: nn.Module, folded: nn.Module) -> float:
    """Largest absolute difference of the two networks' outputs on seeded random images, scaled to 0..255."""
    network, folded = network.eval(), folded.eval()
    top, colors = network.hyperparameters["rgb_range"], network.hyperparameters["n_colors"]
    random = torch.Generator().manual_seed(0)
    deviations = []
    with torch.inference_mode():
        for height, width in ((32, 32), (17, 29)):
            image = torch.rand(2, colors, height, width, generator=random) * top
            deviations.append((network(image) - folded(image)).abs().max().item() * 255 / top)
    return max(deviations)


def refuse_foreign(path: Path) -> None:
    """UserError if `path` holds anything but a folded file, which alone may be replaced."""
    if not path.exists():
        return
    try:
        ours = "source" in unpack(load_tensors(path), str(path)).facts
    except UserError:
        ours = False
    if not ours:
        raise UserError(
            f"{path}: exists and is no folded file of this program, so it is left alone: give another --out"
        )


if __name__ == "__main__":
    run(main)
