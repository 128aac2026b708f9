"""``metrics``: the numbers of ``show`` as OpenMetrics, once, or over HTTP on a socket that systemd hands over."""

from __future__ import annotations

import os
import sys

from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from qre.cli.commands import Options
from qre.cli.metrics.device_metrics import DeviceMetrics
from qre.cli.show.show import device, devices
from qre.config.model import GlobalConfig
from qre.config.settings import load_global
from qre.errors import UserError


def metrics(arguments: list[str], options: Options) -> int:
    """``metrics [DEVICE]``, ``metrics --serve``."""
    if "--serve" in options.flags:
        from qre.cli.metrics.metrics_server import serve

        if arguments:
            raise UserError("metrics --serve", "it serves all devices", "leave DEVICE out")
        serve(look)
        return 0
    config = load_global(os.environ)
    text: bytes = generate_latest(look(config, arguments[0] if arguments else None))  # type: ignore[no-untyped-call]
    sys.stdout.write(text.decode())
    return 0


def look(config: GlobalConfig, name: str | None = None) -> CollectorRegistry:
    """What is there now: of all devices, or of the one of this name."""
    registry = CollectorRegistry()
    described = [device(config, name)] if name is not None else devices(config)
    registry.register(DeviceMetrics(described, names=config.metrics_client_names))
    return registry
