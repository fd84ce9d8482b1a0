"""Folders that export.py made, with their report, their programs and their foreign forms changed, for --check."""

import hashlib
import json
import random
import shutil
from pathlib import Path

from fuzz.changes import damaged, edited


def make(folder: Path, seed: int, count: int) -> None:
    import torch

    import export
    from model.checkpoint import pack
    from model.krgn import KRGN
    from runtime.files import save_tensors

    chance = random.Random(seed)
    torch.manual_seed(seed)
    save_tensors(folder / "x.pt", pack(KRGN(scale=2, n_feats=8, n_resgroups=1, groups=4), "KRGN"))
    out = folder / "export"
    export.main(["--pre_train", str(folder / "x.pt"), "--out", str(out), "--formats", "pt,torch,onnx,ncnn"])
    report = json.loads((out / "export.json").read_text())
    programs = [path.name for path in out.iterdir() if path.name != "export.json"]
    for number in range(count):
        changed = folder / "inputs" / f"{number:06}"
        shutil.copytree(out, changed)
        if number % 3 == 0:
            text = json.dumps(edited(report, chance)).encode()
            (changed / "export.json").write_bytes(damaged(text, chance) if chance.random() < 0.3 else text)
            continue
        name = chance.choice(programs)
        content = damaged((out / name).read_bytes(), chance)
        if chance.random() < 0.2:
            content = (out / chance.choice(programs)).read_bytes()
        (changed / name).write_bytes(content)
        # Who changes a file can write its hash anew.
        text = json.dumps(report).replace(hashlib.sha256((out / name).read_bytes()).hexdigest(), "NEW")
        (changed / "export.json").write_text(text.replace("NEW", hashlib.sha256(content).hexdigest()))


def take(path: Path) -> None:
    import export

    export.main(["--check", str(path)])
