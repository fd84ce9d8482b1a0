"""What an epoch leaves in a run's folder beside its state: weights with their fold, history.csv, the curves."""

import logging

from deploy.fold import write_folded
from reporting import figures
from runtime.errors import UserError
from runtime.experiment import Experiment
from runtime.files import write_bytes

log = logging.getLogger("krgn")


def save_weights(experiment: Experiment, checkpoint: dict, names: list[str]) -> None:
    """Writes a checkpoint as model/model_<name>.pt for every name, and beside each its folded safetensors file."""
    paths = experiment.save_model(checkpoint, names)
    targets = [path.with_suffix(".safetensors") for path in paths]
    try:
        write_folded(paths[0], *targets)
    except UserError as error:  # the training goes on, and its checkpoint is there
        log.warning("%s", error)
        for target in targets:  # of an epoch before: beside this checkpoint it would be taken for its fold
            target.unlink(missing_ok=True)


def save_history(experiment: Experiment, history: list[dict]) -> None:
    """Writes history.csv, a row an epoch, and draws the curves."""
    experiment.save_history(history)
    try:
        for form, content in figures.curves(history).items():
            write_bytes(experiment.folder / f"curves.{form}", content)
    except Exception as error:  # no picture is worth a training
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning("%s: no curves were drawn (%s)", experiment.folder, reason)
