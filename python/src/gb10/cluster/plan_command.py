"""``gb10 cluster plan``."""

import json
import sys
from typing import Annotated

from typer import Option

from gb10.cluster import plan, request
from gb10.cluster.options import (
    By,
    Client,
    Devices,
    Hosts,
    Mtu,
    OnInterface,
    Pipeline,
    Port,
    Speed,
    Started,
    Variables,
    asked,
    refuse,
)
from gb10.cluster.request import Executor
from gb10.serve.nodes import MASTER_PORT


def run(
    hosts: Hosts,
    pipeline: Pipeline = False,
    executor: By = Executor.MP,
    command: Started = None,
    env: Variables = None,
    interface: OnInterface = None,
    hca: Devices = None,
    mtu: Mtu = 9000,
    speed: Speed = 100,
    master_port: Port = MASTER_PORT,
    ssh: Client = "ssh",
    offline: Annotated[bool, Option("--offline", help="ask no host; wants addresses, --interface")] = False,
    as_json: Annotated[bool, Option("--json", help="print JSON")] = False,
) -> int:
    """Print what each host would run, workers first, after asking and checking the hosts."""
    wanted = request.build(
        hosts,
        pipeline=pipeline,
        executor=executor,
        command=command,
        variables=env or (),
        interface=interface,
        hca=hca,
        mtu=mtu,
        speed=round(speed * 1000),
        master_port=master_port,
    )
    if offline:
        made, wrong = plan.build_offline(wanted), list[str]()
    else:
        made, _, wrong = asked(wanted, ssh)
    print(json.dumps(plan.as_json(made, wrong), indent=2) if as_json else plan.render(made))
    sys.stdout.flush()
    refuse(wrong)
    return 0
