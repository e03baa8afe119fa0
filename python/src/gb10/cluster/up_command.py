"""``gb10 cluster up``."""

from typing import Annotated

from typer import Option

from gb10.cluster import plan, request, shell
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
from gb10.cluster.up import Supervisor
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
    restart: Annotated[bool, Option("--restart", help="start all again after a node ended")] = False,
) -> int:
    """Check the hosts, start the workers and then the head, and end all when one ends or a signal comes."""
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

    def prepare() -> tuple[plan.Plan, dict[str, shell.Host]]:
        made, known, wrong = asked(wanted, ssh)
        refuse(wrong)
        return made, known

    return Supervisor(prepare, api_port=wanted.api_port, restart=restart).run()
