"""An open server without a key is refused, however it is spelled: vLLM's parser reads the final arguments."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

pytest.importorskip("vllm.version", reason="vLLM is not installed")

from gb10.checkpoint.hub import locate
from gb10.errors import UserError
from gb10.serve import command, launch
from gb10.serve.settings import parse
from gb10.serve.vllm_arguments import Vocabulary

Make = Callable[..., Path]
Judge = Callable[..., command.Plan]


@pytest.fixture
def judge(make_checkpoint: Make, clean_environment: pytest.MonkeyPatch) -> Judge:
    """A function from arguments to a plan that was judged as `gb10 serve` does, without its processes."""
    folder = str(make_checkpoint())
    known, several = launch.options()

    def run(*argv: str, **variables: str) -> command.Plan:
        for name, value in variables.items():
            clean_environment.setenv(name, value)
        words = [folder, *argv]
        first = parse(words, os.environ)
        config = launch.config_file(first.config) if first.config else []
        settings = parse(words, os.environ, Vocabulary(known, several), config)
        plan = command.build(settings, locate(settings.model or folder), [], flashinfer=False)
        command.check_verdict(settings, launch.prepare(plan.arguments, configure=False).verdict())
        return plan

    return run


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    """A function that writes a file for --config."""

    def write(text: str) -> str:
        (tmp_path / "c.yaml").write_text(text)
        return str(tmp_path / "c.yaml")

    return write


OPEN: Sequence[tuple[Sequence[str], dict[str, str]]] = (
    (["--host", "0.0.0.0"], {}),
    (["--host=0.0.0.0"], {}),
    (["--hos", "0.0.0.0"], {}),
    (["--hos=::"], {}),
    (["--ho", "0.0.0.0"], {}),
    (["--", "--host", "0.0.0.0"], {}),
    (["--", "--hos", "0.0.0.0"], {}),
    (["--host", "127.0.0.1", "--", "--host=0.0.0.0"], {}),
    (["--vllm-args", "--hos 0.0.0.0"], {}),
    (["--vllm-args=-- --host 0.0.0.0"], {}),
    ([], {"VLLM_EXTRA_ARGS": "-- --host 0.0.0.0"}),
    ([], {"VLLM_EXTRA_ARGS": "--hos 192.0.2.1"}),
    ([], {"VLLM_EXTRA_ARGS": "--seed 1 -- --host=0.0.0.0"}),
    ([], {"HOST": "0.0.0.0"}),
)


@pytest.mark.parametrize(("argv", "variables"), OPEN)
def test_an_open_server_without_a_key(judge: Judge, argv: Sequence[str], variables: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"listening on .* without an API key .* add --api-key KEY"):
        judge(*argv, **variables)


@pytest.mark.parametrize(("argv", "variables"), OPEN)
def test_with_a_key_it_listens_there(judge: Judge, argv: Sequence[str], variables: dict[str, str]) -> None:
    plan = judge(*argv, VLLM_API_KEY="secret", **variables)
    assert plan.settings.host in ("0.0.0.0", "::", "192.0.2.1")
    assert "secret" not in " ".join(plan.arguments)


@pytest.mark.parametrize("text", ["host: 0.0.0.0\n", 'host: "::"\nseed: 3\n'])
def test_the_config_file_counts(judge: Judge, config: Callable[[str], str], text: str) -> None:
    with pytest.raises(UserError, match="without an API key"):
        judge("--config", config(text))
    with pytest.raises(UserError, match="without an API key"):
        judge(f"--config={config(text)}")
    assert judge("--config", config(text), "--host", "127.0.0.1").settings.host == "127.0.0.1"


def test_the_config_file_is_the_users_word(judge: Judge, config: Callable[[str], str]) -> None:
    file = config(
        "port: 8123\ndtype: float32\nmax-model-len: 512\nenforce-eager: false\nserved_model_name: [a, b]\n"
        "api-key: secret\nhost: 0.0.0.0\n"
    )
    plan = judge("--config", file, "--port", "8124", MAX_MODEL_LEN="1024")
    rows = {name: (value, origin) for name, value, origin in plan.settings.table()}
    assert rows["--dtype"] == ("float32", "config")
    assert rows["--served-model-name"] == ("a b", "config")
    assert rows["--api-key"] == ("...", "config")
    assert rows["--host"] == ("0.0.0.0", "config")
    assert rows["--port"] == ("8124", "flag")
    assert rows["--max-model-len"] == ("1024", "variable")
    read = launch.prepare(plan.arguments, configure=False).arguments
    assert (read.dtype, read.port, read.max_model_len, read.enforce_eager) == ("float32", 8124, 1024, False)
    assert read.served_model_name == ["a", "b"]
    assert plan.settings.api_keys == ("secret",)
    assert read.api_key is None


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "--config .* cannot be read"), ("[1", "cannot be read"), ("- a\n", "cannot be read")],
)
def test_a_config_file_that_is_none(
    judge: Judge, config: Callable[[str], str], tmp_path: Path, content: str | None, message: str
) -> None:
    file = str(tmp_path / "none.yaml") if content is None else config(content)
    with pytest.raises(UserError, match=message) as caught:
        judge("--config", file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--no-such-flag", "1"], r"neither gb10 nor vLLM knows --no-such-flag; leave it out"),
        (["--max-modl-len=8"], r"knows --max-modl-len=8; did you mean --max-model-len\?"),
        (["--max-num", "8"], "ambiguous option: --max-num could match"),
        (["--block-size", "many"], "argument --block-size"),
        (["--kv-cache-dtype", "fp3"], "--kv-cache-dtype.*invalid choice"),
        (["--enforce-eager", "/other/model"], "unexpected argument '/other/model'; MODEL comes first"),
        (["--ud", "/tmp/s"], "--uds is not supported"),
        (["--headless"], "--headless is for several nodes; add --nnodes N"),
        (["--grpc"], "--grpc is not supported"),
        (["--api-server-count", "2"], "--api-server-count is not supported"),
        (["--enable-auto-tool-choice"], "--enable-auto-tool-choice requires --tool-call-parser"),
        (
            ["--tool-call-parser", "none-such", "--enable-auto-tool-choice"],
            "invalid tool call parser: none-such",
        ),
        (["--chat-template", "/no/such/file"], "chat template"),
        (["--middleware", "no_such_module.Name"], "no_such_module"),
        (["--middleware", "os.path.no_such_name"], "no_such_name"),
    ],
)
def test_what_vllm_refuses_is_one_line(judge: Judge, argv: Sequence[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        judge(*argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--max-model=512"], "--max-model-len", "512"),
        (["--tensor-par", "1"], "--tensor-parallel-size", "1"),
        (["--dty", "float32"], "--dtype", "float32"),
        (["--kv_cache_mem=64M"], "--kv-cache-memory-bytes", "64M"),
        (["--hos", "127.0.0.2"], "--host", "127.0.0.2"),
    ],
)
def test_a_name_that_vllm_understands_is_understood(
    judge: Judge, argv: Sequence[str], name: str, value: str
) -> None:
    plan = judge(*argv)
    assert (name, value, "flag") in plan.settings.table()
    # No default of ours for the same option beside it.
    assert sum(word.startswith(name) for word in plan.arguments) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max-model-len", "999999"], "--max-model-len 999999 is more than the 2048 tokens"),
        (["--quantization", "no-such"], "vLLM refuses this: .*no-such"),
    ],
)
def test_what_vllms_configuration_refuses(
    make_checkpoint: Make, argv: Sequence[str], message: str, clean_environment: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=f"^{message}") as caught:
        launch.prepare(["--model", str(make_checkpoint()), *argv], configure=True)
    assert "\n" not in str(caught.value)
