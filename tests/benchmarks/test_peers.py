"""The benchmark's peers compute the right thing, the stored results meet the goals, and the documents show them."""

from __future__ import annotations

import json
import math
import re
import statistics

import pytest
import torch
from gpu_suite_samples import CEILINGS, MACHINE, STAMP
from PIL import Image

import conformer_fast as cf
from benchmarks import render, render_int8
from benchmarks.gpu.results import Results
from benchmarks.peers import IN_8_BITS, PEERS, rival_of
from conformer_fast.engines.openvino.device import native_precisions
from conformer_fast.model.distance import relative_error

QUICK = [name for name in PEERS if not name.startswith(("torch.compile", "ONNX"))]  # those take a minute to set up


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_peer_computes_the_model(name):
    if PEERS[name].precision not in (*native_precisions(), "int8"):
        pytest.skip(f"this CPU does not compute in {PEERS[name].precision}")
    model = cf.create_model("digits", weights="packaged")
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.inference_mode():
        expected = model(images).logits
        result = PEERS[name].build(model, images)(images)
    bound = {"fp32": 1e-5, "bf16": 2e-2, "int8": 0.1}[PEERS[name].precision]
    assert relative_error(result.float(), expected) < bound
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_rivals_compute_in_the_same_precision():
    timed = [name for name in PEERS if name not in IN_8_BITS]
    assert all(PEERS[rival_of(name)].precision == PEERS[name].precision for name in timed)


@pytest.fixture(scope="module", params=render.cpu_files("speed.json"), ids=lambda path: path.parent.name)
def points(request):
    """Of a CPU."""
    return render.load_points(request.param)


def test_every_point_is_stored(points):
    assert set(points) == {(variant, batch) for variant in cf.VARIANTS for batch in (1, 8)}
    here = {name for name, peer in PEERS.items() if peer.precision in render.precisions(points)}
    assert all(set(rows) == here for rows in points.values())


def test_never_slower_than_openvino_beyond_the_noise(points):
    for precision in render.precisions(points):
        assert min(render.ratios(points, precision).values()) >= 1 - render.noise(points)


def test_speed_goals(points):
    for precision in render.precisions(points):
        assert statistics.geometric_mean(render.ratios(points, precision).values()) >= 1.05
    for rows in points.values():
        fastest = min(rows[f"conformer_fast {precision}"]["seconds"] for precision in render.precisions(points))
        assert rows["eager fp32"]["seconds"] >= {1: 1.0, 2: 2.0}[len(render.precisions(points))] * fastest


@pytest.fixture(scope="module", params=render.cpu_files("int8.json"), ids=lambda path: path.parent.name)
def int8(request):
    """Of a CPU."""
    return json.loads(request.param.read_text())


def test_int8_goals(int8):
    gains = render_int8.speedups(int8)
    assert set(gains) == {(variant, batch) for variant in cf.VARIANTS for batch in (1, 8)}
    native = any(row["implementation"] == render_int8.NATIVE for row in int8["speed"])
    for (_, batch), (over_ours, over_others) in gains.items():
        assert over_ours >= {1: 1.3, 8: 1.6}[batch]
        assert over_others >= (1.3 if native else 1.0)


@pytest.mark.parametrize("path", render.cpu_files("int8_accuracy.json"), ids=lambda path: path.parent.name)
def test_int8_is_as_right_as_nncf(path):
    """Up to chance in top-1: of pictures that one of two equally good models alone has right, each has half."""
    rows = {row["implementation"]: row for row in json.loads(path.read_text())["rows"]}
    ours, nncf, exact = rows[render_int8.ours_of(rows)], rows["OpenVINO int8 (NNCF)"], rows["reference"]
    assert ours["correct"] >= exact["correct"] - 0.001 * exact["count"]
    assert nncf["ours_wrong"] - nncf["ours_alone"] <= 1.64 * math.sqrt(nncf["ours_wrong"] + nncf["ours_alone"])  # 5 %
    assert nncf["correct"] - ours["correct"] == nncf["ours_wrong"] - nncf["ours_alone"]
    assert ours["relative_error"] <= nncf["relative_error"]


def test_held_out_goals():
    for row in render.held_out_rows():
        allowed = {"int8": 0.5, "fp8": 0.5}.get(row["precision"], 0.05)
        if "missing" not in row:
            assert 100 * (row["reference_correct"] - row["correct"]) / row["count"] <= allowed + 1e-9, row


@pytest.mark.parametrize("path", render.DOCUMENTS, ids=lambda path: path.name)
def test_documents_show_the_stored_results(path):
    document = path.read_text()
    assert document == render.render(document)


def test_every_stored_result_is_shown():
    documents = "".join(path.read_text() for path in render.DOCUMENTS)
    assert all(documents.count(f"<!-- {name} -->\n") == 1 for name in render.BLOCKS)
    assert all(f"<!-- {name} -->\n|" in documents for name in render.BLOCKS.keys() - {"gpus", "cluster"})
    of_cpus = len(render.cpu_files("int8.json")) + len(render.cpu_files("speed.json"))
    assert documents.count("| tiny-p16, B") == 2 * of_cpus + 10  # in short, floors, estimates


def test_readmes_example_runs(tmp_path, monkeypatch, capsys):
    example = re.search(r"```python\n(.*?)```", (render.ROOT / "README.md").read_text(), re.DOTALL)
    assert example is not None
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (90, 70), "white").save("cat.jpg")
    names: dict[str, object] = {}
    exec(example[1].replace('"small-p16", weights="pretrained"', '"digits", weights="packaged"'), names)
    assert names["probabilities"].shape == (1, 10)
    assert names["report"].within
    assert "within the bound" in capsys.readouterr().out


def test_what_gpus_have_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    assert render.gpus() == "No GPU has run this yet."
    store = Results(tmp_path / "test" / "gpu.json", MACHINE, STAMP)
    store.entry["ceilings"] = CEILINGS
    store.put("points", ("ours", "tiny-p16", 1), {"ms": 1.0, "share_of_floor": 0.5, "error": 1e-3})
    store.put("points", ("eager", "tiny-p16", 1), {"ms": 2.0, "ours_speedup": 2.1})
    store.put("points", ("torch.compile", "tiny-p16", 1), {"failed": "no luck"})
    store.stamp["source"] = "s2"
    store.put("points", ("ours", "tiny-p16", 1), {"ms": 0.9, "share_of_floor": 0.55, "error": 1e-3})
    assert "NVIDIA Test, driver 1, torch 2.11, triton 3.6; ceilings: 3.00 TB/s" in render.gpus()
    cells = ["2.000", "fails", "-", "0.900", "2.10*", "fails", "-", "55%", "1e-03"]
    assert render.gpus().splitlines()[-1] == f"| tiny-p16, B1 | {' | '.join(cells)} |"
