"""The notebooks in examples/ run from the first cell to the last, and print what is true; git has no outputs."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from benchmarks.render import held_out_rows

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def executed(name: str, folder: Path) -> tuple[str, list[str]]:
    """What its cells print, and the types of what they show."""
    notebook = nbformat.read(ROOT / "examples" / name, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    return text, [kind for output in outputs for kind in output.get("data", ())]


@pytest.fixture(autouse=True)
def _finds_the_tree(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CONFORMER_FAST_OFFLINE", "1")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_no_outputs_are_kept(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert cell.metadata == {}
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.slow
def test_quickstart(tmp_path):
    printed, shown = executed("quickstart.ipynb", tmp_path)
    assert re.search(r"^7: (9\d|100)\.\d\d%$", printed, re.MULTILINE)
    assert "within the bound" in printed
    assert "NOT" not in printed
    assert "class 7" in printed
    assert shown.count("image/png") == 2
    assert "differs by 0.0e+00" in printed


@pytest.mark.slow
def test_quantize(tmp_path):
    """Right at least as often as the stored results of the same model, in fp32 and, after its bundle too, in int8."""
    printed, _ = executed("quantize.ipynb", tmp_path)
    stored = {
        row["precision"]: (row["correct"], row["count"])
        for row in held_out_rows()
        if (row["model"], row["implementation"]) == ("digits", "openvino")
    }
    counts = re.findall(r"(fp32|int8): (\d+) of (\d+)", printed)
    assert [precision for precision, *_ in counts] == ["fp32", "int8", "int8"]
    for precision, right, count in counts:
        assert int(count) == stored[precision][1]
        assert int(right) >= stored[precision][0]
    assert printed.count("within its bound: True") == 2
