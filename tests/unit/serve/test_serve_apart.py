"""`gb10.serve.apart`: the answer comes, and nothing else of the process does."""

import os
import signal
import sys

import pytest

from gb10.errors import UserError
from gb10.serve import apart, engine


def test_the_answer_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    here: list[int] = []

    def question() -> dict[str, object]:
        here.append(1)
        sys.modules["gb10_only_there"] = os
        return {"pid": os.getpid(), "large": "x" * (1 << 20)}

    found = apart.ask(question)
    assert found["pid"] != os.getpid() and len(found["large"]) == 1 << 20
    assert here == [] and "gb10_only_there" not in sys.modules
    with pytest.raises(ChildProcessError):
        os.waitpid(found["pid"], os.WNOHANG)


def test_a_refusal() -> None:
    def refuse() -> None:
        raise UserError("no such format")

    with pytest.raises(UserError, match=r"^no such format$"):
        apart.ask(refuse)


def test_a_fault_is_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="ended with status 1; the log says why"):
        apart.ask(lambda: 1 / 0)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_process_that_is_killed() -> None:
    with pytest.raises(UserError, match="was ended by signal 9"):
        apart.ask(lambda: os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.parametrize("cuda", [True, False])
def test_models_are_looked_at_elsewhere_on_a_gpu(cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """There importing one makes a CUDA context; on the CPU the engine, which is forked, needs the modules."""
    monkeypatch.setattr(engine, "_on_cuda", lambda: cuda)
    monkeypatch.setattr(engine, "_reports", lambda _: {"pid": os.getpid()})
    assert (engine.looked_at({})["pid"] != os.getpid()) == cuda
