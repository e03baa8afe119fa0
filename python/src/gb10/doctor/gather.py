"""Look at the machine once."""

import os
from collections.abc import Mapping
from pathlib import Path

from gb10 import __version__
from gb10.doctor import folders, graphics, host, links, live
from gb10.doctor.facts import E2m1, Facts, Network, Read
from gb10.doctor.graphics import Answer, Silent
from gb10.errors import UserError

_ROOT = Path("/")


def gather(
    environ: Mapping[str, str] = os.environ,
    root: Path = _ROOT,
    *,
    quick: bool = False,
    port: int | None = None,
) -> Facts:
    """The facts of this machine. ``quick`` runs no kernel and reads no memory; ``port`` is the
    one that shall be free, None for a server's own.

    ``root`` is a folder in place of /, for what is asked of dev, proc and sys there.
    """
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}

    def keep(name: str, found: Answer | Silent) -> Answer | None:
        if isinstance(found, Silent):
            (skipped if found.lacks or not said.gpus else failed)[name] = found.why
            return None
        return found

    driver, said = graphics.look(root, environ)
    if driver.seen and said.management:
        skipped["clocks and power"] = said.management
    try:
        network = links.network(root, environ)
    except UserError as error:
        network, skipped["network"] = Network(), str(error)
    memory = host.look_at_memory(root, said.free)
    e2m1 = read = None
    if quick:
        skipped["memory read, E2M1"] = "--quick"
    elif said.gpus:
        e2m1 = keep("E2M1", graphics.measure("e2m1", E2m1, root, environ))
        read = keep("memory read", graphics.measure("read", Read, root, environ))
    else:
        read = keep("memory read", graphics.ask("host", Read, environ, graphics.PATIENCE))
    return Facts(
        gb10=__version__,
        system=host.system(root, environ),
        driver=driver,
        gpus=said.gpus,
        memory=memory,
        cpu=host.cpu(root),
        folders=folders.folders(environ),
        ports=(links.port(live.host(environ), port or live.port(environ)),),
        network=network,
        settings=live.settings(environ),
        e2m1=e2m1,
        read=read,
        servers=live.servers(environ),
        failed=failed,
        skipped=skipped,
    )
