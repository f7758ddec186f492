"""A compiled or loaded model as an nn.Module: each verb works, also on a module that it is a part of, or says what to
do instead."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from bundle_samples import filled, images, need_openvino, same
from on_stand_in import on_stand_in
from torch import nn

import conformer_fast as cf
from conformer_fast import Conformer, ConformerFastError


class Whole(nn.Module):
    """Something with a compiled part, and weights of its own."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.head = part, nn.Linear(7, 3)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.head(self.part(2 * batch).logits) + 1


@pytest.fixture(scope="module", params=["reference", "openvino", "loaded"])
def part(request, small_config, tmp_path_factory):
    """Compiled or loaded, on the CPU."""
    model = filled(Conformer(small_config))
    if request.param == "reference":
        return cf.compile(model, backend="reference")
    need_openvino()
    fast = cf.compile(model, backend="openvino", precision="fp32")
    return fast if request.param == "openvino" else cf.load(fast.save(tmp_path_factory.mktemp("bundles") / "bundle"))


@pytest.fixture(params=["alone", "as a part"])
def model(request, part):
    return part if request.param == "alone" else Whole(part).eval().requires_grad_(False)


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


SAME = {
    "eval": lambda model: model.eval(),
    "train(False)": lambda model: model.train(False),
    "float": lambda model: model.float(),
    "to float32": lambda model: model.to(torch.float32),
    "to the CPU": lambda model: model.to("cpu"),
    "to both": lambda model: model.to(torch.device("cpu"), torch.float32),
    "to a tensor's": lambda model: model.to(torch.zeros(1)),
    "channels_last": lambda model: model.to(memory_format=torch.channels_last),
    "cpu": lambda model: model.cpu(),
    "requires_grad_": lambda model: model.requires_grad_(False),
    "share_memory": lambda model: model.share_memory(),
}
COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_and_loaded,
}


@pytest.mark.parametrize("verb", SAME.values(), ids=SAME)
def test_what_changes_nothing(verb, model):
    batch = images(2, 3, 32, 32)
    before = model(batch)
    assert verb(model) is model
    assert not model.training
    assert same(model(batch), before)


@pytest.mark.parametrize("verb", COPIES.values(), ids=COPIES)
def test_copies(verb, model):
    batch = images(2, 3, 32, 32)
    twin = verb(model)
    assert twin is not model
    assert type(twin) is type(model)
    assert same(twin(batch), model(batch))


PRECISION = r"stays in fp32, torch\.{} would change nothing; compile the model it was made from with another precision"
PLACE = r"stays on cpu; "
TRACE = r"cannot be traced; save it with \.save\(folder\), or save the model it was made from"
BATCH = images(2, 3, 32, 32)
REFUSED = {
    "half": (lambda model: model.half(), PRECISION.format("float16")),
    "to float16": (lambda model: model.to(torch.float16), PRECISION.format("float16")),
    "to both": (lambda model: model.to("cpu", torch.float64), PRECISION.format("float64")),
    "bfloat16": (lambda model: model.bfloat16(), PRECISION.format("bfloat16")),
    "double": (lambda model: model.double(), PRECISION.format("float64")),
    "type": (lambda model: model.type(torch.float16), PRECISION.format("float16")),
    "to meta": (lambda model: model.to("meta"), PLACE + "move the model it was made from to meta and compile it"),
    "train": (lambda model: model.train(), "does not train; train the model it was made from, then compile"),
    "state_dict": (lambda model: model.state_dict(), r"no weights to give; take the model it .* by \.save\(folder\)"),
    "torch.jit.trace": (lambda model: torch.jit.trace(model, (BATCH,)), TRACE),
    "torch.export": (lambda model: torch.export.export(model, (BATCH,)), TRACE),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("verb", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(verb, message, model):
    before = model.training
    with pytest.raises(ConformerFastError, match=message):
        verb(copy.deepcopy(model) if isinstance(model, Whole) else model)
    assert model.training is before
    assert model(BATCH) is not None


def test_a_gpu_that_is_not_there(model):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for verb in (nn.Module.cuda, lambda model: model.to("cuda"), lambda model: model.to("cuda:1")):
        with pytest.raises(ConformerFastError, match=PLACE + "compile the model it was made from elsewhere"):
            verb(model)


def test_weights_of_the_part_alone(part):
    with pytest.raises(ConformerFastError, match="takes no weights; load them into the model, then compile that"):
        part.load_state_dict({})


def test_weights_of_the_whole(part):
    """Its own are loaded; it has none for its part."""
    whole, other = Whole(part), nn.ModuleDict({"head": nn.Linear(7, 3)})
    whole.load_state_dict(other.state_dict())
    assert torch.equal(whole.head.weight, other["head"].weight)
    for strict in (True, False):  # what is not strict leaves out what it finds no place for
        with pytest.raises(ConformerFastError, match="a compiled model takes no weights"):
            whole.load_state_dict({**other.state_dict(), "part.stem.weight": torch.zeros(1)}, strict=strict)
    assert [name for name, _ in whole.named_parameters()] == ["head.weight", "head.bias"]


def test_data_parallel(model):
    """Without GPUs it calls the module itself; for several it copies it, and no engine is one of weights."""
    assert same(nn.DataParallel(model, device_ids=[])(BATCH), model(BATCH))
    part = model.part if isinstance(model, Whole) else model
    with pytest.raises(ConformerFastError, match="a compiled model has none; compile one for each GPU"):
        nn.parallel.replicate(part, [0, 1])


def test_torch_compile(model):
    """What is around the engine is compiled, the engine is called as it is."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend)
    for batch in (BATCH, images(3, 3, 32, 32), BATCH):
        assert same(compiled(batch), model(batch))
    functions = {str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"}
    assert bool(functions) is isinstance(model, Whole)
    assert not any("conv" in name or "softmax" in name for name in functions)


def test_pytorchs_compiler_is_not_imported():
    """It takes as long as all the rest."""
    program = """
import sys, torch, conformer_fast as cf
fast = cf.compile(cf.create_model("digits"), backend="reference")
fast(torch.zeros(1, 3, 64, 64))
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


ON_A_GPU = """
import sys
sys.path.append("tests")
import lookalikes, torch
import conformer_fast as cf
config = cf.ConformerConfig(channel_ratio=1, embed_dim=48, num_heads=2, depth=3, mlp_ratio=2, num_classes=7)
fast = cf.compile(lookalikes.fill(cf.Conformer(config)).eval(), backend="triton", precision="fp16")
images = torch.randn(2, 3, 32, 32, device="cuda")
for model in (fast, torch.nn.Sequential(fast)):
    for move in (["cuda"], ["cuda:0"], [torch.device("cuda", 0), torch.float32]):
        assert model.to(*move) is model.cuda() is model.cuda(0) is model
    assert model(images).logits.is_cuda
    for move in (model.cpu, lambda: model.to("cpu")):
        try:
            move()
        except cf.ConformerFastError as error:
            print(error)
"""


def test_on_a_gpu():
    status, printed = on_stand_in("-c", ON_A_GPU)
    message = (
        "a compiled model stays on cuda:0; move the model it was made from to cpu and compile it, or give compile("
    )
    assert (status, printed) == (0, 4 * f"{message}device='cpu')\n")
