"""The model card of an export: README.md with a YAML header as model hubs read it, and the same facts for safetensors.

The facts come from the checkpoint and from its run's folder, where there is one: config.txt (recipe), run.json (data,
hardware, time) and scores-<Set>.json of tests of this very file, in the folder or right below it.
"""

import ast
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from evaluation.results import SetResult, read_result
from model.checkpoint import Checkpoint, model_of
from model.networks import count_parameters, describe
from runtime.errors import UserError, printable
from runtime.files import digest, read_json, read_regular

log = logging.getLogger("krgn")

LICENCE = "mit"  # as model hubs write it
# Flags that say how a network was trained, in the order of the card.
RECIPE = (
    "data_train", "data_range", "degradation", "pre_train", "kernels", "basis", "patch_size", "batch_size",
    "test_every", "epochs", "loss", "optimizer", "betas", "weight_decay", "lr", "schedule", "decay", "gamma", "warmup",
    "ema", "teacher", "distill", "teacher_views", "gclip", "precision", "seed", "data_test", "best_by",
)  # fmt: skip
_DEFAULT_RANGE = "1-800/801-810"  # a plain folder of images has none, unless the flag is given
_PAPERS = {
    "KRGN": "Towards lightweight image super-resolution via re-parameterized kernel recalibration",
    "CFGN": "CFGN, the predecessor of KRGN",
    "EDSR": "Lim et al., arXiv 1707.02921",
    "RCAN": "Zhang et al., arXiv 1807.02758",
}


@dataclass(frozen=True)
class ModelFacts:
    """What a card says.

    Args:
        stem: the name of the exported files, KRGN_x4.
        model: the network's name on the command line; `architecture` describes the deployed network in one line.
        parameters: of the deployed network; `trained_parameters` of the training form.
        hyperparameters: of the network.
        checkpoint: epoch, psnr and weights ("raw" or "averaged"), as far as the file says them.
        recipe: flags of the training and their values, as text; empty where no config.txt was found.
        data: the training sets, as `runtime.provenance.file_list` describes them.
        effort: where and how long it was trained, in words, and `code` by what commits; "" if unknown.
        scores: of tests of this file.
    """

    stem: str
    model: str
    architecture: str
    parameters: int
    trained_parameters: int
    hyperparameters: dict
    checkpoint: dict
    recipe: dict[str, str]
    data: list[dict]
    effort: str
    code: str
    scores: list[SetResult]

    def metadata(self) -> dict[str, str]:
        """The same facts for the header of a safetensors file."""
        scores = [
            {"set": one.set_name, "PSNR": one.scores.psnr, "SSIM": one.scores.ssim, "protocol": str(one.protocol)}
            for one in self.scores
        ]
        return {
            "architecture": self.architecture,
            "parameters": str(self.parameters),
            "licence": LICENCE,
            "training_data": json.dumps(self.data),
            "training_effort": self.effort,
            "training_code": self.code,
            "recipe": json.dumps(self.recipe),
            "scores": json.dumps(scores),
        }


def gather(source: Path, checkpoint: Checkpoint, trained: nn.Module, folded: nn.Module, stem: str) -> ModelFacts:
    """The facts of a checkpoint file and its run.

    Args:
        source: the checkpoint file.
        trained, folded: its network as it is in the file, and folded.
        stem: the name of the exported files.
    """
    model, folder = model_of(checkpoint), run_folder(source)
    architecture = describe(folded, model)
    sessions = _sessions(folder) if folder else []
    data = sessions[-1].get("data") if sessions else None
    training = data.get("training") if isinstance(data, dict) else None
    return ModelFacts(
        stem=stem,
        model=model,
        architecture=architecture,
        parameters=count_parameters(folded),
        trained_parameters=count_parameters(trained),
        hyperparameters=trained.hyperparameters | {"recalibrated": checkpoint.form != "plain kernels"},
        checkpoint={name: checkpoint.facts[name] for name in ("epoch", "psnr", "weights") if name in checkpoint.facts},
        recipe=_recipe(folder) if folder else {},
        data=[each for each in training if _is_set(each)] if isinstance(training, list) else [],
        effort=_effort(sessions),
        code=_code(sessions),
        scores=_scores(folder, architecture, source, stem) if folder else [],
    )


def run_folder(source: Path) -> Path | None:
    """The folder of the run that a checkpoint is from: its own or the one above, whichever has a config.txt."""
    here = source.absolute().parent
    return next((folder for folder in (here, here.parent) if (folder / "config.txt").is_file()), None)


def _options(path: Path) -> dict[str, str]:
    """The lines `name: value` of a config.txt; none if it cannot be read."""
    try:
        lines = read_regular(path, 2**20).decode(errors="replace").splitlines()
    except (UserError, OSError):
        return {}
    return {name: value for name, separator, value in (line.partition(": ") for line in lines) if separator}


def _recipe(folder: Path) -> dict[str, str]:
    options = _options(folder / "config.txt")
    shown = {flag: _shown(flag, options[flag]) for flag in RECIPE if options.get(flag)}
    if shown.get("data_range") == _DEFAULT_RANGE and "DIV2K" not in shown.get("data_train", ""):
        del shown["data_range"]
    if "teacher" not in shown:
        shown.pop("distill", None)
        shown.pop("teacher_views", None)
    return shown


def _shown(flag: str, text: str) -> str:
    """A value of config.txt as its flag takes it; of paths the last parts, which say nothing of a machine."""
    if flag in ("pre_train", "teacher"):
        path = Path(text)
        return path.parts[-3] if path.parent.name == "model" and len(path.parts) > 2 else path.name
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return printable(text)
    if flag in ("loss", "data_train") and isinstance(value, tuple):
        pairs = [pair for pair in value if isinstance(pair, tuple) and len(pair) == 2]
        return "+".join(f"{weight:g}*{name}" if weight else str(name) for weight, name in pairs)
    if flag == "data_range" and isinstance(value, tuple):
        return "/".join("-".join(map(str, part)) for part in value)
    joint = {"decay": "-", "data_test": "+"}.get(flag, " ")
    return joint.join(map(str, value)) if isinstance(value, tuple) else printable(text)


def _sessions(folder: Path) -> list[dict]:
    """The sessions of run.json; none where there is no such file or it is damaged."""
    try:
        content = read_json(folder / "run.json")
    except UserError:
        return []
    sessions = content.get("sessions") if isinstance(content, dict) else None
    return [each for each in sessions if isinstance(each, dict)] if isinstance(sessions, list) else []


def _is_set(value: object) -> bool:
    kinds = {"set": str, "images": int, "bytes": int, "digest": str}
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in kinds.items())


def _effort(sessions: list[dict]) -> str:
    seconds = [each.get("wall seconds") for each in sessions]
    spent = sum(value for value in seconds if isinstance(value, int | float))
    hardware = sessions[-1].get("hardware") if sessions else None
    if not isinstance(hardware, dict):
        return ""
    name, processes, gpus = (hardware.get(key) for key in ("device name", "processes", "GPUs"))
    on = f"{gpus} x {name}" if gpus else f"{name}, {hardware.get('cores')} cores"
    several = f", {processes} processes" if processes not in (1, None) else ""
    times = f"{len(sessions)} session{'s' * (len(sessions) > 1)}"
    return printable(f"{_duration(spent)} in {times} on {on}{several}")


def _duration(seconds: float) -> str:
    """With two digits: 9.1 seconds, 2.6 hours, 126 hours."""
    value, unit = next(
        ((seconds / size, unit) for size, unit in ((3600, "hours"), (60, "minutes")) if seconds >= size),
        (seconds, "seconds"),
    )
    return f"{value:.{0 if value >= 9.95 else 1}f} {unit}"


def _code(sessions: list[dict]) -> str:
    """The commits of the sessions, in their order, and the last one's torch."""
    commits = {}
    for each in sessions:
        commit, changed = str(each.get("git commit")), each.get("uncommitted changes") is True
        if re.fullmatch("[0-9a-f]{40}", commit):
            commits[commit[:12] + " with uncommitted changes" * changed] = None
    versions = sessions[-1].get("versions") if sessions else None
    torch = [f"torch {versions['torch']}"] if isinstance(versions, dict) and "torch" in versions else []
    named = [f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}"] if commits else []
    return printable("; ".join(named + torch))


def _scores(folder: Path, architecture: str, source: Path, stem: str) -> list[SetResult]:
    """The results of tests of this network: of `source` as it is now, or of the exported file, called `stem`."""
    found, now = [], digest(source)
    for table in sorted([*folder.glob("scores-*.json"), *folder.glob("*/scores-*.json")], key=_natural):
        try:
            result = read_result(table)
        except UserError as error:
            log.warning("%s: not in the model card", error)
            continue
        test = _options(table.parent / "config_test.txt")
        of, weights = Path(test.get("pre_train", "")).stem, test.get("weights sha256")
        if of == source.stem and weights not in (None, now):  # tests of older versions have no digest
            log.info("%s: is of %s as it was before, so it is not in the model card: test again", table, source.name)
        elif result.network == architecture and of in (source.stem, stem):
            found.append(result)
        else:
            log.info("%s: is of other weights (%s), so it is not in the model card", table, of or "unknown")
    return found


def _natural(path: Path) -> tuple:
    """A key that puts Set5 before Set14."""
    return path.parent, [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.stem)]


# --- README.md ---


def render(facts: ModelFacts, files: dict[str, str]) -> str:
    """The text of README.md.

    Args:
        files: names of the exported files, and what each is.
    """
    sections = [
        _header(facts),
        f"# {facts.stem}\n\n{_about(facts)}",
        f"## Use\n\n{_use(facts)}",
        f"## Scores\n\n{_table_of_scores(facts)}",
        f"## Network\n\n{_network(facts)}",
        f"## Training\n\n{_training(facts)}",
        "## Files\n\n" + "\n".join(f"- `{name}`: {what}" for name, what in files.items()),
        "## Licence\n\nMIT, as the code of the framework. The training images have licences of their own: check that "
        "they allow what you want to do with these weights.",
    ]
    return "\n\n".join(sections) + "\n"


def _header(facts: ModelFacts) -> str:
    # Texts are quoted as in JSON, which is YAML too.
    lines = ["---", f"license: {LICENCE}", "library_name: krgn", "pipeline_tag: image-to-image", "tags:"]
    lines += ["- super-resolution", "- image-super-resolution", f"- {facts.model.lower()}"]
    if facts.scores:
        lines += ["model-index:", f"- name: {facts.stem}", "  results:"]
    for one in facts.scores:
        task = "{type: image-to-image, name: Image super-resolution}"
        name = json.dumps(f"{one.set_name} x{one.scale}")
        lines += [
            f"  - task: {task}",
            f"    dataset: {{type: {json.dumps(one.set_name)}, name: {name}}}",
            "    metrics:",
        ]
        for metric, value in (("PSNR", one.scores.psnr), ("SSIM", one.scores.ssim)):
            title = json.dumps(f"{metric}, {one.protocol}")
            lines.append(f"    - {{type: {metric.lower()}, value: {value:.4f}, name: {title}}}")
    return "\n".join([*lines, "---"])


def _about(facts: ModelFacts) -> str:
    shape = facts.hyperparameters
    form = " It was trained with recalibrated kernels, which are folded: inference costs nothing extra."
    return (
        f"{facts.model} for single-image super-resolution x{shape['scale']} ({_PAPERS[facts.model]}): "
        f"{facts.parameters:,} parameters." + form * bool(shape["recalibrated"])
    )


def _use(facts: ModelFacts) -> str:
    shape = facts.hyperparameters
    image, big = 'np.array(Image.open("photo.png").convert("RGB"))', "krgn.upscale(network, image)"
    if shape["n_colors"] == 1:  # luma Y of BT.601, 16..235, where Pillow's gray is 0..255
        image = (
            '(np.array(Image.open("photo.png").convert("L"))[:, :, None] * (219 / 255) + 16).round().astype("uint8")'
        )
        big = f'(({big}[:, :, 0] - 16.0) * (255 / 219)).clip(0, 255).round().astype("uint8")'
    lines = [
        "import krgn, numpy as np  # pip install . in the framework's repository",
        "from PIL import Image",
        "",
        f'network = krgn.load("{facts.stem}.safetensors")',
        f"image = {image}",
        f'Image.fromarray({big}).save("photo_x{shape["scale"]}.png")',
    ]
    return "```python\n" + "\n".join(lines) + "\n```"


def _table_of_scores(facts: ModelFacts) -> str:
    if not facts.scores:
        return "No test of these weights was found beside them."
    rows = ["| set | PSNR (dB) | SSIM | protocol |", "|---|---|---|---|"]
    rows += [
        f"| {one.set_name} x{one.scale} | {one.scores.psnr:.3f} | {one.scores.ssim:.4f} | {one.protocol} |"
        for one in facts.scores
    ]
    return "\n".join(rows)


def _network(facts: ModelFacts) -> str:
    lines = [f"{facts.architecture}.", ""]
    lines += ["| hyper-parameter | value |", "|---|---|"]
    lines += [f"| `{name}` | {value} |" for name, value in facts.hyperparameters.items()]
    if facts.trained_parameters != facts.parameters:
        lines += ["", f"Training form: {facts.trained_parameters:,} parameters; deployed: {facts.parameters:,}."]
    return "\n".join(lines)


def _training(facts: ModelFacts) -> str:
    lines = []
    for each in facts.data:
        size = f"{each['images']} images, {each['bytes'] / 1e6:,.1f} MB with their LR images"
        lines.append(f"- data: {printable(each['set'])}, {size}; digest of names and sizes `{each['digest'][:16]}`")
    if facts.effort:
        lines.append(f"- effort: {facts.effort}")
    if facts.code:
        lines.append(f"- code: {facts.code}")
    if "epoch" in facts.checkpoint:
        psnr = facts.checkpoint.get("psnr")
        sets = facts.recipe.get("best_by", "").rpartition(":")[0] or facts.recipe.get("data_test", "")
        on = f" on {sets}" if sets and "+" not in sets else ""  # of several, the first with HR images
        best = f", PSNR {psnr:.3f} dB in validation{on}" if isinstance(psnr, int | float) else ""
        lines.append(f"- weights: {facts.checkpoint.get('weights', 'raw')}, of epoch {facts.checkpoint['epoch']}{best}")
    if facts.recipe.get("pre_train"):
        lines.append("- this run was the last of several: it began with the weights of `--pre_train`")
    if facts.recipe:
        lines += ["", "| flag of `main.py` | value |", "|---|---|"]
        lines += [f"| `--{flag}` | {value} |" for flag, value in facts.recipe.items()]
    return "\n".join(lines).strip() or "Unknown: there was no run's folder beside the weights."
