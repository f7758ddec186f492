"""The other files that commands read or keep: calibration results, tuned tables, what was evaluated, cached engines,
networks in 8 bits, counts of a calibration, labels."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from attempts import Attempts, every
from damage import NAMES, broken, broken_json, flipped, poisoned
from hypothesis import strategies as st

from conformer_fast.calibration.counts import Counts
from conformer_fast.calibration.histograms import BINS, Histogram
from conformer_fast.datasets.labels import Picture, labels_from_file
from conformer_fast.engines import cache
from conformer_fast.engines.native.graph import GRAPH, IMAGES, SIGNATURES, Graph, Stored, Value
from conformer_fast.errors import ArgumentError, BundleError, ConformerFastError, DatasetError
from conformer_fast.evaluation.resume import DAMAGED, MAGIC, Record
from conformer_fast.inference.lower import lower
from conformer_fast.inference.quantization import Quantization
from conformer_fast.model.class_names import imagenet_synsets
from conformer_fast.model.precision import FORMATS
from conformer_fast.storage.hashed import DamagedError, HashedFile, UnsignedError

QUANTIZATION = Quantization("int8", {"stem": 2.5, "1.qkv": 0.5}, {"1.norm1": (1.0, 0.25)}, {"images": 8, "of": ["x"]})
KEY = b"a secret of 24 bytes ..."


def texts(value: object, indent: int | None = None) -> st.SearchStrategy[bytes]:
    """The bytes of a JSON value, damaged as JSON or as bytes."""
    sound = json.dumps(value, indent=indent).encode()
    damaged = broken_json(value, indent=indent).map(lambda text: text.encode(errors="surrogatepass"))
    return st.one_of(damaged, damaged, broken(sound))


def test_calibration_results(attempt: Attempts, tried):
    path = QUANTIZATION.save(attempt.folder / "int8.json")

    def equal(found: Quantization) -> bool:
        assert found.precision in FORMATS
        for value in (*found.ranges.values(), *(value for values in found.smoothing.values() for value in values)):
            assert type(value) is float
            assert 0 <= value < math.inf
        assert len(found.digest) == 64
        return found == QUANTIZATION

    def one(damaged: bytes) -> None:
        attempt.write("int8.json", damaged)
        attempt.read(lambda: Quantization.load(path), (ArgumentError, OSError), path, equal)

    every(texts(json.loads(path.read_bytes()), indent=1), 150, one)
    attempt.check()
    tried("calibration results: damaged", attempt.counts)


def test_networks_in_8_bits(attempt: Attempts, tried, small_model):
    """Whatever is read is a graph whose every node has its arguments, of what earlier ones return."""
    ranges = {"stem": 3.0, "conv_1.conv2": 3.0, "trans_1.fc1": 3.0}
    sound = Graph.of(lower(small_model, ["1.map", "1.tokens"], quantization=Quantization("int8", ranges))).to_bytes()
    tensors, start = safetensors.torch.load(sound), 8 + int.from_bytes(sound[:8], "little")
    graph = json.loads(json.loads(sound[8:start])["__metadata__"][GRAPH])

    def equal(found: Graph) -> bool:
        returned = [SIGNATURES[operation].results for operation, _ in found.nodes]
        for index, (operation, arguments) in enumerate(found.nodes):
            assert arguments.keys() == SIGNATURES[operation].arguments.keys()
            for value in arguments.values():
                if isinstance(value, Value) and value != IMAGES:
                    assert 0 <= value.output < returned[:index][value.node]
                assert not isinstance(value, Stored) or value.name in found.tensors
        return found.to_bytes() == sound

    def one(damaged: bytes) -> None:
        attempt.read(lambda: Graph.from_bytes(damaged), BundleError, "", equal)

    one(sound)
    graphs = broken_json(graph).map(lambda text: safetensors.torch.save(tensors, {GRAPH: text}))
    headers = broken(sound[:start]).map(lambda header: header + sound[start:])
    every(st.one_of(graphs, graphs, headers, broken(sound)), 150, one)
    attempt.check()
    tried("networks in 8 bits: damaged", attempt.counts)


def test_counts_of_a_calibration(attempt: Attempts, tried):
    histograms = {}
    for name in ("a", "b"):
        histograms[name] = Histogram()
        histograms[name].largest = 2.0
        histograms[name].weights = np.arange(BINS, dtype=np.float64)
    sound = Counts(histograms, 2, 16).to_bytes()

    def equal(found: Counts) -> bool:
        for histogram in found.histograms.values():
            assert math.isfinite(histogram.largest)
            assert np.isfinite(histogram.weights).all()
            assert (histogram.weights >= 0).all()
        assert found.batches <= 3
        return found.to_bytes() == sound

    def one(damaged: bytes) -> None:
        attempt.read(lambda: Counts.from_bytes(damaged, ("a", "b", "c"), 3), ArgumentError, "", equal)

    one(sound)
    values = 8 + int.from_bytes(sound[:8], "little")
    every(st.one_of(broken(sound), poisoned(sound, values, "<d")), 80, one)
    attempt.check()
    tried("counts of a calibration: bytes changed, hash right", attempt.counts)


@pytest.fixture
def own_cache(attempt: Attempts, monkeypatch) -> Path:
    monkeypatch.setenv("CONFORMER_FAST_CACHE", str(attempt.folder / "cache"))
    return attempt.folder / "cache"


def test_tuned_tables(attempt: Attempts, tried, own_cache):
    """With a right hash, so that what it says is looked at; a wrong one is told in the same way."""
    tuning = pytest.importorskip("conformer_fast.engines.triton.tuning")
    from tuning_samples import FAST, GPU, RULE

    tuned = tuning.Tuned("linear fp16 M6", RULE, FAST, {RULE: 2e-6, FAST: 1e-6}, {})
    file = HashedFile(tuning.save(GPU, [tuned]))
    sound = file.path.read_bytes()
    expected = {"linear fp16 M6": FAST}

    def equal(found: dict[str, object]) -> bool:
        for problem, choice in found.items():
            assert type(problem) is str
            assert choice == "pytorch" or all(type(side) is int for side in choice)
        return found == expected

    def one(damaged: tuple[bytes, bool]) -> None:
        content, right = damaged
        file.write(sound)
        if right:
            file.write(content)
        else:
            file.path.write_bytes(content)
        attempt.read(
            lambda: tuning.load(GPU), (), "", equal, ("the tuned table is not used",), {}, locks=file.path.parent
        )

    one((sound, True))
    every(st.tuples(texts(json.loads(sound), indent=1), st.sampled_from((True, True, True, False))), 100, one)
    attempt.check()
    tried("tuned tables: damaged, mostly with a right hash", attempt.counts)


def test_hashes(attempt: Attempts, tried):
    """The file beside one: what is read is what was written, or it is damaged; with a key, nothing else at all."""
    content, fields = b"what was written", {"a": 1, "b": [None, "x"]}
    files = {
        signed: HashedFile(attempt.folder / f"{signed}", KEY if signed else None, folder_mode=None)
        for signed in (False, True)
    }
    for file in files.values():
        file.write(content, fields)
    records = json.loads((attempt.folder / "True.hash").read_bytes())

    def one(damaged: bytes) -> None:
        for signed, file in files.items():
            path = attempt.write(f"{file.path.name}.hash", damaged)

            def equal(found: bytes | None, signed: bool = signed) -> bool:
                assert found == content, "something else was read"
                signs = any(records[0].items() <= record.items() for record in json.loads(damaged))
                assert signs or not signed, "what nobody signed was read"
                return True

            attempt.read(
                lambda file=file: file.read(fields), (DamagedError, UnsignedError), file.path, equal, locks=path.parent
            )

    one(json.dumps(records).encode())
    every(texts(records, indent=1), 80, one)
    attempt.check()
    tried("hashes beside files: damaged", attempt.counts)


def test_cached_engines(attempt: Attempts, tried, own_cache):
    """The engine that was kept, or one that is built anew, with a warning; and the list of them is never in the way."""
    fields = {"backend": "openvino", "precision": "fp32", "height": 32, "width": 32}
    cache.cached(fields, lambda: b"engine")
    path = cache.engines_folder() / f"{cache.key_of(fields)}.engine"
    beside = path.with_name(f"{path.name}.hash")
    records = json.loads(beside.read_bytes())

    def equal(engine: bytes) -> bool:
        assert engine == b"engine"
        return True

    def one(damaged: tuple[str, bytes]) -> None:
        kind, content = damaged
        path.write_bytes(b"engine")
        beside.write_text(json.dumps(records))
        (path if kind == "engine" else beside).write_bytes(content)
        entries = cache.cached_engines()
        assert len(entries) <= 1
        assert all(json.dumps(entry.fields) for entry in entries)
        attempt.read(
            lambda: cache.cached(fields, lambda: b"again"), (), "", equal, ("is damaged",), b"again", writes=own_cache
        )

    one(("engine", b"engine"))
    engines = broken(b"engine").map(lambda content: ("engine", content))
    every(st.one_of(engines, texts(records).map(lambda text: ("hash", text))), 80, one)
    attempt.check()
    tried("cached engines and their hashes: damaged", attempt.counts)


def test_what_was_evaluated(attempt: Attempts, tried):
    """Any byte of the file changed is refused; what it says under a right hash is taken whole, or not at all."""

    def record() -> Record:
        return Record(4, 2, 3, 5, {"data": "0" * 64, "size": 64})

    sound = record()
    sound.add([0, 2], np.arange(60).reshape(2, 2, 3, 5))
    sound.add_damaged({3: "x.png: damaged"})
    path = attempt.folder / "resume"
    sound.save(path)
    content = path.read_bytes()
    head, _, arrays = content.partition(b"\n")[2].partition(b"\n")

    def loaded() -> Record:
        found = record()
        try:
            found.load(path)
        except DatasetError:
            assert found.known == 0, "a part was taken"
            assert not found.errors
            raise
        return found

    def one(damaged: tuple[bool, bytes]) -> None:
        right, inside = damaged
        hashed = MAGIC + hashlib.sha256(inside).hexdigest().encode() + b"\n" + inside
        attempt.write("resume", hashed if right else inside)

        def equal(found: Record) -> bool:
            assert right or inside == content, "a damaged file was taken"
            assert set(found.errors) == set(np.flatnonzero(found.states == DAMAGED).tolist())
            assert all(type(error) is str for error in found.errors.values())
            same = (found.top == sound.top).all() and (found.states == sound.states).all()
            return bool(same and found.errors == sound.errors)

        attempt.read(loaded, DatasetError, path, equal)

    one((False, content))
    headers = texts(json.loads(head)).map(lambda text: (True, text + b"\n" + arrays))
    states = flipped(arrays, range(len(arrays) - 4, len(arrays)))
    values = st.one_of(broken(arrays), states).map(lambda values: (True, head + b"\n" + values))
    every(st.one_of(broken(content).map(lambda content: (False, content)), headers, values), 120, one)
    attempt.check()
    tried("what was evaluated: damaged, with a right hash too", attempt.counts)


PICTURES = [
    Picture(f"{index % 2}/{name}", "x", 0, 1)
    for index, name in enumerate(("a.png", "b c.png", "d,e.jpg", "\u00e9.png"))
]
LABELS = {
    "numbers": "a.png 0\nb c.png 1\nd,e.jpg\t2\n\u00e9.png 0\n",
    "CSV": 'name,label\na.png,0\nb c.png,1\n"d,e.jpg",2\n\u00e9.png,0\n',
    "synsets": "\n".join(imagenet_synsets()[:4]) + "\n",
}


@pytest.mark.parametrize("kind", LABELS)
def test_label_files(kind, attempt: Attempts, tried):
    classes = 1000 if kind == "synsets" else 3
    content = LABELS[kind].encode()
    expected = labels_from_file(attempt.write("labels.txt", content), PICTURES, classes)

    def one(damaged: bytes) -> None:
        path = attempt.write("labels.txt", damaged)

        def equal(labels: list[int]) -> bool:
            assert len(labels) == len(PICTURES)
            assert all(type(label) is int and 0 <= label < classes for label in labels)
            return labels == expected

        attempt.read(lambda: labels_from_file(path, PICTURES, classes), DatasetError, path, equal)

    one(content)
    lines = LABELS[kind].splitlines()
    odd = st.sampled_from(
        [
            *NAMES,
            *lines,
            '"',
            '"a.png',
            "a.png,",
            ",1",
            "a.png -1",
            "a.png 9" + "9" * 5000,
            "\ufeff",
            "a.png \u0663",
            "a.png," + "x" * 200_000,
        ]
    )
    several = st.lists(odd, max_size=6).map(lambda lines: "\n".join(lines).encode(errors="surrogatepass"))
    every(st.one_of(broken(content), several), 80, one)
    attempt.check()
    tried(f"label files ({kind}): damaged", attempt.counts)


def test_every_error_is_ours():
    assert issubclass(DamagedError, ConformerFastError)
    assert issubclass(UnsignedError, ConformerFastError)
