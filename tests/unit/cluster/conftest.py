"""Two Sparks that are folders."""

from pathlib import Path

import pytest
from folders import SSH, Hosts, spark


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    """Two Sparks, spark-a and spark-b."""
    made = Hosts(tmp_path / "hosts")
    made.write("ssh", SSH.replace("HOSTS", str(made.folder)), program=True)
    for last, name in enumerate(("spark-a", "spark-b"), start=1):
        made.add(name, spark(last))
    return made
