"""A model on many machines: replicas of it, which Ray Serve starts, watches and replaces.

A replica is the application of a server on one machine, made there: the same addresses, limits and token. Its batcher
makes batches of all that Ray sends it at a time, so Ray's own batching would only queue requests a second time.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any

import torch

from ..bundles.folder import read_bundle
from ..cluster import HERE, check_ray, reach
from ..deploy.load import load_classifier
from ..engines.registry import format_of, make
from ..errors import ArgumentError, ArgumentTypeError, BackendError, shown, whole
from .checks import address_of, check_place, check_runs, options_of

if TYPE_CHECKING:
    from ray.serve import Application

NAME = "conformer_fast"  # of the application, among a cluster's others
GRACE = 30  # seconds for what is in flight when a replica is ended
REQUEST = 60  # seconds that a request may take, with its upload
ENDED = 10  # seconds that Ray may need beside
CHECKED = 5  # seconds from one look whether a replica's engine answers to the next; after three bad ones it is replaced
TRIES = 3  # of a replica to start, before the application has failed
REACHED = 30  # seconds, within which the address answers once the replicas do


def serve_app(
    bundle: str | os.PathLike[str],
    *,
    key: bytes | None = None,
    replicas: int | tuple[int, int] = 1,
    cores: int | None = None,
    max_batch: int = 32,
    max_delay_ms: float = 5.0,
    queue: int = 256,
    workers: int = 1,
    size: int | None = None,
    max_bytes: int = 25_000_000,
    max_megapixels: float = 80.0,
    token: str | None = None,
) -> Application:
    """An application of Ray Serve, for `serve run module:app` or a Serve config: docs/serving.md.

    bundle:   the folder of what `FastConformer.save` wrote; every machine with a replica has it at this path, and this
              one too
    key:      what it must be signed with, as in `load`
    replicas: so many; or the fewest and the most, and Ray chooses by the requests in flight: `max_batch` a replica
    cores:    that a replica reserves; default: as many as PyTorch uses here. Where the model runs on a CUDA GPU it
              reserves one of these, and by default one core.
    others:   of each replica, as in `serve`

    Raises ArgumentError for a number that cannot be, BundleError for a folder that is no whole bundle, and BackendError
    where the packages of the extra `ray` or `serve` are missing.
    """
    fewest, most = _bounds(replicas)
    if cores is not None:
        whole("cores", cores)
    options = options_of(max_batch, max_delay_ms, queue, workers, size, max_bytes, max_megapixels, token)
    manifest = read_bundle(bundle, format_of, key).manifest
    serve = _ray().serve
    folder = os.path.abspath(bundle)
    on_gpu = make(manifest.backend).device_type == "cuda"
    cores = cores or (1 if on_gpu else torch.get_num_threads())

    def application() -> Any:  # in the replica
        from .app import create_app

        if not on_gpu:
            torch.set_num_threads(cores)
        fast = load_classifier(folder, key=key)
        app = create_app(fast, replace(options, decoders=os.cpu_count() or 1))
        check_runs(fast, size)  # here its error is told, later it would be in a log
        return app

    @serve.ingress(application)
    class Replica:
        app: Any  # Ray puts it there

        async def check_health(self) -> None:
            await self.app.state.service.check()

    scaling = {"min_replicas": fewest, "max_replicas": most, "target_ongoing_requests": max_batch}
    number = {"num_replicas": fewest} if fewest == most else {"autoscaling_config": scaling}
    return serve.deployment(
        name="Replica",
        ray_actor_options={"num_cpus": cores, "num_gpus": int(on_gpu)},
        max_ongoing_requests=queue,
        max_queued_requests=queue,
        graceful_shutdown_timeout_s=GRACE,
        health_check_period_s=CHECKED,
        max_constructor_retry_count=TRIES,
        logging_config={"enable_access_log": False},
        **number,
    )(Replica).bind()


def serve_on_ray(
    app: Application,
    address: str = HERE,
    host: str = "127.0.0.1",
    port: int = 8000,
    listening: Callable[[str], None] | None = None,
) -> None:
    """Answers over HTTP until SIGTERM or SIGINT, then finishes what is in flight within 30 s. Of the main thread.

    app:        of `serve_app`
    address:    of the cluster's head, "10.0.0.1:6379"; "local" starts Ray on this machine, and ends it
    host, port: of every machine with a replica
    listening:  called with the address once it answers

    Raises ArgumentError for an address that cannot be had, BackendError for a cluster that is not reached and replicas
    that do not start.
    """
    check_place(host, port, 1)
    ray = _ray()
    if address == HERE:
        from .server import bound

        bound(host, port).close()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        reach(address)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; Ray has put its own there
        try:
            _deploy(ray.serve, app, host, port)
            if listening:
                listening(address_of(host, port))
            threading.Event().wait()
        finally:
            _delete(ray.serve)
    except KeyboardInterrupt:
        pass
    finally:
        ray.shutdown()


def _ray() -> Any:
    check_ray()
    import ray
    import ray.serve

    return ray


def _bounds(replicas: int | tuple[int, int]) -> tuple[int, int]:
    if not isinstance(replicas, tuple):
        return (whole("replicas", replicas),) * 2
    if len(replicas) != 2:
        raise ArgumentTypeError(f"replicas must be a number or the fewest and the most, got {shown(repr(replicas))}")
    fewest, most = (whole("replicas", number) for number in replicas)
    if fewest > most:
        raise ArgumentError(f"replicas must be the fewest and the most, got {fewest} and {most}")
    return fewest, most


def _deploy(serve: Any, app: Application, host: str, port: int) -> None:
    """Returns once it answers. Raises BackendError."""
    try:
        serve.start(
            proxy_location="EveryNode",
            http_options={"host": host, "port": port, "request_timeout_s": REQUEST},
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )
    except RuntimeError as error:
        what = str(error).strip().splitlines()[-1]
        raise BackendError(f"Ray Serve cannot listen on {host} port {port} of the cluster: {shown(what)}") from error
    try:
        serve.run(app, name=NAME, route_prefix="/")
    except RuntimeError as error:
        raise BackendError(f"the replicas do not start: {_why(serve)}") from error
    until = time.monotonic() + REACHED
    while not _answers(host, port):
        if time.monotonic() > until:
            raise BackendError(
                f"the replicas run, but nothing answers on {host} port {port}: perhaps Ray Serve was started there "
                f"before, with another host or port, or no replica is on this machine"
            )
        time.sleep(0.1)


def _why(serve: Any) -> str:
    """The last line of a replica's traceback."""
    deployments = serve.status().applications[NAME].deployments.values()
    lines = [line for deployment in deployments for line in deployment.message.splitlines()]
    return shown(lines[-1] if lines else "Ray does not say why")


def _delete(serve: Any) -> None:
    """Once what is in flight has been answered; not later than that should have been, if Ray itself has ended."""
    deleting = threading.Thread(target=serve.delete, args=(NAME,), daemon=True)
    deleting.start()
    deleting.join(GRACE + ENDED)


def _answers(host: str, port: int) -> bool:
    connection = HTTPConnection({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port, timeout=5)
    with suppress(OSError, HTTPException), closing(connection):
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    return False
