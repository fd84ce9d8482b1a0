"""Experiment trackers: where the numbers of each epoch and crops of SR images go, beside the run's folder (--tracker).

A tracker has three methods: `keep` an SR image of a validation, `write` an epoch, `close`. What fails in it costs one
line in the log and never a training. Nothing heavy is imported before a tracker begins.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import random
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import UserError

if TYPE_CHECKING:
    import torch

log = logging.getLogger("krgn")

IMAGES, SIDE = 4, 192  # how many SR crops an epoch shows, and their side in pixels
PROJECT = "krgn"  # the project of Weights & Biases and the experiment of MLflow that runs are in, unless others are set


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told of a run.

    Args:
        folder: of the run; its name below `parent`, the folder of all runs, is the run's name.
        id: the same in every session of the run, and in no other run.
        first: the first epoch that will be written.
        options: the values of all flags.
    """

    folder: Path
    parent: Path
    id: str
    first: int
    options: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name, as --save has it."""
        return self.folder.relative_to(self.parent).as_posix()


class Tracker:
    """Tracks nothing: --tracker none, and every process but the first.

    Subclasses set `title` and `package` and override the methods with a leading underscore. These may raise anything.
    """

    title, package = "no tracker", ""

    def __init__(self, run: TrackedRun | None = None):
        self._images: dict[str, torch.Tensor] = {}
        self._works = False
        if run is not None and self.package:
            self._works = True
            with self._or_without():
                self._begin(run)

    def keep(self, name: str, sr: torch.Tensor, _lr: torch.Tensor, _hr: torch.Tensor | None) -> None:
        """Keeps the middle of an SR image, uint8 (C, H, W), if it is among the first of the epoch."""
        if self._works and (len(self._images) < IMAGES or name in self._images):
            top, left = ((side - min(side, SIDE)) // 2 for side in sr.shape[1:])
            self._images[name] = sr[:, top : top + SIDE, left : left + SIDE]

    def write(self, epoch: int, numbers: dict) -> None:
        """Writes the numbers and the crops of an epoch."""
        if self._works:
            named = {name.replace(" ", "_"): value for name, value in numbers.items() if name != "epoch"}
            with self._or_without():
                self._write(epoch, named, self._images)
        self._images = {}

    def close(self) -> None:
        """Ends the tracker's part of this session."""
        if self._works:
            with self._or_without():
                self._close()

    @contextmanager
    def _or_without(self):
        """A disk that is full or a server that is gone must not end a training: it goes on without the tracker."""
        generator = random.getstate()  # some packages draw names from it
        try:
            yield
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("%s cannot be written (%s): the run goes on without it", self.title, reason)
            self._works = False
        finally:
            random.setstate(generator)

    def _begin(self, run: TrackedRun) -> None: ...

    def _write(self, epoch: int, numbers: dict[str, float], images: dict[str, torch.Tensor]) -> None: ...

    def _close(self) -> None: ...


class TensorBoard(Tracker):
    """TensorBoard's event file in <folder>/tensorboard. A session hides what a killed one wrote after its start."""

    title, package = "TensorBoard's file", "tensorboard"

    def _begin(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run.folder / "tensorboard", purge_step=run.first)

    def _write(self, epoch, numbers, images):
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, epoch)
        for name, crop in images.items():
            self._writer.add_image(f"SR/{name}", crop, epoch)
        self._writer.flush()

    def _close(self):
        self._writer.close()


class WeightsAndBiases(Tracker):
    """Weights & Biases: online where an API key is configured or WANDB_MODE says so, else offline in <folder>/wandb.

    Every session of a run has the same run id, so that they are one run there. WANDB_PROJECT names another project.
    """

    title, package = "Weights & Biases' run", "wandb"

    def _begin(self, run: TrackedRun) -> None:
        import wandb

        self._wandb = wandb
        # Without a key an online run would ask for one on the terminal, and wait.
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.id,
            resume="allow" if mode == "online" else None,
            dir=str(run.folder),
            config=_plain(run.options),
            mode=mode,
            settings=wandb.Settings(console="off", silent=True),
        )
        # An epoch is an axis, not wandb's own step, which can only rise: a resumed run may write an epoch again.
        self._run.define_metric("*", step_metric="epoch")
        if mode == "offline":
            folder = Path(self._run.dir).parent
            log.info("Weights & Biases: offline; upload with: wandb sync %s", folder)

    def _write(self, epoch, numbers, images):
        crops = {f"SR/{name}": self._wandb.Image(_pixels(crop)) for name, crop in images.items()}
        self._run.log({"epoch": epoch} | numbers | crops)

    def _close(self):
        self._run.finish()


class MLflow(Tracker):
    """MLflow: the server or store of MLFLOW_TRACKING_URI, else files in mlruns/ beside the runs' folders.

    A session goes on in the MLflow run that an earlier session of the run began. MLFLOW_EXPERIMENT_NAME names another
    experiment.
    """

    title, package = "MLflow's run", "mlflow"
    _TAG = "krgn.run"

    def _begin(self, run: TrackedRun) -> None:
        store = os.environ.get("MLFLOW_TRACKING_URI")
        if not store:
            store = (run.parent / "mlruns").resolve().as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # without it newer versions ask for a database
            log.info("MLflow: in %s, unless MLFLOW_TRACKING_URI is set", run.parent / "mlruns")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(store)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([number], filter_string=f"tags.`{self._TAG}` = '{run.id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(number, run_name=run.name, tags={self._TAG: run.id}).info.run_id
        self._client.log_batch(self._id, params=[Param(flag, str(value)) for flag, value in run.options.items()])

    def _write(self, epoch, numbers, images):
        for name, value in numbers.items():
            if math.isfinite(value):  # not every store takes others
                self._client.log_metric(self._id, name, value, step=epoch)
        for name, crop in images.items():
            self._client.log_image(self._id, _pixels(crop), artifact_file=f"SR/{name}/epoch_{epoch:04}.png")

    def _close(self):
        self._client.set_terminated(self._id)


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow, "none": Tracker}


def require(name: str, *, asked: bool) -> None:
    """Whether a tracker's package is installed; called before anything heavy.

    Args:
        asked: whether the user gave --tracker, so that a missing package is an error. TensorBoard, the default, is left
            out with a line in the log where it is missing.

    Raises:
        UserError: if a tracker that the user asked for is missing.
    """
    package = TRACKERS[name].package
    if package and importlib.util.find_spec(package) is None and (asked or name != "tensorboard"):
        where = "requirements.txt" if name == "tensorboard" else "requirements-extra.txt, which names it,"
        raise UserError(
            f"--tracker {name}: the package {package} is not installed: pip install {package} ({where} has the tested "
            "version), or choose --tracker none"
        )


def begin(name: str, run: TrackedRun) -> Tracker:
    """The tracker of a run's session; it tracks nothing where the package of the default one is missing."""
    package = TRACKERS[name].package
    if package and importlib.util.find_spec(package) is None:
        log.info("no TensorBoard file: the package tensorboard is not installed")
        return Tracker()
    return TRACKERS[name](run)


def _plain(options: dict) -> dict:
    """Flags as trackers show them."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in options.items()
    }


def _pixels(crop: torch.Tensor):
    """An image (H, W, C) or (H, W) as uint8 NumPy pixels."""
    pixels = crop.permute(1, 2, 0).numpy()
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
