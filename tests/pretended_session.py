"""A session of the GPU suite with pretended measurements and processes."""

from types import SimpleNamespace

from gpu_suite_samples import CEILINGS, PRODUCTS

from benchmarks.gpu import clock, points, session, steps
from benchmarks.gpu.processes import Ended
from benchmarks.gpu.roofline import Ceilings
from benchmarks.gpu.session import Session

ONE = {"problem": "linear fp16 M197 N384 K384", "count": 12, "choice": [64, 64, 64, 4, 3], "reason": "rule"}
ONE |= {"us": 9.0, "pytorch_us": 8.0, "gbs": 900.0, "tflops": 9.0, "floor_us": 3.0, "times_floor": 3.0}
ONE |= {"bound": "memory"}


class Pretended(Session):
    """A session whose tasks are noted and give figures like real ones. failing: implementations that fail; cutting:
    those that the session's time ends."""

    def __post_init__(self):
        super().__post_init__()
        self.say = lambda line: None
        self.asked, self.failing, self.cutting = [], set(), set()

    def work(self, task, seconds=session.POINT_SECONDS, **arguments):
        name = tuple(arguments[word] for word in ("implementation", "variant", "batch") if word in arguments)
        self.asked.append((task, *name))
        if name and name[0] in self.failing:
            return {"failed": "RuntimeError: no luck"}
        if name and name[0] in self.cutting:
            return {"failed": "stopped after 5 s", "cut": True}
        if task == "facts":
            return {"ceilings": CEILINGS, "products": PRODUCTS}
        if task == "kernels":
            operations = [{**ONE, "problem": f"linear fp16 M{row} N384 K384", "share": 0.1} for row in range(38)]
            return {"sum_ms": 0.9, "operations": operations}
        median = {"ours int8": 3e-3, "ours fp8": 4e-3}.get(name[0], 1e-3)
        times = clock.Times(median=median, low=9e-4, high=2e-3, calls=300, speedup=1.0)
        row = points.figures(times, "digits", name[2], steps.QUANTIZED.get(name[0], "fp16"), Ceilings(**CEILINGS))
        row |= {"how": "", "error": 1e-3, "peak_bytes": 1, "build_seconds": 2.0}
        return row | ({} if name[0] == "ours" else {"ours_ms": 0.5, "ours_speedup": 2.0})

    def together(self, task, arguments, most, seconds=0):
        self.asked += [(task, given["variant"], given["batch"]) for given in arguments]
        return []

    def measured(self):
        measured = [asked for asked in self.asked if asked[0] != "build"]
        self.asked = []
        return measured


class Shard:
    """A process of `check` that goes through `writes`, then ends with `failed`, if given. With no end it hangs."""

    def __init__(self, writes, failed=None, hangs=False):
        self.writes, self.failed, self.hangs = list(writes), failed, hangs
        self.process = SimpleNamespace(running=True)

    def so_far(self):
        value = self.writes[0]
        if len(self.writes) > 1:
            self.writes.pop(0)
        elif not self.hangs:
            self.process.running = False
        return value

    def wait(self, seconds):
        self.process.running = False
        value = self.writes[-1]
        failed = "stopped after 45 s" if self.hangs else self.failed
        return value | {"failed": failed} if failed else value


def ended(code, output="", seconds=5.0):
    return Ended(code, output, seconds)
