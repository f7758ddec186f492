"""What the examples for Docker and Kubernetes name is there. Neither is run here."""

import argparse
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from conformer_fast import compile, create_model
from conformer_fast.cli import serve
from conformer_fast.serving.app import create_app
from conformer_fast.serving.server import GRACE

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "examples" / "docker" / "Dockerfile").read_text()
DEPLOYMENT, SERVICE = yaml.safe_load_all((ROOT / "examples" / "kubernetes" / "server.yaml").read_text())
SERVER = DEPLOYMENT["spec"]["template"]["spec"]["containers"][0]


def options(command):
    """What the command line makes of a command of a container."""
    program, name, *arguments = command
    assert (program, name) == ("conformer-fast", "serve")
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add_arguments(parser)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "is_file", lambda path: True)  # in the container
        return parser.parse_args(arguments)


COMMANDS = {
    "docker": json.loads(re.search(r"^CMD (\[.*\])$", DOCKERFILE, re.M)[1]),
    "kubernetes": SERVER["args"],
}


@pytest.mark.parametrize("where", COMMANDS)
def test_the_command_listens_where_the_container_does(where):
    given = options(COMMANDS[where])
    assert given.host == "0.0.0.0"
    ports = {
        "docker": int(re.search(r"^EXPOSE (\d+)$", DOCKERFILE, re.M)[1]),
        "kubernetes": SERVER["ports"][0]["containerPort"],
    }
    assert given.port == ports[where]
    assert SERVICE["spec"]["ports"][0]["targetPort"] == ports["kubernetes"]


def test_what_is_probed_is_there():
    app = create_app(compile(create_model("digits", weights="packaged"), backend="reference"))
    paths = [SERVER[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    paths += re.findall(r"127\.0\.0\.1:8000(/[\w/]+)", DOCKERFILE)
    assert len(paths) == 4
    assert {*paths} <= {route.path for route in app.routes}


def test_what_is_installed_is_an_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"whl\)\[([\w,-]+)\]", DOCKERFILE)
    assert len(named) == 2
    assert {extra for names in named for extra in names.split(",")} <= extras.keys()


def test_the_server_has_its_time_to_end():
    assert DEPLOYMENT["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > GRACE


def test_what_is_mounted_is_a_volume():
    volumes = {volume["name"] for volume in DEPLOYMENT["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in SERVER["volumeMounts"]} == volumes
    mounted = [mount["mountPath"] for mount in SERVER["volumeMounts"]]
    given = options(SERVER["args"])
    assert all(any(path.startswith(f"{folder}/") for folder in mounted) for path in (given.bundle, given.token_file))
