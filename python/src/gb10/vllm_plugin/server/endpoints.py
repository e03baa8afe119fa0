"""Our plug-in for vLLM's HTTP server: the first canary, ``/health``, ``/metrics``, ``/v1/gb10/routing``.

vLLM calls `Endpoints.attach_router` when its routes are made, and `Endpoints.init_state` when the engine is
up, before the server listens.
"""

import asyncio
import logging
from argparse import Namespace
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import State
from vllm.platforms import current_platform
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.prometheus import get_prometheus_registry

from gb10.vllm_plugin import log
from gb10.vllm_plugin.cuda.settings import CudaMode, Engine
from gb10.vllm_plugin.refusal import refuse
from gb10.vllm_plugin.server import settings
from gb10.vllm_plugin.server.canary import Canary, Unasked
from gb10.vllm_plugin.server.health import Health, watch
from gb10.vllm_plugin.server.metrics import CONTENT_TYPE, Canaries, Exposition, Ours

logger = logging.getLogger("vllm.gb10")

ROUTING = "/v1/gb10/routing"
METRICS = ("/metrics", "/metrics/")

FIRST_LIMIT = 900.0
"""Seconds for the first canary: kernels may still be compiled for it."""

Report = Callable[[], Mapping[str, Any]]

_report: Report | None = None
_figures: Mapping[str, Any] = {}


def reporting(report: Report, figures: Mapping[str, Any] | None = None) -> None:
    """Set what ``/v1/gb10/routing`` answers in this process. ``report`` may block; it gives JSON.

    ``figures``: what a step reads (`gb10.serve.figures`), for ``/metrics``.
    """
    global _report, _figures
    _report, _figures = report, figures or {}


class Endpoints:
    """A plug-in as vllm.plugins.endpoint_plugins.interface describes it."""

    name = "gb10"
    required_tasks = None

    def __init__(self) -> None:
        self.health = Health()
        self.canaries = Canaries()
        self._ours = Ours(self.health, self.canaries, _routing, _figures)

    def attach_router(self, app: FastAPI) -> None:
        """Stand for vLLM's ``/health``, which says no reason, and its ``/metrics``; add what really runs."""
        app.add_api_route("/health", self._health, methods=["GET"], response_class=Response)
        exposition = Exposition(get_prometheus_registry(), self._ours)

        # Not a coroutine: what waits for files must not hold up the others' answers.
        def metrics() -> Response:
            """Prometheus' metrics: vLLM's, and those that begin with gb10_."""
            return Response(exposition.text(), media_type=CONTENT_TYPE)

        for path in METRICS:
            app.add_api_route(path, metrics, methods=["GET"], response_class=Response)
        app.add_api_route(ROUTING, _routing, methods=["GET"])

    async def _health(self, request: Request) -> Response:
        """Health check: 200, or 503 with the reason."""
        client = request.app.state.engine_client
        try:
            if client is not None:
                await client.check_health()
        except EngineDeadError:
            reason = self.health.reason or "vLLM's engine is dead"
            return JSONResponse({"error": reason}, HTTPStatus.SERVICE_UNAVAILABLE)
        return Response(status_code=HTTPStatus.OK)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Ask the first canary, and go on with it as long as the server runs.

        Raises Refused, after the line that `gb10 serve` looks for, where the model answers no sense
        or nothing in time.
        """
        if engine_client is None:
            return
        self._ours.client = engine_client
        self.health.guard(engine_client)
        wanted, interval = settings.Canary.from_env(), settings.interval()
        if wanted is settings.Canary.OFF:
            return
        if engine_client.vllm_config.load_config.load_format == "dummy":
            wanted = settings.Canary.REPORT  # made up: there is nothing to judge
        canary = await _first(engine_client, wanted, self.canaries)
        if interval > 0:
            found = self.health.fail if wanted is settings.Canary.REFUSE else _only_said
            state.gb10_watch = asyncio.create_task(watch(engine_client, canary, interval, found))


async def _first(client: Any, wanted: settings.Canary, seen: Canaries) -> Canary | None:
    """Ask the first canary. The one for later, None where further ones say nothing new.

    Raises Refused where the model answers no sense, or nothing in time, and that is not only to be reported.
    """
    model = client.vllm_config.model_config
    if "generate" not in await client.get_supported_tasks() or model.is_encoder_decoder:
        logger.info("%sleft out: this model does not continue texts", log.ours(log.CANARY))
        return None
    canary = Canary(client, seen.note)
    logger.info(log.ours(log.ASKING))
    try:
        async with asyncio.timeout(FIRST_LIMIT):
            sung = await canary.sing()
    except Unasked as error:
        # It may be taken later, when there is room.
        logger.warning("%sleft out: %s", log.ours(log.CANARY), error)
        return canary
    except TimeoutError:
        cause = "vLLM's engine hangs, or this machine is too slow for the model"
        fault = words = f"no answer within {FIRST_LIMIT:.0f} s to the first requests of a few tokens"
    else:
        if sung.fault is None:
            logger.info("%s%s", log.ours(log.CANARY), sung.words)
            return canary
        cause = "its weights or scales may be broken: check the checkpoint, or get it again"
        fault, words = sung.fault, sung.words
    if wanted is settings.Canary.REFUSE:
        refuse(f"{fault}; {_advice(cause)}, and {settings.CANARY_NAME}=report serves all the same")
    logger.warning("%s%s", log.ours(log.CANARY), words)
    return None


def _only_said(fault: str) -> None:
    logger.warning("%s%s", log.ours(log.CANARY), fault)


def _advice(cause: str) -> str:
    """What a user can do about a model that answers no sense, or nothing. ``cause``: where no kernel is."""
    ours = current_platform.is_cuda() and CudaMode.of_process().engine is Engine.GB10
    if not ours:
        return cause
    return (
        "to find out which kernels do that, serve with --engine stock, then with GB10_ENGINE_PARTS set to "
        f"one part after the other (docs/engine.md); if stock does the same, {cause}"
    )


def _routing() -> Mapping[str, Any]:
    """What was planned, what ran, and how they differ."""
    return {} if _report is None else _report()
