"""Dead, unknown and harmful variables."""

import os
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from gb10.errors import UserError
from gb10.serve import environment
from gb10.serve.environment import DEAD, check


@pytest.mark.parametrize("name", sorted(DEAD))
def test_each_dead_variable_is_refused_with_its_replacement(name: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"{name} does nothing any more; {DEAD[name]}")):
        check({name: "1"})


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"VLLM_USE_FLASHINFER_MOE_INT8": "1"}, "use --moe-backend"),
        ({"NVCC_PREPEND_FLAGS": "-arch=sm_121a -DX=1"}, "NVCC_PREPEND_FLAGS has -arch"),
        ({"NVCC_APPEND_FLAGS": "-O3 --gpu-architecture sm_121"}, "NVCC_APPEND_FLAGS has -arch"),
        ({"GB10_DEMO_MODLE": "x"}, "did you mean GB10_DEMO_MODEL"),
        ({"GB10_CPU_NVFP4_MODE": "fast"}, "GB10_CPU_NVFP4_MODE=fast is not one of dequant, packed, emulate"),
        ({"OMP_NUM_THREADS": "x"}, "OMP_NUM_THREADS=x is not a whole number above 0"),
        ({"OMP_NUM_THREADS": "0"}, "OMP_NUM_THREADS=0 is not"),
        ({"GB10_PROFILE": "tpu"}, "GB10_PROFILE=tpu is not one of cpu, cuda"),
    ],
)
def test_bad_variables_are_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(variables)


def test_all_troubles_are_in_one_line() -> None:
    with pytest.raises(UserError) as caught:
        check({"VLLM_USE_V1": "1", "GB10_X": "1", "ENABLE_TCGEN05_HARDWARE": "1"})
    text = str(caught.value)
    assert "\n" not in text
    assert all(name in text for name in ("VLLM_USE_V1", "GB10_X", "ENABLE_TCGEN05_HARDWARE"))


def test_good_variables_pass() -> None:
    check(
        {
            "VLLM_EXTRA_ARGS": "--x",
            "GB10_CPU_NVFP4_MODE": "packed",
            "GB10_PROFILE": "cpu",
            "NVCC_PREPEND_FLAGS": "-O3",
            "OMP_NUM_THREADS": "4, 2",
            "PATH": "/bin",
        }
    )


def test_empty_means_unset() -> None:
    check(dict.fromkeys([*DEAD, "GB10_PROFILE", "GB10_CPU_NVFP4_MODE", "GB10_X", "VLLM_PLUGINS"], ""))
    environ = {"OMP_NUM_THREADS": "", "HF_HOME": "", "VLLM_PLUGINS": "", "CUDA_VISIBLE_DEVICES": "", "A": "b"}
    assert environment.clean(environ) == []
    assert environ == {"CUDA_VISIBLE_DEVICES": "", "A": "b"}


SERVICE = {
    "{}_PORT": "tcp://10.43.7.21:8000",
    "{}_SERVICE_HOST": "10.43.7.21",
    "{}_SERVICE_PORT": "8000",
    "{}_SERVICE_PORT_HTTP": "8000",
    "{}_PORT_8000_TCP": "tcp://10.43.7.21:8000",
    "{}_PORT_8000_TCP_ADDR": "10.43.7.21",
    "{}_PORT_8000_TCP_PORT": "8000",
    "{}_PORT_8000_TCP_PROTO": "tcp",
}


@pytest.mark.parametrize("service", ["VLLM", "GB10", "MASTER", "VLLM_DP_MASTER", "GB10_SERVE"])
def test_what_kubernetes_sets_for_a_service_is_not_passed_on(known: frozenset[str], service: str) -> None:
    environ = {name.format(service): value for name, value in SERVICE.items()}
    notes = environment.clean(environ)
    assert environ == {}
    assert [note.partition("=")[0] for note in notes] == sorted(known & {f"{service}_PORT"})


def test_ports_that_are_meant_stay(known: frozenset[str]) -> None:
    given = {
        "VLLM_PORT": "29500",
        "VLLM_DP_MASTER_PORT": "1",
        "MASTER_PORT": "2",
        "DB_PORT": "tcp://10.0.0.1:5432",
    }
    environ = dict(given)
    assert environment.clean(environ) == []
    assert environ == given


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "VLLM_CONFIGURE_LOGGING",
            "yes",
            "VLLM_CONFIGURE_LOGGING=yes cannot be read by vLLM: invalid literal",
        ),
        (
            "VLLM_PORT",
            "http",
            "VLLM_PORT=http cannot be read by vLLM: VLLM_PORT 'http' must be a valid integer",
        ),
        ("VLLM_LOGGING_CONFIG_PATH", "/nope", "VLLM_LOGGING_CONFIG_PATH=/nope is not a file; give one"),
        ("VLLM_LOGGING_LEVEL", "LOUD", "VLLM_LOGGING_LEVEL=LOUD is not one of .*INFO"),
        ("VLLM_PLUGINS", "other", "VLLM_PLUGINS=other leaves out gb10.* add it: other,gb10"),
    ],
)
def test_what_vllm_cannot_read_is_named(
    known: frozenset[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        check({name: value})


@pytest.mark.parametrize(("name", "value"), [("VLLM_LOGGING_LEVEL", "debug"), ("VLLM_PLUGINS", "x,gb10")])
def test_what_vllm_can_read_passes(
    known: frozenset[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    check({name: value})


@pytest.fixture
def known() -> frozenset[str]:
    names = environment.vllm_variables()
    if not names:
        pytest.skip("vLLM is not installed")
    return names


def test_the_dead_are_really_dead(known: frozenset[str]) -> None:
    assert known.isdisjoint(DEAD)


def test_nothing_in_vllm_reads_a_dead_variable(known: frozenset[str]) -> None:
    folder = environment.package_folder("vllm")
    assert folder is not None
    text = "\n".join(path.read_text(errors="replace") for path in folder.rglob("*.py"))
    # Half a minute for regular expressions alone.
    held = [name for name in DEAD if name in text]
    assert [name for name in held if re.search(rf"\b{name}\b", text)] == []


def test_every_variable_that_vllm_reads_is_known(known: frozenset[str]) -> None:
    folder = environment.package_folder("vllm")
    assert folder is not None
    pattern = re.compile(r"""(?:environ(?:\.get)?|getenv)\s*[(\[]\s*["'](VLLM_[A-Z0-9_]+)["']""")
    read = {
        name for path in folder.rglob("*.py") for name in pattern.findall(path.read_text(errors="replace"))
    }
    assert read <= known


def test_unknown_vllm_variable_names_the_nearest(known: frozenset[str]) -> None:
    with pytest.raises(
        UserError, match=r"VLLM_LOGING_LEVEL is not a variable of vLLM; did you mean VLLM_LOGGING_LEVEL\?"
    ):
        check({"VLLM_LOGING_LEVEL": "INFO"})
    with pytest.raises(UserError, match="VLLM_QQQQQQQQ is not a variable of vLLM; unset it"):
        check({"VLLM_QQQQQQQQ": "1"})
    check(dict.fromkeys(known - {"VLLM_PLUGINS"}, "1"))


def test_a_variable_that_names_a_pipe(tmp_path: Path) -> None:
    """vLLM reads VLLM_LOGGING_CONFIG_PATH when it is imported, the hub's library HF_TOKEN_PATH."""
    pipe, file = tmp_path / "pipe", tmp_path / "file"
    os.mkfifo(pipe)
    file.touch()
    for name in ("VLLM_LOGGING_CONFIG_PATH", "HF_TOKEN_PATH", "GB10_DRAFT_VOCABULARY", "SSL_CERT_FILE"):
        with pytest.raises(UserError, match=rf"{name}={pipe} is a named pipe \(FIFO\), not a file"):
            check({name: str(pipe)})
        for other in (file, tmp_path, tmp_path / "none", "/dev/null"):
            check({name: str(other)})
    check({"OTHER": str(pipe), "HF_TOKEN": "x" * 5000, "VLLM_API_KEY": "~nobody-here/x"})


@pytest.mark.parametrize(
    "points", [[], [("other", "other:register")], [("gb10", "gb10.plugin:install")]], ids=str
)
def test_a_plugin_that_vllm_does_not_see(
    points: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.check_registered()
    found = tuple(EntryPoint(name, value, "vllm.general_plugins") for name, value in points)
    monkeypatch.setattr(environment, "entry_points", lambda group: found)
    with pytest.raises(UserError, match=r"vLLM does not see gb10's plug-in: .* with pip$"):
        environment.check_registered()


def test_log_folder_follows_xdg(tmp_path: Path) -> None:
    assert environment.log_folder({"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / "gb10" / "serve"
    assert environment.log_folder({}) == Path.home() / ".local/state/gb10/serve"
