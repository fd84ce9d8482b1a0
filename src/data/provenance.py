"""Which images a run uses, for its record: counts, and a digest of the files' names and sizes."""

from data.pairs import Pair
from data.patches import TrainSet
from data.testset import TestSet
from runtime.provenance import file_list


def describe_data(train_set: TrainSet | None, test_sets: list[TestSet]) -> dict[str, list[dict]]:
    """The sets of a run as `runtime.provenance.file_list` describes them, "training" and "test"."""
    training: dict[str, list[Pair]] = {}
    for pair, image_set in train_set.images if train_set is not None else ():
        training.setdefault(image_set.name, []).append(pair)
    return {
        "training": [_described(name, pairs) for name, pairs in training.items()],
        "test": [_described(test_set.name, test_set.pairs) for test_set in test_sets],
    }


def _described(name: str, pairs: list[Pair]) -> dict:
    files = [
        (f"{kind} {pair.name} {path.name}", path)
        for pair in pairs
        for kind, path in (("HR", pair.hr), ("LR", pair.lr))
        if path is not None
    ]
    return file_list(name, len(pairs), files)
