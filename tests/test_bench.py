"""The benchmark: what it compares computes the same, and a run in turns, in processes of their own, gives a table."""

import json

import pytest
import torch
from conftest import assert_one_line, program

import bench
from bench import Case
from runtime.errors import UserError


def test_the_published_form_computes_what_ours_does():
    image = torch.rand(1, 3, 12, 15) * 255
    for ours in (bench.network_of(32, False), bench.network_of(32, False, "recalibrated")):
        published = bench.network_of(32, True)
        state = {name: tensor for name, tensor in ours.state_dict().items() if "transform" not in name}
        published.load_state_dict(state)
        with torch.no_grad():
            same = torch.allclose(published(image), ours(image), atol=1e-2)
        # Transforms that are not zero: recalibration is really on where it is said to be.
        assert same == (not any("transform" in name for name in ours.state_dict()))


def test_a_run_in_turns(tmp_path, monkeypatch, capsys):
    """Copies of the whole memory ceiling against a product: real processes, real times."""
    cases = [Case("group", "first", "prepare_copy", baseline=True), Case("group", "second", "prepare_product")]
    monkeypatch.setattr(bench, "cases", lambda which, args: cases)
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
    with pytest.raises(UserError, match=r"group, broken: .*no_such_option") as raised:
        bench.Worker(Case("group", "broken", "prepare_copy", {"no_such_option": 1}), "cpu")
    assert "\n" not in str(raised.value)


def test_wrong_flags():
    assert_one_line(program("bench.py", "fly"), "fly", "infer")
    if not torch.cuda.is_available():
        assert_one_line(program("bench.py", "infer", "--device", "cuda"), "no GPU", "--cpu")
