"""The folder of a run, experiment/<save>/, and everything a run leaves there:

    config.txt                  command, all options, git commit, versions, hardware and data of a training run
                                (config_test.txt: of a test)
    run.json                    the same for programs, of every session of the run, with wall times (`provenance.py`)
    log.txt                     what was printed, with times; a run that goes on appends
    history.csv, curves.png, curves.pdf     losses, rate and scores of each epoch
    skipped.csv                 batches that were skipped, why, and their images
    tensorboard/, wandb/        the same numbers, and crops of SR images, for TensorBoard, Weights & Biases
    model/model_latest.pt       weights after the last epoch, in training form
    model/model_best.pt         weights of the best epoch: by PSNR on the first test set, or by --best_by
    model/model_<epoch>.pt, model/state_<epoch>.pt     with --save_models
    state.pt                    everything `--load` needs to go on
    scores-<Set>.csv            PSNR and SSIM of each image of a test
    scores-<Set>.json           the same with means, protocol and versions, for programs (`evaluation/results.py`)
    results-<Set>/<image>_x4_SR.png                    with --save_results
    .experiment                 says that this program made the folder, and so may delete it
    .lock                       who trains in the folder: one process at a time

Everything but the log is written atomically: a killed run leaves the old file or the new one.
"""

import logging
import os
import weakref
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from model.weights import load_tensors
from runtime import distributed
from runtime.csvfiles import csv_text
from runtime.errors import UserError
from runtime.files import is_temporary, remove_abandoned, save_tensors, write_bytes
from runtime.lock import lock_file
from runtime.log import log_to
from runtime.provenance import RunRecord, as_text

log = logging.getLogger("krgn")

_MARKER, _LOCK = ".experiment", ".lock"
LOCK_WAIT = 60  # seconds that --auto_resume waits for a process that still trains in the folder
_OURS = (  # what --reset deletes; the marker stays, for the run that follows
    "config.txt", "config_test.txt", "run.json", "log.txt", "history.csv", "skipped.csv", "curves.png", "curves.pdf",
    "state.pt", "scores-*.csv", "scores-*.json",
    "model/model_latest.pt", "model/model_best.pt", "model/model_[0-9]*.pt", "model/state_[0-9]*.pt",
    "model/model_latest.safetensors", "model/model_best.safetensors", "model/model_[0-9]*.safetensors",
    "results-*/*_x[0-9]*_[SLH]R.png", "tensorboard/events.out.tfevents.*",
    "wandb/offline-run-*/**/*", "wandb/run-*/**/*", "wandb/latest-run", "wandb/debug*.log",
)  # fmt: skip


class Experiment:
    """One run's folder. Nothing is written before `create`."""

    def __init__(self, parent: Path, name: str):
        self.folder, self.name = parent / name, name
        self._locked = False
        self.record: RunRecord | None = None  # of a training run, once it is begun

    @property
    def state_path(self) -> Path:
        return self.folder / "state.pt"

    def check(self, *, training: bool, reset: bool, load: bool, auto_resume: bool = False) -> None:
        """Whether the run may use the folder; called before any work is done, and changes nothing.

        Args:
            auto_resume: the run goes on if there is a state. It waits a while for the lock: the process that was
                stopped before this one started may still be saving its state.

        Raises:
            UserError: if it may not.
        """
        name = self.name
        ours = (self.folder / _MARKER).is_file()
        if training and ours and distributed.is_main():
            self._lock(wait=LOCK_WAIT if auto_resume else 0)
        if load:
            if not self.state_path.is_file():
                raise UserError(
                    f"--load {name}: {self.state_path} does not exist, so there is nothing to resume: "
                    f"check the name, or start the run with --save {name}"
                )
            return
        if not self.folder.exists():
            return
        if not ours and not self._is_empty_frame():
            raise UserError(f"{self.folder}: was not made by this program, so it is left alone: choose another --save")
        # A run that was killed before its first state has nothing to lose and nothing to go on with.
        begun = self.state_path.exists() or any((self.folder / "model").glob("model_*.pt"))
        if auto_resume and begun:
            if self.state_path.exists():
                return
            raise UserError(
                f"{self.folder}: has weights, but no state.pt that --auto_resume could resume from: restore it, start "
                f"anew (--save {name} --reset deletes the run), or choose another --save"
            )
        if training and begun and not reset:
            raise UserError(
                f"{self.folder}: holds a training run: resume it (--load {name}, or --auto_resume), "
                f"start anew (--save {name} --reset deletes it), or choose another --save"
            )

    def create(self, options: dict, *, training: bool, reset: bool = False, facts: dict | None = None) -> None:
        """Makes the folder, deletes the run in it if `reset`, and writes the configuration; `check` comes first.

        Args:
            options: the values of all flags.
            facts: "hardware" and "data" of the run, as `provenance` describes them, and "weights", the SHA-256 of the
                file that is tested.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # First of all, so that a run that is killed now may be started again.
            self._write_text(
                _MARKER, "This folder was made by main.py, whose --reset may delete what main.py wrote in it.\n"
            )
            if training and not self._locked:
                # Another run may have begun here since `check`.
                self.check(training=True, reset=reset, load=bool(options["load"]))
            if reset:
                self._delete()
            if training:
                (self.folder / "model").mkdir(exist_ok=True)
                for folder in (self.folder, self.folder / "model", *self.folder.glob("results-*")):
                    remove_abandoned(folder)
            log_to(self.folder / "log.txt")
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror}): name another folder with --dir_experiment"
            ) from None
        self._write_text("config.txt" if training else "config_test.txt", as_text(options, facts or {}))
        if training:
            self.record = RunRecord(self.folder / "run.json")
            self.record.begin(facts or {})

    def _is_empty_frame(self) -> bool:
        """Whether the folder holds nothing but what a run that was killed in its first moments may have left."""
        return self.folder.is_dir() and all(
            is_temporary(path)
            or path.name == _LOCK
            or (path.name == "model" and path.is_dir() and not any(path.iterdir()))
            for path in self.folder.iterdir()
        )

    def _lock(self, *, wait: float = 0) -> None:
        """Keeps other processes from training in this folder until this one ends; UserError if another one does."""
        file = lock_file(self.folder / _LOCK, wait=wait)
        if file is not None:
            weakref.finalize(self, os.close, file)  # open as long as this object
            self._locked = True

    def _delete(self) -> None:
        """Deletes what this program writes, by name; anything else in the folder stays, and so does the folder then."""
        for pattern in _OURS:
            for path in self.folder.glob(pattern):
                if path.is_symlink() or not path.is_dir():
                    path.unlink()
        nested = sorted(self.folder.glob("wandb/**/"), reverse=True)  # the innermost first
        for folder in [*self.folder.glob("results-*"), self.folder / "model", self.folder / "tensorboard", *nested]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def save_model(self, checkpoint: dict, names: list[str]) -> list[Path]:
        """Writes a checkpoint as model/model_<name>.pt for every name, and returns the files."""
        paths = [self.folder / "model" / f"model_{name}.pt" for name in names]
        for path in paths:
            save_tensors(path, checkpoint)
        return paths

    def save_state(self, state: dict) -> None:
        """Writes state.pt; the last good one stays until the new one is complete."""
        save_tensors(self.state_path, state)
        self.reached(state["progress"]["epoch"], state["progress"]["batch"])

    def recorded(self) -> AbstractContextManager:
        """Inside, a session of the run trains, whose end is recorded in run.json."""
        return self.record.ending() if self.record is not None else nullcontext()

    def reached(self, epoch: int, batch: int) -> None:
        """Records in run.json how far the run has come."""
        if self.record is not None:
            self.record.reached(epoch, batch)

    def keep_state(self, epoch: int) -> None:
        """Keeps the state just saved as that of `epoch`, for --resume."""
        write_bytes(self.folder / "model" / f"state_{epoch}.pt", self.state_path.read_bytes())

    def restore_best(self, epoch: int | None) -> None:
        """Makes model_best.pt what it was when `epoch` was the best so far, after going back in the run."""
        kept, best = (self.folder / "model" / f"model_{which}.pt" for which in (epoch, "best"))
        if not kept.exists():
            return
        write_bytes(best, kept.read_bytes())
        kept, best = kept.with_suffix(".safetensors"), best.with_suffix(".safetensors")
        if kept.exists():
            write_bytes(best, kept.read_bytes())
        else:  # of other weights than model_best.pt has now
            best.unlink(missing_ok=True)

    def load_state(self, epoch: int = 0) -> dict:
        """The last state, or that of an epoch.

        Raises:
            UserError: if there is none; for an epoch, with those that exist.
        """
        path = self.folder / "model" / f"state_{epoch}.pt" if epoch else self.state_path
        if not path.exists():
            found = [other.stem.removeprefix("state_") for other in path.parent.glob("state_*.pt")]
            kept = sorted(int(number) for number in found if number.isdecimal())
            there = (
                f"epochs {', '.join(map(str, kept))} were kept" if kept else "none was kept (--save_models keeps them)"
            )
            raise UserError(f"--resume {epoch}: {path} does not exist; {there}: give one of those, or no --resume")
        try:
            state = load_tensors(path)
        except UserError as error:
            latest = path.parent / ("model_latest.pt" if epoch else "model/model_latest.pt")
            also = f", or start another run from the last weights with --pre_train {latest}" if latest.is_file() else ""
            raise UserError(f"{error}{also}") from None
        wanted = {"model": dict, "options": dict, "optimizer": dict, "progress": dict, "given": list}
        fits = isinstance(state, dict) and all(isinstance(state.get(name), kind) for name, kind in wanted.items())
        if not fits or not all(isinstance(name, str) for name in (*state["given"], *state["options"])):
            raise UserError(f"{path}: is no state of a run, expected what main.py saved there: restore the file")
        return state

    def save_history(self, history: list[dict]) -> None:
        """Writes history.csv, a row an epoch; cells of scores are empty where an epoch was not validated."""
        self._write_csv("history.csv", history, first=max(history, key=len, default={}))

    def save_skipped(self, rows: list[dict]) -> None:
        """Writes skipped.csv, a row for each batch that never reached the weights."""
        self._write_csv("skipped.csv", rows)

    def save_scores(self, set_name: str, rows: list[dict], document: str) -> None:
        """Writes scores-<Set>.csv, a row per image, and scores-<Set>.json, the document."""
        self._write_csv(f"scores-{set_name}.csv", rows)
        self._write_text(f"scores-{set_name}.json", document)

    def result_path(self, set_name: str, image: str, scale: int, kind: str) -> Path:
        """Where an image of a test goes: results-<Set>/<image>_x<scale>_<kind>.png."""
        return self.folder / f"results-{set_name}" / f"{image}_x{scale}_{kind}.png"

    def _write_csv(self, name: str, rows: list[dict], first: dict | None = None) -> None:
        """Writes rows, whose columns may differ: those of `first` come first."""
        # A run that goes on with other test sets has other columns from then on.
        columns = list(dict.fromkeys(name for row in (first or {}, *rows) for name in row))
        self._write_text(name, csv_text([columns, *([row.get(name) for name in columns] for row in rows)]))

    def _write_text(self, name: str, text: str) -> None:
        write_bytes(self.folder / name, text.encode(errors="backslashreplace"))
