"""How the commands read their flags: the parser, and the types of flags' values.

Nothing here imports anything heavy, so a wrong flag is answered at once.
"""

import argparse
import os
import re
from itertools import pairwise
from pathlib import Path

from runtime.errors import printable

_ROOT = Path(__file__).resolve().parent.parent.parent


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, for every program of the framework.

    Args:
        examples: command lines, as they are typed in src/, that `--help` ends with. The first is the shortest one that
            works, or shows what the program does: the error for missing arguments names it.
        options: of `argparse.ArgumentParser`.
    """

    def __init__(self, *, examples: tuple[str, ...] = (), **options):
        super().__init__(**options)
        self.examples, self.example = examples, next(iter(examples), "")

    def format_help(self):
        lines = "".join(f"  {line}\n" for line in self.examples)
        return super().format_help() + (f"\nexamples, in src/:\n{lines}" if lines else "")

    def error(self, message):
        hint = "--help explains the flags"
        if self.example and "arguments are required" in message:
            hint = f"for example: {self.example}; {hint}"
        self.exit(2, f"{self.prog}: error: {printable(message)} ({hint})\n")

    def _print_message(self, message, file=None):
        # A terminal that is not UTF-8 shows what it cannot say as an escape.
        encoding = getattr(file, "encoding", None) or "utf-8"
        super()._print_message(message.encode(encoding, "backslashreplace").decode(encoding), file)


def weights_file(text: str) -> str:
    """The path that --pre_train means: of a released network, KRGN_x2, KRGN_x3 or KRGN_x4, the file in experiment/."""
    released = re.fullmatch(r"KRGN_x[234]", text)
    return str(_ROOT / "experiment" / text / "model/model_best.pt") if released else path_flag(text)


def weights_name(path: str) -> str:
    """What to call the network of a file: its experiment, for the file of a run such as NAME/model/model_best.pt, else
    the file's name without suffix."""
    file = Path(path).absolute()
    in_experiment = file.stem.startswith("model_") and file.parent.name == "model"
    return file.parent.parent.name if in_experiment else file.stem


def path_flag(text: str) -> str:
    """A path flag's value: a shell expands the ~ of `--out ~/x`, and leaves that of --out=~/x alone."""
    return os.path.expanduser(text)


def whole_number(least: int, most: int = 2**31 - 1):
    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"got {text!r}, expected a whole number of at least {least}, at most {most}"
            )
        return int(text)

    return parse


def number(above: float | None = None, least: float | None = None, below: float | None = None):
    wanted = "a number" + (f" above {above}" if above is not None else "")
    wanted += (f" of at least {least}" if least is not None else "") + (f" below {below}" if below is not None else "")

    def parse(text: str) -> float:
        # float() itself would take 1_0, digits of other scripts and white space.
        value = (
            float(text) if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", text, re.I) else float("nan")
        )
        fits = (
            (above is None or value > above) and (least is None or value >= least) and (below is None or value < below)
        )
        if not fits or not abs(value) < float("inf"):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {wanted}")
        return value

    return parse


def one_of(names: tuple[str, ...]):
    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected one of {', '.join(names)}")
        return text

    return parse


def plain_names(text: str) -> tuple[str, ...]:
    names = tuple(text.split("+"))
    if not all(re.fullmatch(r"[^/\\\s.][^/\\]*", name) and name.isprintable() for name in names):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected plain names joined by +, as in Set5+Set14")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"got {text!r}, which names a set twice: name each once")
    return names


def weighted_terms(text: str) -> list[tuple[str, str, str]]:
    """Each term of "1e+2*A+B" as (weight, "*", name), or ("", "", name) without weight. An exponent's + is no sum."""
    text = re.sub(r"(?:^|(?<=\+))([0-9.]+e)\+([0-9]+\*)", r"\1\2", text, flags=re.I)
    return [term.rpartition("*") for term in text.split("+")]


def weighted_sets(text: str) -> tuple[tuple[float | None, str], ...]:
    """((weight, name), …); all weights are None where none is given."""
    weighted = weighted_terms(text)
    names = plain_names("+".join(name for _, _, name in weighted))
    stars = [star for _, star, _ in weighted]
    if any(stars) and not all(stars):
        raise argparse.ArgumentTypeError(f"got {text!r}: give every set a weight, as in 3*DIV2K+1*Photos, or none")
    weights = [number(above=0)(weight) if star else None for weight, star, _ in weighted]
    return tuple(zip(weights, names, strict=True))


def degradation(text: str) -> str:
    found = re.fullmatch(r"(blur(\d+(\.\d+)?)?\+)?bicubic(\+jpeg(\d{1,3}))?", text, re.ASCII)
    if not found or (found[2] and not float(found[2]) > 0) or (found[5] and not 1 <= int(found[5]) <= 100):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected bicubic, bicubic+jpegQ with a quality Q of 1 to 100, blur+bicubic, or "
            "blur+bicubic+jpegQ; blur1.6 sets the blur's width"
        )
    return text


def scale_factor(text: str) -> int:
    if re.fullmatch(r"[0-9]+(\+[0-9]+)+", text):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, but no model here has several scales: give one, as in --scale 4"
        )
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= 32:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of 1 to 32, as in --scale 4")
    return int(text)


def image_ranges(text: str) -> tuple[tuple[int, int], tuple[int, int]]:
    found = re.fullmatch(r"(\d{1,18})-(\d{1,18})/(\d{1,18})-(\d{1,18})", text, re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected TRAIN/TEST ranges such as 1-800/801-810")
    first, last, test_first, test_last = map(int, found.groups())
    if not (1 <= first <= last and 1 <= test_first <= test_last):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected ranges that start at 1 or above and do not run backwards"
        )
    return (first, last), (test_first, test_last)


def rising_epochs(text: str) -> tuple[int, ...]:
    epochs = tuple(map(int, text.split("-"))) if re.fullmatch(r"[0-9]{1,18}(-[0-9]{1,18})*", text) else ()
    if not epochs or epochs[0] < 1 or any(a >= b for a, b in pairwise(epochs)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected rising epochs joined by -, as in 200-400-600")
    return epochs
