"""Writes a checkpoint as files to deploy: folded, in several formats, each compared with torch before it is kept.

    python export.py --pre_train ../experiment/my_krgn_x4/model/model_best.pt --out ../experiment/my_krgn_x4/export
    python export.py --check ../experiment/my_krgn_x4/export
    python export.py --pre_train KRGN_x4 --formats web --out ../experiment/web    # a page for the browser

Always written are <model>_x<scale>.safetensors, whose metadata hold all that is needed to rebuild the network, and
export.json, with what was measured. `--formats` adds more formats (`deploy/formats.py`). A file that misses its
tolerance is not written.
"""

import argparse
from pathlib import Path

from deploy.folder import check_folder, export_checkpoint
from deploy.formats import FORMATS
from model import cffb
from runtime.errors import UserError, run
from runtime.flags import Parser, number, path_flag, weights_file, whole_number
from runtime.log import start_log

EXAMPLE = "python export.py --pre_train KRGN_x4 --out ../experiment/exported"


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(
        prog="export.py",
        description="Fold a checkpoint, and write it in formats to deploy.",
        examples=(
            EXAMPLE,
            "python export.py --pre_train KRGN_x4 --out ../experiment/exported",
            "python export.py --pre_train KRGN_x2 --out ../experiment/exported_x2 --formats pt,onnx",
            "python export.py --check ../experiment/exported",
        ),
    )
    parser.add_argument("--pre_train", type=weights_file, metavar="FILE", help="checkpoint to fold, or KRGN_x4")
    parser.add_argument("--out", metavar="DIR", type=path_flag, help="folder for the files")
    parser.add_argument(
        "--formats",
        type=_formats,
        default=("pt",),
        metavar="A,B",
        help=f"formats beside safetensors, of {', '.join(FORMATS)}, or all, which leaves out web (default pt)",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        type=path_flag,
        help="HR images: every second one for the PSNR, the others to calibrate int8 (default: scikit-image's)",
    )
    parser.add_argument(
        "--dilation",
        type=whole_number(1),
        metavar="N",
        help="dilation of a bare state dict, which does not show it (default 3)",
    )
    parser.add_argument(
        "--res_scale",
        type=number(above=0),
        metavar="F",
        help="residual scaling of a bare EDSR state dict, which does not show it: 0.1 for the full network (default 1)",
    )
    parser.add_argument(
        "--check",
        metavar="DIR",
        type=path_flag,
        help="compare the files of a folder that export.py made again. Exported programs (.pt2, .onnx, ncnn) are code: "
        "run none from a source that you do not trust; the hashes in a folder say nothing about where it is from",
    )
    return parser


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name for name in text.split(",") if name not in ("safetensors", "")))
    names = tuple(name for name in FORMATS if FORMATS[name].in_all) if names == ("all",) else names
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}, expected safetensors, {', '.join(FORMATS)}, or all")
    return names


def main(argv: list[str] | None = None) -> None:
    """Exports or checks; `errors.run` defines how failures end."""
    args = build_parser().parse_args(argv)
    start_log()
    cffb.build_when_needed()
    if args.check:
        check_folder(Path(args.check))
    elif args.pre_train and args.out:
        export_checkpoint(
            Path(args.pre_train),
            Path(args.out),
            formats=args.formats,
            images=Path(args.images) if args.images else None,
            dilation=args.dilation,
            res_scale=args.res_scale,
        )
    else:
        raise UserError(
            f"give --pre_train FILE and --out DIR to export, as in `{EXAMPLE}`, or --check DIR to check an export"
        )


if __name__ == "__main__":
    run(main)
