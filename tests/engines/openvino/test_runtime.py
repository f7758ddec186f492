"""What the import of OpenVINO does besides: nothing."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("openvino")

SCRIPT = """
import json, sys, threading

done = []
OUTWARD = ("os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.getaddrinfo")
sys.addaudithook(lambda event, arguments: done.append(event) if event in OUTWARD else None)
threads = threading.active_count()
from conformer_fast.engines.openvino.backend import OpenVINO

print(OpenVINO().precisions().native, file=sys.stderr)
found = [name for name in sys.modules if name.startswith("openvino_telemetry")]
print(json.dumps([done, found, threading.active_count() - threads]))
"""
ON_A_BUILD_SERVER = {"CI", "TF_BUILD", "JENKINS_URL"}  # there it is off by itself


def test_no_telemetry(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ON_A_BUILD_SERVER}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "fp32" in run.stderr, run.stderr
    assert json.loads(run.stdout) == [[], [], 0]
    assert list(tmp_path.iterdir()) == []
