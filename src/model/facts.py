"""What a file of weights says about its network. No torch here: flags are compared with it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FileFacts:
    """What a file of weights says about its network.

    Args:
        path: of the file, for messages.
        model: the network's name.
        structure: its hyper-parameters, by the flags that set them.
        recalibrated: whether it is in training form, with basis and transforms; None where that means nothing.
        basis: "trained" or "frozen", of a file in training form.
    """

    path: str
    model: str
    structure: dict
    recalibrated: bool | None = None
    basis: str = "trained"
