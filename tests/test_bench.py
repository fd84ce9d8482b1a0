"""The benchmark: what it compares computes the same, and a run in turns, in processes of their own, gives a table."""

import json

import numpy as np
import pytest
import torch
from conftest import assert_one_line, program

import bench
from data.image import write_png
from model.precision import is_native
from runtime.errors import UserError
from speed import loading, workloads
from speed.cases import Case
from speed.worker import started
from speed.workloads import make_network, prepare_copy, prepare_product


def test_the_published_form_computes_what_ours_does():
    image = torch.rand(1, 3, 12, 15) * 255
    for ours in (make_network(32, False), make_network(32, False, "recalibrated")):
        published = make_network(32, True)
        state = {name: tensor for name, tensor in ours.state_dict().items() if "transform" not in name}
        published.load_state_dict(state)
        with torch.no_grad():
            same = torch.allclose(published(image), ours(image), atol=1e-2)
        # Transforms that are not zero: recalibration is really on where it is said to be.
        assert same == (not any("transform" in name for name in ours.state_dict()))


def test_a_run_in_turns(tmp_path, monkeypatch, capsys):
    """Copies of the whole memory ceiling against a product: real processes, real times."""
    cases = [Case("group", "first", prepare_copy, baseline=True), Case("group", "second", prepare_product)]
    monkeypatch.setattr(bench, "chosen_groups", lambda *_: [cases])
    bench.main(["infer", "--cpu", "--anyway", "--n_runs", "2", "--out", str(tmp_path / "table")])
    assert "group: second" in capsys.readouterr().out
    table = json.loads((tmp_path / "table.json").read_text())
    (first, second) = (dict(zip(table["columns"], row, strict=True)) for row in table["rows"])
    assert first["times faster"] == 1
    assert first["least (ms)"] <= first["median (ms)"] <= first["most (ms)"]
    # The ceilings are these very operations, in processes of their own: about a hundred.
    assert first["per cent of the bandwidth ceiling"] > 0
    assert second["per cent of the arithmetic ceiling"] > 0
    assert any("torch" in note for note in table["notes"])


def test_a_case_that_fails_is_named_in_one_line():
    case = Case("group", "broken", prepare_copy, {"no_such_option": 1})
    with pytest.raises(UserError, match=r"group, broken: .*no_such_option") as raised, started(case, "cpu"):
        pass
    assert "\n" not in str(raised.value)


def test_wrong_flags():
    assert_one_line(program("bench.py", "fly"), "fly", "infer")
    if not torch.cuda.is_available():
        assert_one_line(program("bench.py", "infer", "--device", "cuda"), "no GPU", "--cpu")


def test_every_group_has_one_baseline_and_every_workload_runs(tmp_path, monkeypatch):
    """The cases of all commands, with small images: their functions take the options that they are given."""
    monkeypatch.setattr(workloads, "LR_SIZE", (8, 12))
    monkeypatch.setattr(workloads, "PATCH", 8)
    monkeypatch.setattr(loading, "PHOTO_SIZE", (200, 208))
    monkeypatch.setattr(loading, "N_BATCHES", 1)
    for name in workloads.TEST_SETS:
        write_png(tmp_path / f"benchmark/{name}/HR/a.png", np.full((48, 64, 3), 90, np.uint8))
    args = bench.build_parser().parse_args(["all", "--cpu", "--batch", "2"])
    groups = bench.chosen_groups(args, "cpu", tmp_path, str(tmp_path))
    bf16 = is_native(torch.device("cpu"))
    assert [len(group) for group in groups] == [5 + bf16, 3 + bf16, 2, 2, 3]
    for group in groups:
        assert [case.baseline for case in group].count(True) == 1
        for case in group:
            options = case.options | ({"workers": 0} if "workers" in case.options else {})
            workload = case.prepare(**options, device="cpu")
            workload.run()
            assert (workload.cost.mult_adds is not None) == case.group.startswith("inference")
