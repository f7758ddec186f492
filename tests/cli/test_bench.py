"""conformer-fast bench."""

from __future__ import annotations

import pytest

import conformer_fast as cf
from conformer_fast.engines import busy

ARGUMENTS = ("bench", "--models", "digits", "--batch", "1", "2", "--rounds", "2", "--backend")
ROW = cf.Benchmark("digits", 1, 64, "openvino", "int8", "cpu", 2, (2.0,) * 10, (1.0,) * 10)


@pytest.fixture(autouse=True)
def _idle(monkeypatch):
    """Whatever else runs here."""
    monkeypatch.setattr(busy, "disturbed", lambda used, cores, threads: False)
    monkeypatch.setattr(busy, "allowed", lambda: 1024.0)


def test_a_row_for_each_batch(run, run_json):
    status, result, err = run_json(*ARGUMENTS, "reference")
    assert (status, err) == (0, "")
    assert [(row["model"], row["batch"], row["size"]) for row in result["rows"]] == [
        ("digits", 1, 64),
        ("digits", 2, 64),
    ]
    for row in result["rows"]:
        assert (row["backend"], row["precision"], row["device"]) == ("reference", "fp32", "cpu")
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["compiled_ms"] * 1e3)
        assert len(row["reference_rounds_ms"]) == len(row["compiled_rounds_ms"]) == 2
        assert row["products_ms"] > 0
        assert row["share_of_ceiling"] > 0
    status, out, _ = run(*ARGUMENTS, "reference", "--size", "32")
    head, *rows, machine, eager, drift, ceiling, first, second = out.splitlines()
    assert status == 0
    assert head.split()[:2] == ["model", "batch"]
    assert [row.split()[:2] for row in rows] == [["digits", "1"], ["digits", "2"]]
    assert machine.endswith(" threads, images of 32x32 in digits, on cpu")
    assert [line.partition(":")[0] for line in (eager, drift, ceiling)] == ["eager", "drift", "ceiling"]
    assert (first, second) == tuple(
        f"digits, batch {batch}: fewer than 6 rounds do not tell how sure a figure is" for batch in (1, 2)
    )
    assert max(map(len, out.splitlines())) <= 100


@pytest.fixture
def seen(monkeypatch):
    """What benchmark() is given: models and options."""
    calls = []

    def benchmark(models, batches, **options):
        calls.append((models, batches, options))
        return [ROW]

    monkeypatch.setattr(cf, "benchmark", benchmark)
    return calls


def test_a_quantization_is_used(run_json, tmp_path, seen):
    given = cf.Quantization("int8", {"conv_1.conv1": 2.0})
    arguments = ("--precision", "int8", "--quantization", given.save(tmp_path / "q.json"))
    assert run_json("bench", "--models", "digits", *arguments)[0] == 0
    assert run_json("bench", "--models", "digits", "--precision", "int8")[0] == 0
    assert [(models, batches, options["precision"], options["quantization"]) for models, batches, options in seen] == [
        (["digits"], [1, 8], "int8", given),
        (["digits"], [1, 8], "int8", None),
    ]


def test_a_checkpoint_is_timed_at_its_own_size(run_json, tmp_path, seen, small_model):
    small_model.recipe = cf.Recipe(size=48, num_heads=2)
    file = tmp_path / "own.safetensors"
    cf.save_weights(small_model.state_dict(), file, recipe=small_model.recipe)
    given = cf.Quantization("int8", {"conv_1.conv1": 2.0}).save(tmp_path / "q.json")
    arguments = ("--weights", file, "--precision", "int8", "--quantization", given)
    assert run_json("bench", *arguments)[0] == 0
    ((model,), _, options) = seen[0]
    assert (model.config, model.recipe.size, options["size"]) == (small_model.config, 48, None)


@pytest.mark.parametrize(("keyword", "name"), [("packaged", "digits"), ("random", "small-p16")])
def test_weights_that_are_no_file_are_named_as_elsewhere(run, seen, keyword, name):
    assert run("bench", "--weights", keyword)[0] == 0
    assert seen[0][0][0].config == cf.create_model(name).config


def test_it_takes_as_many_rounds_as_benchmark_does(run_json, seen):
    import inspect

    from conformer_fast.deploy.benchmark import benchmark

    assert run_json("bench")[0] == 0
    assert seen[0][2]["rounds"] == inspect.signature(benchmark).parameters["rounds"].default
