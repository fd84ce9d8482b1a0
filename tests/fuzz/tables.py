"""What report.py reads: tables of compare.py and the scores of a test, both JSON."""

import json
import random
import shutil
from pathlib import Path

from fuzz import states
from fuzz.changes import VALUES, damaged, edited

TABLE = {
    "title": "KRGN",
    "columns": ["network", "parameters (K)", "Set5 PSNR"],
    "rows": [["KRGN", 402.5, 32.38], ["CFGN", None, 32.32]],
    "notes": ["measured here"],
}


def make(folder: Path, seed: int, count: int) -> None:
    chance = random.Random(seed)
    states.trained(folder, chance)
    tested = "--test_only --scale 2 --data_test Small --data_range 1-2/3-3 --save test --save_results --save_gt"
    weights = folder / "experiment/run/model/model_best.pt"
    states.run(folder, *tested.split(), "--pre_train", str(weights), "--dir_data", str(folder / "dataset"))
    scores = json.loads((folder / "experiment/test/scores-Small.json").read_text())
    text = json.dumps(TABLE)
    for number in range(count):
        kind = number % 4
        if kind == 0:
            name, content = "table.json", damaged(text.encode(), chance)
        elif kind == 1:
            name, content = "table.json", json.dumps(edited(TABLE, chance)).encode()
        elif kind == 2:
            odd = ["[" * 100_000, "9" * 100_000, '{"title": ' * 5000, "NaN", "", "\ufeff{}", '{"a":1,"a":2}']
            name, content = "table.json", chance.choice(odd).encode()
        else:
            changed = edited(scores, chance, [*VALUES, "x" * 200_000, '"', "1e999", "\0", "../a", "inf"])
            content = json.dumps(changed).encode()
            name, content = "scores.json", damaged(content, chance) if chance.random() < 0.5 else content
        (folder / "inputs" / f"{number:06}-{name}").write_bytes(content)


def take(path: Path) -> None:
    import report

    folder, work = path.parent.parent, path.parent.parent / "work"
    shutil.rmtree(work)
    shutil.copytree(folder / "experiment", work / "experiment")
    flags = [str(work / "experiment/test"), "--out", str(work / "page")]
    if path.name.endswith("scores.json"):
        shutil.copyfile(path, work / "experiment/test/scores-Small.json")
    else:
        flags += ["--table", str(path)]
    report.main(flags)
    page = (work / "page/index.html").read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script") == 2
