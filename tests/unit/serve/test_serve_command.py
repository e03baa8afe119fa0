"""What `gb10 serve` would run: defaults, refusals, no duplicates."""

import json
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gb10.checkpoint import size
from gb10.checkpoint.folder import Checkpoint
from gb10.checkpoint.formats import Format, Formats
from gb10.checkpoint.hub import locate
from gb10.checkpoint.modules import module_of
from gb10.errors import UserError
from gb10.machine import cpu, memory
from gb10.machine.gpu import Gpu
from gb10.serve import command
from gb10.serve.preflight import Verdict
from gb10.serve.settings import parse
from gb10.serve.vllm_arguments import option_name
from gb10.units import GIB, MIB

GB10 = Gpu("NVIDIA GB10", (12, 1), 120 * GIB, unified=True)
H200 = Gpu("NVIDIA H200", (9, 0), 141 * GIB, unified=False)
Make = Callable[..., Path]
Plan = Callable[..., command.Plan]
NVFP4: dict[str, Any] = {
    "quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "num_experts": 512,
}
STEM = "model.layers.0"
WEIGHTS = {
    f"{STEM}.self_attn.o_proj.weight": ("U8", (64, 32)),
    f"{STEM}.mlp.experts.0.up_proj.weight": ("U8", (64, 32)),
    "lm_head.weight": ("BF16", (8, 64)),
}
WITH_MTP = {"lm_head.weight": ("BF16", (8, 64)), "mtp.fc.weight": ("BF16", (8, 64))}
DRAFTS = ("--speculative-config", '{"method": "mtp", "num_speculative_tokens": 2}')


@pytest.fixture
def plan(make_checkpoint: Make, clean_environment: pytest.MonkeyPatch) -> Plan:
    """A function from arguments to a plan, for a small checkpoint on a machine with 64 GiB free."""
    clean_environment.setattr(memory, "available", lambda: memory.Available(64 * GIB, "MemAvailable"))

    def build(
        argv: Sequence[str] = (),
        gpus: Sequence[Gpu] = (),
        flashinfer: bool = True,
        demo: bool = False,
        **made: object,
    ) -> command.Plan:
        folder = make_checkpoint(**{"tensors": WITH_MTP, **made})
        settings = parse([str(folder), *argv], dict(os.environ))
        return command.build(settings, locate(str(folder)), gpus, flashinfer=flashinfer, demo=demo)

    return build


def value(found: command.Plan, option: str) -> str:
    assert found.arguments.count(option) == 1, found.arguments
    return found.arguments[found.arguments.index(option) + 1]


def names(found: command.Plan) -> list[str]:
    return [name for token in found.arguments if (name := option_name(token)) is not None]


def test_the_demo_model_is_called_by_its_own_name(plan: Plan) -> None:
    found = plan(demo=True)
    assert found.demo
    assert value(found, "--served-model-name") == "gb10-demo"


def test_cpu_defaults(plan: Plan) -> None:
    found = plan()
    assert found.command[:4] == [sys.executable, "-P", "-m", "gb10.serve.engine"]
    assert value(found, "--host") == "127.0.0.1"
    assert value(found, "--port") == "8000"
    assert value(found, "--dtype") == "bfloat16"
    assert value(found, "--max-model-len") == "2048"
    assert value(found, "--served-model-name") == "model"
    assert int(value(found, "--kv-cache-memory-bytes")) == size.KV_CACHE_FLOOR
    assert "--enforce-eager" in found.arguments
    assert found.environment["VLLM_NO_USAGE_STATS"] == "1"
    assert found.environment["HF_HUB_OFFLINE"] == "1"
    assert found.environment["VLLM_WORKER_MULTIPROC_METHOD"] == "fork"


def test_missing_input_scales_are_named_with_what_will_be_done(
    plan: Plan, clean_environment: pytest.MonkeyPatch
) -> None:
    stem = "model.layers.0.mlp.experts.{}.down_proj.{}"
    known = [stem.format(expert, "weight_scale_2") for expert in range(3)]
    known += [stem.format(expert, "input_scale") for expert in range(2)]
    tensors = WITH_MTP | dict.fromkeys(known, ("F32", ()))
    name = stem.format(2, "input_scale")
    for mode, done in (("dequant", "not needed here"), ("emulate", "takes the largest")):
        clean_environment.setenv("GB10_CPU_NVFP4_MODE", mode)
        notes = [note for note in plan(name=mode, tensors=tensors, config=NVFP4).notes if name in note]
        assert len(notes) == 1
        assert done in notes[0]
    assert "takes the largest" in "".join(plan(gpus=[GB10], name="gb10", tensors=tensors, config=NVFP4).notes)
    assert "not needed here" in "".join(plan(gpus=[H200], name="h200", tensors=tensors, config=NVFP4).notes)


@pytest.mark.parametrize(
    ("argv", "variables", "by_name"),
    [
        ([], {}, False),
        (["--tokenizer", "other/name"], {}, False),
        (["--code-revision", "v2"], {}, True),
        ([], {"HF_HUB_OFFLINE": "0"}, True),
        ([], {"HF_HUB_OFFLINE": "1"}, False),
    ],
)
def test_a_cached_model_is_loaded_from_its_folder(
    make_checkpoint: Make, argv: list[str], variables: dict[str, str], by_name: bool
) -> None:
    folder = make_checkpoint()
    found = Checkpoint("org/name", folder, {"architectures": ["X"]}, cached=True)
    made = command.build(parse(argv, variables), found, [], flashinfer=False)
    assert value(made, "--model") == ("org/name" if by_name else str(folder))
    assert value(made, "--served-model-name") == "org/name"
    assert ("HF_HUB_OFFLINE" in made.environment) is (not argv and not variables)


@pytest.mark.parametrize(
    ("argv", "disabled"), [([], "1"), (["--enforce-eager"], "1"), (["--no-enforce-eager"], None)]
)
def test_eager_mode_compiles_nothing(plan: Plan, argv: list[str], disabled: str | None) -> None:
    assert plan(argv).environment.get("TORCH_COMPILE_DISABLE") == disabled


@pytest.mark.parametrize(
    ("argv", "absent", "present"),
    [
        (["--dtype", "float32"], None, ["--dtype", "float32"]),
        (["--no-enforce-eager"], "--enforce-eager", ["--no-enforce-eager"]),
        (["-O3"], "--enforce-eager", ["-O3"]),
        (["-cc.mode=none"], "--enforce-eager", ["-cc.mode=none"]),
        (["--kv_cache_memory_bytes=64M"], None, ["--kv-cache-memory-bytes=64M"]),
        (["--served-model-name", "a", "b"], None, ["--served-model-name", "a", "b"]),
        (["--max-num-seqs", "3"], None, ["--max-num-seqs", "3"]),
    ],
)
def test_user_arguments_replace_defaults(
    plan: Plan, argv: list[str], absent: str | None, present: list[str]
) -> None:
    found = plan(argv)
    assert len(names(found)) == len(set(names(found))), found.arguments
    assert absent not in found.arguments
    start = found.arguments.index(present[0])
    assert found.arguments[start : start + len(present)] == present


def test_context_is_bounded_on_cpu_and_said(plan: Plan) -> None:
    found = plan(config={"max_position_embeddings": 262144})
    assert value(found, "--max-model-len") == "4096"
    assert any("262144" in note for note in found.notes)
    assert value(plan(["--max-model-len", "512"], name="other"), "--max-model-len") == "512"


MTP = ["--speculative-config", '{"method":"mtp","num_speculative_tokens":2}']


@pytest.mark.parametrize("config", [MTP, ["-sc", MTP[1]], ["--speculative-config.method", "mtp"]])
def test_mtp_leaves_prefix_caching_alone(plan: Plan, config: list[str]) -> None:
    """patches/vllm/0004 makes both work together on the CPU."""
    assert not any("prefix-caching" in argument for argument in plan(config).arguments)
    assert "--enable-prefix-caching" in plan([*config, "--enable-prefix-caching"], name="both").arguments


def test_mtp_of_a_checkpoint_without_its_weights_is_refused(plan: Plan) -> None:
    with pytest.raises(UserError, match=r"has no MTP weights \(mtp.*leave out --speculative-config"):
        plan(MTP, tensors={"lm_head.weight": ("BF16", (8, 64))})


HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}


@pytest.mark.parametrize(
    ("more", "config", "kept"),
    [
        ([], HYBRID, False),
        (["--enable-prefix-caching"], HYBRID, False),
        (["--no-enable-prefix-caching"], HYBRID, True),
        ([], {}, True),
    ],
)
def test_chunked_prefill_stays_on_where_vllm_needs_it(
    plan: Plan, more: list[str], config: dict[str, object], kept: bool
) -> None:
    """The line of older guides; vLLM would end with "Chunked prefill is required"."""
    found = plan([*MTP, "--no-enable-chunked-prefill", *more], config=config)
    assert ("--no-enable-chunked-prefill" in found.arguments) is kept
    assert value(found, "--speculative-config") == MTP[1]
    said = [note for note in found.notes if note.startswith("--no-enable-chunked-prefill is left out")]
    assert bool(said) is not kept


@pytest.mark.parametrize("text", ["{method:mtp}", "[1]", "'{\"method\":1}'", "[" * 50_000])
def test_malformed_speculative_config(plan: Plan, text: str) -> None:
    with pytest.raises(UserError, match="--speculative-config is not"):
        plan(["--speculative-config", text])


@pytest.mark.parametrize(
    ("file", "argv", "chats"),
    [
        ({}, [], False),
        ({"tokenizer_config.json": '{"chat_template": "{{ messages }}"}'}, [], True),
        ({"tokenizer_config.json": '{"chat_template": null}'}, [], False),
        ({"tokenizer_config.json": "[1"}, [], False),
        ({"chat_template.jinja": "{{ messages }}"}, [], True),
        ({"chat_template.json": '{"chat_template": "{{ messages }}"}'}, [], True),
        ({"tekken.json": "{}"}, [], True),
        ({}, ["--chat-template", "t.jinja"], True),
        ({}, ["--tokenizer", "org/name"], True),
    ],
)
def test_who_can_chat(make_checkpoint: Make, file: dict[str, str], argv: list[str], chats: bool) -> None:
    folder = make_checkpoint()
    for name, text in file.items():
        (folder / name).write_text(text)
    assert command.build(parse(argv, {}), locate(str(folder)), [], flashinfer=False).chats is chats
    away = Checkpoint("org/name", config={"architectures": ["X"]})
    assert command.build(parse(argv, {}), away, [], flashinfer=False).chats


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "1.2.3", "::ffff:192.0.2.1", "spark.local"])
def test_open_address_needs_a_key(plan: Plan, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo

    def getaddrinfo(host: str, *more: Any, **options: Any) -> Any:
        """As if the network knew that name, whatever it stands for now."""
        known = host == "spark.local" and "flags" not in options
        return look_up("127.0.0.1" if known else host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(UserError, match=f"listening on {host} without an API key .* add --api-key KEY"):
        plan(["--host", host])


@pytest.mark.parametrize(
    "host", ["256.1.1.1", "a b", "unix:/x", "http://127.0.0.1", "nosuch.invalid", "x" * 70, "[::1]"]
)
@pytest.mark.parametrize("keys", [[], ["--api-key", "k"]])
def test_what_is_no_host_is_said_so(plan: Plan, host: str, keys: list[str]) -> None:
    with pytest.raises(UserError, match=rf"^{re.escape(repr(host))} is not a host that this machine knows"):
        plan(["--host", host, *keys])


@pytest.mark.parametrize("host", ["127.1", "127.0.0.2", "::1", "::ffff:127.0.0.1", "localhost"])
def test_loopback_needs_no_key_however_it_is_written(plan: Plan, host: str) -> None:
    assert plan(["--host", host]).settings.host == host


def test_secrets_are_nowhere_to_be_seen(plan: Plan) -> None:
    found = plan(["--host", "0.0.0.0", "--api-key", "s3cret", "s3cret2", "--hf-token=s3cret3", "--seed", "1"])
    assert found.settings.api_keys == ("s3cret", "s3cret2")
    assert "s3cret" not in str(found.environment)
    assert [word for word in found.arguments if "s3cret" in word] == ["--hf-token=s3cret3"]
    assert "s3cret" not in str(found.settings.table())
    shown = " ".join(found.shown)
    assert "s3cret" not in shown
    assert "VLLM_API_KEY=... " in shown
    assert "--hf-token=..." in shown
    apart = plan(["--hf-token", "s3cret", "--seed", "1"], name="apart")
    assert "--hf-token ... --seed 1" in " ".join(apart.shown)
    assert sorted(found.settings.secrets) == ["s3cret", "s3cret2", "s3cret3"]


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        ({"host": "0.0.0.0"}, "listening on 0.0.0.0 without an API key"),
        ({"host": None}, "listening on every address of this machine without an API key"),
        ({"host": ""}, "without an API key"),
        ({"uds": "/tmp/s"}, "--uds is not supported"),
        ({"model_tag": "/m"}, "unexpected argument '/m'; MODEL comes first"),
        ({"ignored": ("--headless",)}, "--headless is not supported"),
        ({"host": "0.0.0.0", "keys": ("k",)}, None),
        ({"host": "::1", "port": 9}, None),
    ],
)
def test_the_verdict_counts(plan: Plan, verdict: dict[str, Any], message: str | None) -> None:
    same = {"host": "127.0.0.1", "port": 8000, "uds": None, "keys": (), "model_tag": None, "ignored": ()}
    settings = plan().settings
    judged = Verdict(**{**same, **verdict})
    if message is not None:
        with pytest.raises(UserError, match=message):
            command.check_verdict(settings, judged)
    else:
        command.check_verdict(settings, judged)
        assert (settings.host, settings.port) == (judged.host, judged.port)


def test_unix_socket_is_refused(plan: Plan) -> None:
    with pytest.raises(UserError, match="--uds is not supported"):
        plan(["--uds", "/tmp/s"])


BIG = {"w.weight": ("U8", (1024, 1024)), "w.weight_scale": ("F8_E4M3", (1024, 128))}


def test_memory_is_refused_before_vllm(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    free = size.OVERHEAD + 64 * MIB + 2 * MIB
    monkeypatch.setattr(memory, "available", lambda: memory.Available(free, "/sys/fs/cgroup/memory.max"))
    with pytest.raises(
        UserError, match=r"not enough memory: .*weights 4 MiB.*memory\.max.*GB10_CPU_NVFP4_MODE=packed"
    ):
        plan(tensors=BIG)
    monkeypatch.setenv("GB10_CPU_NVFP4_MODE", "packed")
    assert any(
        note.startswith("memory  needs 2.1 GiB of 2.1 GiB: ")
        for note in plan(name="packed", tensors=BIG).notes
    )


def test_memory_of_unified_gpu_is_that_of_the_machine(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 of 120 GiB are free; test_serve_budget.py has the arithmetic."""
    found = plan([], [GB10])
    assert value(found, "--gpu-memory-utilization") == "0.48"
    assert any("unified memory" in note for note in found.notes)
    monkeypatch.setattr(memory, "available", lambda: memory.Available(GIB, "MemAvailable"))
    with pytest.raises(UserError, match=r"1\.0 GiB is free \(MemAvailable\)"):
        plan([], [GB10], name="second")


def test_gpu_defaults(plan: Plan) -> None:
    found = plan([], [H200])
    assert not {"--dtype", "--enforce-eager", "--max-model-len", "--gpu-memory-utilization"} & set(
        found.arguments
    )
    assert found.environment["VLLM_WORKER_MULTIPROC_METHOD"] == "fork"
    several = plan(["-tp", "2"], [H200, H200], name="two")
    assert "VLLM_WORKER_MULTIPROC_METHOD" not in several.environment
    assert value(plan(["--gpu-memory-util", "0.4"], [GB10], name="m"), "--gpu-memory-utilization") == "0.4"


@pytest.mark.parametrize(
    ("argv", "most", "noted"), [([], "2048", True), (["--max-model-len", "16"], "16", False)]
)
def test_a_recipe_for_a_longer_model(
    make_checkpoint: Make,
    clean_environment: pytest.MonkeyPatch,
    argv: list[str],
    most: str,
    noted: bool,
) -> None:
    """Its context was written for another model; what the user says counts as ever."""
    clean_environment.setattr(memory, "available", lambda: memory.Available(64 * GIB, "MemAvailable"))
    folder = str(make_checkpoint(tensors=WITH_MTP))
    given = parse([folder, "--recipe", "qwen3-coder-next", *argv], {}, memory=lambda: 120 * GIB)
    found = command.build(given, locate(folder), (), flashinfer=True)
    assert value(found, "--max-model-len") == most
    assert ("all that this model has" in "".join(found.notes)) == noted


def test_discrete_gpu_that_is_too_small(plan: Plan) -> None:
    small = Gpu("small", (9, 0), GIB, unified=False)
    with pytest.raises(UserError, match=r"not enough memory: .*0\.92 of small.*--tensor-parallel-size"):
        plan([], [small], tensors=BIG)


def test_more_ranks_than_gpus(plan: Plan) -> None:
    with pytest.raises(UserError, match="--tensor-parallel-size 2 needs 2 GPUs and 1 can be seen"):
        plan(["-tp", "2"], [H200])


def test_several_ranks_on_cpu_need_a_numa_node_each(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "nodes", lambda: 1)
    message = "--tensor-parallel-size 2 on the CPU needs 2 NUMA nodes and this machine has 1; leave it out"
    with pytest.raises(UserError, match=message):
        plan(["-tp", "2"])
    monkeypatch.setenv("TENSOR_PARALLEL_SIZE", "2")
    with pytest.raises(UserError, match="TENSOR_PARALLEL_SIZE 2 on the CPU"):
        plan(name="by variable")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    plan(name="by hand")


def test_several_ranks_on_cpu_keep_vllms_own_start(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "nodes", lambda: 2)
    assert "VLLM_WORKER_MULTIPROC_METHOD" not in plan(["-tp", "2"]).environment


def test_user_start_method_is_kept(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    assert "VLLM_WORKER_MULTIPROC_METHOD" not in plan([], [H200], name="gpu").environment
    found = plan()
    assert "VLLM_WORKER_MULTIPROC_METHOD" not in found.environment
    assert "LD_PRELOAD" not in found.environment


def test_routes_become_arguments(plan: Plan) -> None:
    found = plan(["--route", "nvfp4_moe=marlin"], [GB10], config=NVFP4, tensors=WEIGHTS)
    assert value(found, "--moe-backend") == "marlin"
    assert [row.backend for row in found.rows if row.operation == "nvfp4_moe"] == ["marlin"]


def test_route_and_flag_for_the_same_thing(plan: Plan) -> None:
    with pytest.raises(UserError, match="--moe-backend and --route both choose a backend"):
        plan(["--route", "nvfp4_moe=marlin", "--moe-backend", "cutlass"], [GB10])


def test_b12x_with_512_experts_is_refused_by_flag_too(plan: Plan) -> None:
    with pytest.raises(UserError, match="reads out of bounds with 512 experts"):
        plan(["--moe-backend", "flashinfer_b12x"], [GB10], config=NVFP4)


def test_cpu_mode_by_route(plan: Plan) -> None:
    found = plan(["--route", "nvfp4_linear=packed"], config=NVFP4, tensors=WEIGHTS)
    assert found.environment["GB10_CPU_NVFP4_MODE"] == "packed"
    assert {row.backend for row in found.rows if row.operation.startswith("nvfp4")} == {"gb10 packed"}


QWEN = {"model_type": "qwen3_next", "linear_num_value_heads": 2, **NVFP4}
PLAIN = {**WEIGHTS, f"{STEM}.self_attn.q_proj.weight": ("BF16", (64, 64))}


@pytest.fixture
def kernels(clean_environment: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """GB10_KERNELS names a folder with a library."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "libgb10_kernels.so").touch()
    clean_environment.setenv("GB10_KERNELS", str(folder))
    return folder


def decode_rows(found: command.Plan) -> dict[str, str]:
    return {row.operation: row.backend for row in found.rows if row.batch[0] == 1}


@pytest.mark.usefixtures("kernels")
def test_our_engine_is_the_default_where_it_can_run(plan: Plan) -> None:
    found = plan([], [GB10], config=QWEN, tensors=PLAIN)
    rows = decode_rows(found)
    assert rows["nvfp4_moe"] == "gb10 moe_decode"
    assert rows["dense"] == rows["lm_head"] == "gb10 fp8_gemv"
    assert (rows["router"], rows["gdn_decode"]) == ("gb10 route_experts", "gb10 gdn_decode")
    assert not any("--engine" in note for note in found.notes)
    assert "--engine" not in found.arguments


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("by_variable", [False, True])
def test_engine_and_formats_reach_vllms_processes(
    plan: Plan, clean_environment: pytest.MonkeyPatch, by_variable: bool
) -> None:
    argv = ["--engine", "gb10", "--dense", "nvfp4", "--head", "keep"]
    if by_variable:
        for name, given in (("ENGINE", "gb10"), ("DENSE", "nvfp4"), ("HEAD", "keep")):
            clean_environment.setenv(f"GB10_{name}", given)
        argv = []
    found = plan(argv, [H200], config=QWEN, tensors=PLAIN)
    got = {**os.environ, **found.environment}
    assert [got[f"GB10_{name}"] for name in ("ENGINE", "DENSE", "HEAD")] == ["gb10", "nvfp4", "keep"]
    rows = decode_rows(found)
    assert (rows["dense"], rows["lm_head"]) == ("gb10 nvfp4_gemv", "cuBLAS BF16")


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--route", "nvfp4_moe=marlin"], "dense,head,linear,gdn,attention"),
        (["--moe-backend", "marlin"], "dense,head,linear,gdn,attention"),
        (["--linear-backend", "cutlass"], "dense,head,experts,router,norm,gdn,attention"),
        (["--route", "gdn_prefill=triton"], None),
        (["--moe-backend", "auto", "--linear-backend=auto"], None),
    ],
)
def test_a_chosen_backend_switches_our_part_off(plan: Plan, argv: list[str], parts: str | None) -> None:
    found = plan(argv, [GB10], config=QWEN, tensors=PLAIN)
    assert found.environment.get("GB10_ENGINE_PARTS") == parts


def test_without_our_kernels_a_gpu_runs_vllms_own_and_says_so(plan: Plan) -> None:
    found = plan([], [GB10], config=QWEN, tensors=PLAIN)
    assert decode_rows(found)["nvfp4_moe"] == "FLASHINFER_CUTLASS"
    (note,) = [note for note in found.notes if "--engine stock" in note]
    assert "GB10_KERNELS is not set" in note
    quiet = plan(["--engine", "stock"], [GB10], config=QWEN, tensors=PLAIN, name="quiet")
    assert not any("--engine" in note for note in quiet.notes)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("argv", "gpus", "message"),
    [
        (["--engine", "gb10"], [], "--engine gb10: there is no NVIDIA GPU"),
        (["--dense", "fp8"], [], "--dense fp8 needs --engine gb10"),
        (
            ["--engine", "gb10"],
            [Gpu("NVIDIA L4", (8, 9), 24 * GIB, unified=False)],
            "need compute capability 9.0, and this GPU has 8.9",
        ),
        (["--engine", "stock", "--head", "fp8"], [GB10], "--head fp8 needs --engine gb10"),
        (["--engine", "ours"], [GB10], "--engine 'ours' is not one of: gb10, stock"),
        (["--dense", "int8"], [GB10], "--dense 'int8' is not one of: keep, fp8, nvfp4"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(
    plan: Plan, argv: list[str], gpus: list[Gpu], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        plan(argv, gpus, config=QWEN, tensors=PLAIN)


GDN = {"linear_num_value_heads": 2, **NVFP4}


def test_gdn_falls_back_to_triton_without_flashinfer(plan: Plan) -> None:
    assert value(plan([], [GB10], flashinfer=False, config=GDN), "--gdn-prefill-backend") == "triton"
    assert "--gdn-prefill-backend" not in plan([], [GB10], config=GDN, name="with").arguments
    given = plan(["--gdn-prefill-backend", "flashinfer"], [GB10], flashinfer=False, config=GDN, name="given")
    assert value(given, "--gdn-prefill-backend") == "flashinfer"
    row = {row.operation: row for row in given.rows}["gdn_prefill"]
    assert (row.backend, row.whose, row.reason) == ("flashinfer", "yours", "set by --gdn-prefill-backend")


def test_table_shows_what_the_model_has(plan: Plan) -> None:
    plain = {row.operation for row in plan().rows}
    assert not {"nvfp4_linear", "nvfp4_moe", "gdn_prefill", "fp8_linear"} & plain
    rows = {row.operation for row in plan(config=GDN, name="gdn", tensors=WEIGHTS).rows}
    assert {"nvfp4_linear", "nvfp4_moe", "gdn_prefill", "activation_quant"} <= rows


def backends(found: command.Plan) -> dict[str, str]:
    return {row.operation: row.backend for row in found.rows}


def test_fp8_kv_cache_is_seen(plan: Plan) -> None:
    assert plan(["--kv-cache-dtype", "fp8"]).target.fp8_kv_cache
    assert plan(["--route", "kv_cache=fp8"], [GB10], name="route").target.fp8_kv_cache


FP8_KV = {"kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"}}


@pytest.mark.parametrize("argv", [[], ["--kv-cache-dtype", "auto"]])
def test_kv_cache_of_the_checkpoint(plan: Plan, argv: list[str]) -> None:
    section = {**NVFP4["quantization_config"], **FP8_KV}
    found = plan(argv, [GB10], flashinfer=False, config={"quantization_config": section})
    asked = plan(["--kv-cache-dtype", "fp8"], [GB10], flashinfer=False, name="asked")
    both = ("kv_cache", "attention")
    assert [backends(found)[name] for name in both] == [backends(asked)[name] for name in both]
    assert [backends(found)[name] for name in both] == ["fp8_e4m3", "TRITON_ATTN"]
    assert "the checkpoint asks for it" in [row.reason for row in found.rows]
    given = plan(
        ["--kv-cache-dtype", "bfloat16"], [GB10], name="given", config={"quantization_config": section}
    )
    assert backends(given)["kv_cache"] == "bfloat16"


def test_formats_that_another_process_read_are_taken(plan: Plan, make_checkpoint: Make) -> None:
    folder = make_checkpoint(name="read", config=NVFP4, tensors=WEIGHTS)
    checkpoint = locate(str(folder))
    known = Formats(kv_cache="fp8", modules=((module_of("model.layers.0.mlp.up_proj"), Format("nvfp4")),))
    settings = parse([str(folder)], {})
    found = command.build(settings, checkpoint, [GB10], flashinfer=False, formats=known)
    assert backends(found)["nvfp4_linear"] == "MarlinNvFp4"
    assert backends(found)["kv_cache"] == "fp8_e4m3"
    assert "nvfp4_moe" not in backends(found)


def test_what_vllm_will_not_take_is_refused(plan: Plan) -> None:
    section = {"quant_method": "modelopt", "quant_algo": "NVFP5"}
    with pytest.raises(
        UserError, match=r"vLLM does not take the quantisation of .*NVFP4.*config\.json"
    ) as caught:
        plan(config={"quantization_config": section})
    assert "\n" not in str(caught.value)


def test_formats_without_a_kernel_on_this_machine_are_refused(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    tensors = {f"{STEM}.mlp.up_proj.weight": ("F8_E4M3", (64, 64))}
    monkeypatch.setattr(cpu, "has_amx", lambda: False)
    with pytest.raises(UserError, match=r"cannot be served on this machine: .*need AMX"):
        plan(config={"quantization_config": section}, tensors=tensors)
    monkeypatch.setattr(cpu, "has_amx", lambda: True)
    found = plan(config={"quantization_config": section}, tensors=tensors, name="amx")
    assert backends(found)["fp8_linear"] == "CPUFp8BlockScaledMM"


def test_gdn_on_the_cpu_is_bfloat16(plan: Plan) -> None:
    with pytest.raises(UserError, match="--dtype float32: Gated DeltaNet on the CPU is bfloat16 only"):
        plan(["--dtype", "float32"], config=GDN)
    assert plan(["--dtype", "float32"], [GB10], config=GDN, name="gpu").target.dtype == "float32"


@pytest.mark.parametrize(("argv", "backend"), [([], "oneDNN BF16"), (["--dtype", "float32"], "oneDNN FP32")])
def test_the_table_names_the_dtype(plan: Plan, argv: list[str], backend: str) -> None:
    assert backends(plan(argv))["lm_head"] == backend


@pytest.mark.parametrize("text", ["lots", "", "5Q"])
def test_malformed_cache_size(plan: Plan, text: str) -> None:
    with pytest.raises(UserError, match=r"--kv-cache-memory-bytes .* is not a number of bytes"):
        plan([f"--kv-cache-memory-bytes={text}"])


@pytest.mark.parametrize(
    ("content", "count", "message"),
    [
        ("[0, 5, 99]", "", None),
        ("[0, 5, 100]", ":2", None),
        ("[0, 5, 100]", "", "has token id 100, but the model has 100 tokens"),
        ("[0, 5]", ":3", "N must be 1 to 2"),
        ("{}", "", "must be a JSON list of token ids"),
        ("[" * 50_000, "", "is not JSON"),
        (None, "", "cannot read the draft vocabulary"),
    ],
)
def test_a_draft_vocabulary_must_fit_the_model(
    tmp_path: Path,
    plan: Plan,
    clean_environment: pytest.MonkeyPatch,
    content: str | None,
    count: str,
    message: str | None,
) -> None:
    file = tmp_path / "ids.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    clean_environment.setenv("GB10_DRAFT_VOCABULARY", f"{file}{count}")
    model = {"vocab_size": 100, "model_type": "qwen3_next"}
    if message is None:
        assert plan(DRAFTS, config=model).arguments
    else:
        with pytest.raises(UserError, match=message):
            plan(DRAFTS, config=model)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((), "qwen3_next", "add --speculative-config"),
        (DRAFTS, "qwen3_moe", "not with qwen3_moe; leave it out"),
    ],
)
def test_a_draft_vocabulary_that_would_do_nothing_is_refused(
    tmp_path: Path,
    plan: Plan,
    clean_environment: pytest.MonkeyPatch,
    arguments: Sequence[str],
    kind: str,
    message: str,
) -> None:
    file = tmp_path / "ids.json"
    file.write_text("[0, 5]", encoding="utf-8")
    clean_environment.setenv("GB10_DRAFT_VOCABULARY", str(file))
    with pytest.raises(UserError, match=message):
        plan(arguments, config={"model_type": kind})


@pytest.mark.usefixtures("kernels")
def test_the_report_and_the_limit_reach_vllms_processes(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    argv = ["--requant-report", str(file), "--max-requant-error", "0.2"]
    found = plan(argv, [GB10], config=QWEN, tensors=PLAIN)
    assert found.environment["GB10_REQUANT_REPORT"] == str(file)
    assert found.environment["GB10_MAX_REQUANT_ERROR"] == "0.2"
    assert not {"--requant-report", "--max-requant-error"} & set(found.arguments)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("argv", "gpus", "message"),
    [
        (["--requant-report", "/nowhere/at/all.json"], [GB10], "no file in a folder that there is"),
        (["--requant-report", "/"], [GB10], "no file in a folder that there is"),
        (["--max-requant-error", "2"], [GB10], "--max-requant-error '2' is not a fraction"),
        (["--max-requant-error", "0.1"], [], "nothing is requantised; leave it out"),
        (
            ["--dense", "keep", "--head", "keep", "--max-requant-error", "0.1"],
            [GB10],
            "nothing is requantised",
        ),
    ],
)
def test_what_cannot_be_of_requantisation_is_refused(
    plan: Plan, argv: list[str], gpus: list[Gpu], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        plan(argv, gpus, config=QWEN, tensors=PLAIN)


def test_a_draft_vocabulary_is_for_one_gpu(plan: Plan) -> None:
    with pytest.raises(UserError, match="--draft-vocab needs one GPU, and the model is on 2 ranks"):
        plan([*DRAFTS, "--draft-vocab", "7", "-tp", "2"], [H200, H200], config={"model_type": "qwen3_next"})


def test_draft_vocab_takes_a_number_or_all(
    make_checkpoint: Make, clean_environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The model's own list by frequency, without one the first ids; and the flag over the variable."""
    clean_environment.setattr(memory, "available", lambda: memory.Available(64 * GIB, "MemAvailable"))
    folder = make_checkpoint(tensors=WITH_MTP, config={"vocab_size": 100, "model_type": "qwen3_next"})

    def build(*argv: str) -> command.Plan:
        settings = parse([str(folder), *argv], dict(os.environ))
        return command.build(settings, locate(str(folder)), (), flashinfer=True)

    made = build(*DRAFTS, "--draft-vocab", "7")
    assert made.environment["GB10_DRAFT_VOCABULARY"] == "7"
    assert "--draft-vocab 7: the ids below 7, since no draft_vocabulary.json is in the model" in made.notes
    assert "--draft-vocab" not in names(made)
    with pytest.raises(UserError, match="--draft-vocab 101: the model has 100 tokens"):
        build(*DRAFTS, "--draft-vocab", "101")
    with pytest.raises(UserError, match="cannot read the draft vocabulary"):
        build(*DRAFTS, "--draft-vocab", str(tmp_path / "none"))

    file = folder / "draft_vocabulary.json"
    file.write_text(json.dumps(list(range(99, -1, -1))), encoding="utf-8")
    made = build(*DRAFTS, "--draft-vocab", "7")
    assert made.environment["GB10_DRAFT_VOCABULARY"] == f"{made.checkpoint.folder}/{file.name}:7"
    assert not [note for note in made.notes if "--draft-vocab" in note]

    assert "GB10_DRAFT_VOCABULARY" not in build("--draft-vocab", "full").environment
    clean_environment.setenv("GB10_DRAFT_VOCABULARY", str(file))
    assert build(*DRAFTS).environment["GB10_DRAFT_VOCABULARY"] == str(file)
    assert build("--draft-vocab", "full").environment["GB10_DRAFT_VOCABULARY"] == "full"
