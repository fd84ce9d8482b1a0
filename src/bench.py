"""The project's benchmark: every case timed against the published release, in turn, in one run.

    python bench.py all --cpu --out ../experiment/bench
    python bench.py infer --device cuda

Each case has a process of its own, with the allocator and the operators that it is about. The processes run one at a
time, each once per turn, so that a machine that slows down slows all cases alike. The table gives medians, their
spread, ratios to the published form of the same group, and shares of two ceilings measured in the same turns: the
arithmetic of a large matrix product and the bandwidth of a large copy.

The published form is KRGN as released: plain kernels, groups 32, NCHW, eager, torch's operators, the C library's
allocator. For loading it is EDSR-PyTorch's way: whole images from pickles, Python's `random`, float tensors from the
workers. Every claim about speed in this project comes from here. The parts are in `speed/`.
"""

import tempfile
from pathlib import Path

import torch

from model.external import import_spandrel
from model.precision import is_native
from option import build_parser as training_parser
from reporting.tables import as_text, refuse_foreign, write_all
from runtime.errors import UserError
from runtime.errors import run as run_program
from runtime.flags import Parser, path_flag, whole_number
from runtime.hardware import load_of_others
from speed import cases, loading
from speed.cases import Case
from speed.table import make_table
from speed.worker import run_group
from speed.workloads import BATCH, PEERS, TEST_SETS

MAX_LOAD = 0.6  # other processes running in the last minute, above which ratios mean nothing


def build_parser() -> Parser:
    """The command line of this program."""
    parser = Parser(
        prog="bench.py",
        description="Speed against the published release, in one interleaved run.",
        examples=(
            "python bench.py infer --n_runs 1 --anyway",
            "python bench.py infer --cpu",
            "python bench.py all --cpu --n_runs 3 --out ../experiment/bench",
        ),
    )
    parser.add_argument("command", choices=("infer", "train", "load", "test", "all"), help="which cases")
    parser.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="the device by name (default: a GPU if there is one)")
    parser.add_argument("--n_runs", type=whole_number(1), default=5, metavar="N", help="turns (default 5)")
    parser.add_argument(
        "--batch", type=whole_number(1), default=BATCH, metavar="N", help="train: patches in a batch (default 16)"
    )
    parser.add_argument(
        "--dir_data",
        default="",
        metavar="DIR",
        type=path_flag,
        help="folder with benchmark/Set5 and Set14 for `test`; without it `all` leaves `test` out",
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help=f"infer: also {', '.join(PEERS)} from spandrel, with random weights, each in its faster memory format",
    )
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="also measure bf16 where the CPU emulates it (default: only where it is native)",
    )
    parser.add_argument("--anyway", action="store_true", help="run even if the machine is busy")
    parser.add_argument("--out", metavar="FILE", type=path_flag, help="write FILE.md, FILE.csv, FILE.json and FILE.tex")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs the cases in turn and prints the table; `errors.run` defines how failures end."""
    args = build_parser().parse_args(argv)
    if args.out:
        refuse_foreign(args.out)
    device = "cpu" if args.cpu else args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU is visible: use --cpu")
    if args.peers:
        import_spandrel("--peers")
    load = measured_load(args.anyway)
    dir_data = args.dir_data or (training_parser().get_default("dir_data") if args.command == "test" else "")
    check_test_sets(dir_data)
    with tempfile.TemporaryDirectory(prefix="bench_") as folder:
        groups = chosen_groups(args, device, Path(folder), dir_data)
        results = [run_group(group, device, args.n_runs) for group in groups]
    table = make_table(f"{args.command}, {device}", results, device=device, n_runs=args.n_runs, load=load)
    print(as_text(table))
    if args.out:
        print(f"\nwritten: {', '.join(map(str, write_all(table, args.out)))}")


def chosen_groups(args, device: str, folder: Path, dir_data: str) -> list[list[Case]]:
    """The cases of the command, in groups with a baseline each.

    Args:
        folder: an empty one, where the photographs of the loading cases are written.
        dir_data: folder of the data sets, "" for none.
    """
    wanted = ("infer", "train", "load", *(["test"] if dir_data else [])) if args.command == "all" else (args.command,)
    cuda, bf16 = device == "cuda", args.bf16 or is_native(torch.device(device))
    found: list[Case] = []
    if "infer" in wanted:
        found += cases.inference_cases(cuda=cuda, bf16=bf16, peers=args.peers)
    if "train" in wanted:
        found += cases.training_cases(batch=args.batch, cuda=cuda, bf16=bf16)
    if "load" in wanted:
        loading.make_photos(folder)
        found += cases.loading_cases(folder)
    if "test" in wanted:
        found += cases.test_cases(Path(dir_data))
    return [[case for case in found if case.group == name] for name in dict.fromkeys(case.group for case in found)]


def measured_load(anyway: bool) -> float:
    """How many other processes were running in the last minute; UserError for too many, unless `anyway`."""
    load = load_of_others()
    if load > MAX_LOAD and not anyway:
        raise UserError(
            f"{load:.1f} processes were running on this machine in the last minute, expected at most {MAX_LOAD}: "
            "wait until they have ended, or give --anyway"
        )
    return load


def check_test_sets(dir_data: str) -> None:
    """Raises UserError if a folder that was given lacks one of the sets that `test` runs on."""
    for name in TEST_SETS if dir_data else ():
        if not Path(dir_data, "benchmark", name).is_dir():
            raise UserError(f"--dir_data {dir_data}: has no benchmark/{name}, which `test` needs: give another folder")


if __name__ == "__main__":
    run_program(main)
