"""Flags, variables, and the arguments that are passed on to vLLM."""

import ast
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gb10
from gb10.errors import UserError
from gb10.serve.environment import OURS
from gb10.serve.settings import (
    BYTES,
    PORT,
    ROWS,
    SHARE,
    TOKENS,
    WHOLE,
    Origin,
    is_loopback,
    parse,
    token_count,
)
from gb10.serve.vllm_arguments import VllmArguments, Vocabulary, option_name


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("MODEL", "/m", "model", "/m"),
        ("HOST", "::1", "host", "::1"),
        ("PORT", "9000", "port", 9000),
        ("GPU_MEMORY_UTIL", "0.75", "gpu_memory_utilization", 0.75),
        ("MAX_MODEL_LEN", "131072", "max_model_len", 131072),
        ("MAX_MODEL_LEN", "32k", "max_model_len", 32000),
        ("MAX_MODEL_LEN", "32K", "max_model_len", 32768),
        ("MAX_MODEL_LEN", "auto", "max_model_len", "auto"),
        ("MAX_NUM_SEQS", "128", "max_num_seqs", 128),
        ("TENSOR_PARALLEL_SIZE", "2", "tensor_parallel_size", 2),
        ("VLLM_API_KEY", "k", "api_keys", ("k",)),
    ],
)
def test_every_variable_of_the_seed_works(variable: str, text: str, field: str, value: object) -> None:
    assert getattr(parse([], {variable: text}), field) == value


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--model", "/m"], "model", "/m"),
        (["/m"], "model", "/m"),
        (["--host", "localhost"], "host", "localhost"),
        (["--port=1"], "port", 1),
        (["--gpu-memory-utilization", "1"], "gpu_memory_utilization", 1.0),
        (["--gpu-memory-util", "0.5"], "gpu_memory_utilization", 0.5),
        (["--gpu_memory_utilization=0.5"], "gpu_memory_utilization", 0.5),
        (["--max-model-len", "2k"], "max_model_len", 2000),
        (["--max_num_seqs", "4"], "max_num_seqs", 4),
        (["-tp", "2"], "tensor_parallel_size", 2),
        (["--api-key", "a", "b"], "api_keys", ("a", "b")),
    ],
)
def test_every_variable_has_a_flag_that_wins(flags: list[str], field: str, value: object) -> None:
    others = {
        "MODEL": "/other",
        "HOST": "127.0.0.9",
        "PORT": "7",
        "GPU_MEMORY_UTIL": "0.1",
        "MAX_MODEL_LEN": "7",
        "MAX_NUM_SEQS": "7",
        "TENSOR_PARALLEL_SIZE": "7",
        "VLLM_API_KEY": "other",
    }
    assert getattr(parse(flags, others), field) == value


def test_defaults() -> None:
    found = parse([], {})
    assert (found.host, found.port, found.model, found.api_keys) == ("127.0.0.1", 8000, None, ())
    assert found.passed_on.tokens() == []


def test_empty_variables_are_unset() -> None:
    variables = [row.variable for row in ROWS.values() if row.variable]
    found = parse([], {**dict.fromkeys(variables, ""), "OMP_NUM_THREADS": ""})
    assert found.table() == parse([], {}).table()
    found.export(Origin.MACHINE, OMP_NUM_THREADS="1")
    assert found.variables == {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    "host", ["x86_64-conda-linux-gnu", "myhostname", "spark.local", "10.0.0", "tcp://1:2"]
)
def test_a_host_variable_that_is_no_address_is_not_meant_for_us(host: str) -> None:
    found = parse([], {"HOST": host})
    assert found.host == "127.0.0.1"
    assert found.notes == [
        f"HOST={host} is no IP address (shells and conda set it too): not used; see --host"
    ]
    assert parse(["--host", host], {"HOST": host}).host == host
    assert parse(["--host", host], {"HOST": host}).notes == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::1", "127.0.0.2", "localhost"])
def test_a_host_variable_that_is_an_address_counts(host: str) -> None:
    found = parse([], {"HOST": host})
    assert (found.host, found.notes) == (host, [])


def test_a_setting_is_called_what_the_user_wrote_it_in() -> None:
    environment = {"MAX_MODEL_LEN": "8", "VLLM_EXTRA_ARGS": "--max-num-seqs 2"}
    found = parse(["-tp", "2"], environment)
    assert found.said("max_model_len") == "MAX_MODEL_LEN"
    assert found.said("max_num_seqs") == "--max-num-seqs (in VLLM_EXTRA_ARGS)"
    assert found.said("tensor_parallel_size") == "--tensor-parallel-size"
    assert found.said("port") == "--port"


SPECULATIVE = '{"method":"mtp","num_speculative_tokens":2}'


def test_json_in_extra_args_survives() -> None:
    found = parse(
        [], {"VLLM_EXTRA_ARGS": f"--speculative-config '{SPECULATIVE}' --no-enable-chunked-prefill"}
    )
    assert found.passed_on.tokens() == ["--speculative-config", SPECULATIVE, "--no-enable-chunked-prefill"]
    assert json.loads(found.passed_on.value("--speculative-config") or "")["num_speculative_tokens"] == 2


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_any_quoted_text_in_extra_args_survives(text: str) -> None:
    import shlex

    value = "v" + text
    found = parse([], {"VLLM_EXTRA_ARGS": f"--chat-template {shlex.quote(value)}"})
    assert found.passed_on.tokens() == ["--chat-template", value]


def test_order_of_strength() -> None:
    environment = {"PORT": "1", "VLLM_EXTRA_ARGS": "--port 2 --dtype half --seed 1"}
    assert parse([], environment).port == 2
    found = parse(["--port", "3", "--dtype", "bfloat16"], environment)
    assert found.port == 3
    assert found.passed_on.tokens() == ["--seed", "1", "--dtype", "bfloat16"]
    assert parse(["--vllm-args=--port 4"], environment).port == 4


def test_keys_of_several_flags_add_up() -> None:
    assert parse(["--api-key", "a", "b", "--api-key=c"], {}).api_keys == ("a", "b", "c")


def test_a_model_after_the_keys_is_the_model(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for argv in (
        ["--api-key", "k", folder],
        ["--api-key", "k", folder, "--seed", "1"],
        ["--seed", "1", "--api_key", "k", folder],
    ):
        found = parse(argv, {"MODEL": "/other"})
        assert (found.model, found.api_keys, found.origins["model"]) == (folder, ("k",), Origin.FLAG), argv
    assert parse(["/m", "--api-key", "k", folder], {}).api_keys == ("k", folder)
    assert parse(["--model", "/m", "--api-key", "k", folder], {}).api_keys == ("k", folder)
    assert parse(["--api-key", folder], {}).api_keys == (folder,)
    with pytest.raises(UserError, match=r"--api-key takes several values, .*; MODEL comes first") as caught:
        parse(["--api-key", "s3cret", "org/name"], {})
    assert "s3cret" not in str(caught.value)
    assert parse(["--api-key", "k", "org/name"], {"MODEL": "/m"}).api_keys == ("k", "org/name")
    assert parse(["--api-key", "a", "b"], {}).model is None


NAMES = Vocabulary(
    {
        "--host": "--host",
        "--port": "--port",
        "--max-num-seqs": "--max-num-seqs",
        "--max-num-batched-tokens": "--max-num-batched-tokens",
        "--served-model-name": "--served-model-name",
        "--speculative-config": "--speculative-config",
        "-sc": "--speculative-config",
        "--enable-x": "--enable-x",
        "--no-enable-x": "--no-enable-x",
        "--dryer": "--dryer",
    },
    ["--served-model-name"],
)


@pytest.mark.parametrize(
    ("token", "spelled"),
    [
        ("--hos", "--host"),
        ("--ho=::1", "--host=::1"),
        ("--max-num", "--max-num"),
        ("--max-num-s=3", "--max-num-seqs=3"),
        ("-sc.method", "--speculative-config.method"),
        ("--spec.method=mtp", "--speculative-config.method=mtp"),
        ("--no-en", "--no-enable-x"),
        ("--unknown", "--unknown"),
        ("-1", "-1"),
        ("host", "host"),
        ('{"--hos": 1}', '{"--hos": 1}'),
    ],
)
def test_vllms_spelling(token: str, spelled: str) -> None:
    assert NAMES.spell(token) == spelled


def test_every_spelling_is_a_setting() -> None:
    found = parse(["--hos", "::1", "--por=9", "--dry-run", "--max_num_s", "3"], {}, NAMES)
    assert (found.host, found.port, found.dry_run, found.max_num_seqs) == ("::1", 9, True, 3)
    assert not found.passed_on.groups
    assert parse([], {"VLLM_EXTRA_ARGS": "--hos ::1"}, NAMES).host == "::1"
    # gb10's own flag is not the beginning of one of vLLM's.
    assert parse(["--dry-run"], {}, NAMES).dry_run
    assert not parse(["--dryer", "1"], {}, NAMES).dry_run


def test_a_model_after_names_is_the_model(tmp_path: Path) -> None:
    found = parse(["--served-model-name", "a", str(tmp_path)], {}, NAMES)
    assert (found.model, found.passed_on.tokens()) == (str(tmp_path), ["--served-model-name", "a"])


def test_the_end_of_options_is_none() -> None:
    assert parse(["--", "/m", "--", "--host", "::1"], {}).host == "::1"
    assert parse(["--", "/m"], {}).model == "/m"
    assert parse([], {"VLLM_EXTRA_ARGS": "-- --host ::1"}).host == "::1"


def test_a_config_file_is_weaker_than_variables() -> None:
    words = ["--port", "3", "--seed", "1", "--host", "::1", "--dtype", "half", "--config", "other"]
    found = parse(["--dtype", "float32", "--config", "f"], {"PORT": "4"}, None, words)
    assert (found.port, found.host, found.dtype, found.config) == (4, "::1", "float32", "f")
    assert found.passed_on.tokens() == ["--seed", "1", "--dtype", "float32"]
    assert found.origins["host"] == found.origins["--seed"] == Origin.CONFIG
    assert found.origins["port"] == Origin.VARIABLE


def test_what_only_vllm_can_tell() -> None:
    assert parse(["--config", "f"], {}).unsure
    assert parse(["--hos", "::1"], {}).unsure
    assert not parse(["--host", "::1", "--seed", "1", "--dtype", "half"], {}).unsure


def test_unknown_arguments_are_passed_on_in_order() -> None:
    found = parse(["/m", "--enforce-eager", "--port", "1", "--kv-cache-dtype", "fp8", "-cc.mode=none"], {})
    assert found.passed_on.tokens() == ["--enforce-eager", "--kv-cache-dtype", "fp8", "-cc.mode=none"]


@pytest.mark.parametrize(
    ("argv", "environment", "message"),
    [
        (["--port", "http"], {}, r"--port 'http' is not a port \(1 to 65535\)"),
        (["--port", "0"], {}, "is not a port"),
        (["--port", "65536"], {}, "is not a port"),
        ([], {"PORT": "80a"}, "PORT '80a' is not a port"),
        ([], {"GPU_MEMORY_UTIL": "75"}, "GPU_MEMORY_UTIL '75' is not a fraction above 0, at most 1"),
        ([], {"GPU_MEMORY_UTIL": "nan"}, "is not a fraction"),
        ([], {"MAX_MODEL_LEN": "long"}, "MAX_MODEL_LEN 'long' is not a number of tokens"),
        ([], {"MAX_NUM_SEQS": "-1"}, "MAX_NUM_SEQS '-1' is not a whole number above 0"),
        ([], {"TENSOR_PARALLEL_SIZE": "1.5"}, "TENSOR_PARALLEL_SIZE '1.5' is not a whole number"),
        ([], {"VLLM_EXTRA_ARGS": "--port x"}, r"--port \(in VLLM_EXTRA_ARGS\) 'x' is not a port"),
        (
            [],
            {"VLLM_EXTRA_ARGS": "--a 'b"},
            "VLLM_EXTRA_ARGS cannot be split as a shell would: no closing quotation",
        ),
        (["--port"], {}, "expected one argument"),
        (["/m", "--model", "/n"], {}, "two models given"),
        (["/m", "stray"], {}, "unexpected argument 'stray'; MODEL comes first"),
    ],
)
def test_malformed_input_is_one_clear_line(
    argv: list[str], environment: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(argv, environment)
    assert "\n" not in str(caught.value)


NUMBERS = {name: row for name, row in ROWS.items() if row.kind in (PORT, SHARE, TOKENS, WHOLE, BYTES)}


@pytest.mark.parametrize("text", ["٣", "３", "1_0", " 3 ", "+3", "3\n", "³"])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_ascii_digits(name: str, text: str) -> None:
    """int() and float() take all of these but the last."""
    row = NUMBERS[name]
    ways: list[tuple[list[str], dict[str, str], str]] = [
        ([f"{row.name}={text}"], {}, row.name),
        ([], {"VLLM_EXTRA_ARGS": f"{row.name}='{text}'"}, rf"{row.name} \(in VLLM_EXTRA_ARGS\)"),
    ]
    if row.variable:
        ways.append(([], {row.variable: text}, row.variable))
    for argv, environment, said in ways:
        with pytest.raises(UserError, match=f"^{said} .* is not a") as caught:
            parse(argv, environment)
        assert "\n" not in str(caught.value)


def test_what_numbers_there_are() -> None:
    assert {"port", "gpu_memory_utilization", "max_model_len", "max_num_seqs", "tensor_parallel_size"} < {
        *NUMBERS
    }
    assert not any(row.kind.parse in (int, float) for row in ROWS.values())


@pytest.mark.parametrize(
    ("token", "name"),
    [
        ("--max_model_len=8", "--max-model-len"),
        ("--no-enable-prefix-caching", "--enable-prefix-caching"),
        ("--no_enable_prefix_caching", "--enable-prefix-caching"),
        ("-cc.mode=none", "--compilation-config"),
        ("--speculative-config.method", "--speculative-config"),
        ("-O3", "--optimization-level"),
        ("-q", "--quantization"),
        ("-1", None),
        ("8", None),
        ('{"a": 1}', None),
    ],
)
def test_option_name(token: str, name: str | None) -> None:
    assert option_name(token) == name


def test_vllm_arguments_answer_questions() -> None:
    found = VllmArguments.parse(
        ["--a=1", "--b", "2", "3", "--no-c", "--d.e", "4", "--f", "false", "--b", "5"]
    )
    assert found.value("--a") == "1"
    assert found.value("--b") == "5"
    assert found.value("--d") is None
    assert found.switch("--c") is False
    assert found.switch("--f") is False
    assert found.switch("--a") is True
    assert found.switch("--z") is None
    assert found.has("--z", "--d")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("127.9.9.9", True),
        ("0.0.0.0", False),
        ("192.0.2.1", False),
        ("127.1", True),
        ("1.2.3", False),
        ("::ffff:127.0.0.1", True),
        ("::ffff:192.0.2.1", False),
        ("", False),
    ],
)
def test_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("argv", "url"),
    [
        ([], "http://127.0.0.1:8000"),
        (["--host", "0.0.0.0"], "http://127.0.0.1:8000"),
        (["--host", "::"], "http://[::1]:8000"),
        (["--host", "::1", "--port", "9"], "http://[::1]:9"),
        (["--ssl-certfile", "c"], "https://127.0.0.1:8000"),
        (["--root-path", "/v1"], "http://127.0.0.1:8000/v1"),
        (["--root-path=/a/"], "http://127.0.0.1:8000/a"),
    ],
)
def test_base_url(argv: list[str], url: str) -> None:
    assert parse(argv, {}).base_url == url


@given(st.integers(1, 10**6))
def test_token_count_scales(number: int) -> None:
    assert token_count(f"{number}k") == number * 1000
    assert token_count(f"{number}K") == number * 1024


def origins(argv: list[str], environment: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {name: (value, origin) for name, value, origin in parse(argv, environment).table()}


def test_every_value_has_its_origin() -> None:
    environment = {
        "PORT": "1",
        "MAX_NUM_SEQS": "2",
        "HOST": "::1",
        "VLLM_EXTRA_ARGS": "--max-num-seqs 3 --seed 1 --dtype half",
    }
    found = origins(
        ["/m", "--host", "localhost", "--api-key", "a", "b", "--no-x", "--dtype=float32"], environment
    )
    assert found["--model"] == ("/m", "flag")
    assert found["--host"] == ("localhost", "flag")
    assert found["--port"] == ("1", "variable")
    assert found["--max-num-seqs"] == ("3", "variable")
    assert found["--seed"] == ("1", "variable")
    assert found["--dtype"] == ("float32", "flag")
    assert found["--no-x"] == ("", "flag")
    assert found["--api-key"] == ("...", "flag")
    assert found["GB10_CPU_NVFP4_MODE"] == ("dequant", "default")
    assert "--max-model-len" not in found
    assert origins(["--vllm-args", "--seed 2"], environment)["--seed"] == ("2", "flag")
    assert parse(["--vllm-args", "--seed 2"], environment).vllm_args == "--seed 2"
    assert origins([], {})["--port"] == ("8000", "default")


def test_what_gb10_settles_does_not_replace_what_was_said() -> None:
    found = parse(["--dtype", "half"], {"OMP_NUM_THREADS": "3"})
    found.settle(Origin.MACHINE, dtype="bfloat16", max_num_seqs=4, revision=None)
    found.export(Origin.MACHINE, OMP_NUM_THREADS="1", OTHER="1")
    assert (found.dtype, found.max_num_seqs, found.variables) == ("half", 4, {"OTHER": "1"})
    assert ("--max-num-seqs", "4", "machine") in found.table()
    assert ("OTHER", "1", "machine") in found.table()
    found.export(Origin.FLAG, OMP_NUM_THREADS="1")
    assert found.variables["OMP_NUM_THREADS"] == "1"


def test_each_vllm_option_that_is_read_is_passed_on_as_given() -> None:
    text = "--served-model-name a b --kv-cache-memory-bytes=1G --no-enforce-eager --revision v2 --dtype half"
    found = parse(text.split(), {})
    assert found.passed_on.tokens() == text.split()
    assert (found.served_model_name, found.kv_cache_memory_bytes) == ("a", 1 << 30)
    assert (found.enforce_eager, found.revision, found.dtype) == (False, "v2", "half")


def test_the_documentation_has_the_table() -> None:
    lines = ["| flag | variable | default | meaning |", "| --- | --- | --- | --- |"]
    special = {"--model": "`MODEL` or `--model`", "--route": "`--route OP=BACKEND`"}
    for row in ROWS.values():
        flag = special.get(row.name, f"`{row.name}`" if row.flags else "")
        variable = f"`{row.variable}`" if row.variable else ""
        if row.help:
            lines.append(f"| {flag} | {variable} | {row.shown or row.default or ''} | {row.help} |")
    text = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in text, "put this into docs/configuration.md:\n" + "\n".join(lines)


INTERNAL = {
    "GB10_LOG_WORD",
    "GB10_OWN_SCALES",  # a part of the key of vLLM's compile cache
    "GB10_SERVE_DEATHS",
    "GB10_SERVE_MEMORY",
    "GB10_SERVE_MEMORY_LIMITS",
    "GB10_SERVE_SOCKET",
}
"""Names that `gb10 serve` gives to its own processes; from a user they are refused."""


def _named_in_the_sources() -> set[str]:
    """Every text in gb10's sources that is a variable's name and nothing else."""
    return {
        node.value
        for path in Path(gb10.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"GB10_[A-Z0-9_]*[A-Z0-9]", node.value)
    }


def test_the_documentation_has_every_variable() -> None:
    """Those that only others than `gb10 serve` read, too; and each of them is one that serve lets pass."""
    text = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text(encoding="utf-8")
    cells = [row.split("|")[1:3] for row in text.splitlines() if row.startswith("|")]
    documented = {name for pair in cells for cell in pair for name in re.findall(r"`(GB10_\w+)`", cell)}
    named = _named_in_the_sources()
    assert {"GB10_MEMORY_SHED", "GB10_KERNELS", "GB10_SERVE_SOCKET"} <= named
    assert named >= INTERNAL
    assert documented == named - INTERNAL == set(OURS)


def test_help_prints_every_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"], {})
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name in ("MODEL", "PORT", "GPU_MEMORY_UTIL", "MAX_MODEL_LEN", "MAX_NUM_SEQS", "TENSOR_PARALLEL_SIZE"):
        assert name in text
    assert "VLLM_EXTRA_ARGS" in text
    assert "VLLM_API_KEY" in text
    # As the README and docs/configuration.md write it; `KEY [KEY ...]` would take MODEL for a key.
    assert re.search(r"^  --api-key KEY  +key that clients must send; may be given several times", text, re.M)
    assert "[KEY" not in text


def test_help_is_no_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    assert any("](" in row.help for row in ROWS.values())
    with pytest.raises(SystemExit):
        parse(["--help"], {})
    text = " ".join(capsys.readouterr().out.split())
    assert not set("`") & set(text) and "](" not in text
    assert "whose kernels run on a GPU (docs/engine.md)" in text


def test_help_names_no_command_that_its_reader_may_lack(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever typed `nix run .#serve` has no `gb10`, and a container has neither."""
    with pytest.raises(SystemExit):
        parse(["--help"], {})
    text = capsys.readouterr().out
    assert text.startswith("usage: serve [MODEL]")
    assert not {"gb10", "nix", "python", "python3", "vllm"} & set(text.replace("`", " ").split())
