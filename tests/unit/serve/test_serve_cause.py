"""The cause of vLLM's end: its log, and how its processes ended."""

import json
from functools import partial
from pathlib import Path

import pytest

from gb10.machine import memory
from gb10.serve.cause import last_error, last_line, lost_rank, memory_short, violent_death
from gb10.vllm_plugin.log import after
from gb10.vllm_plugin.refusal import PREFIX

API = "(APIServer pid=1) INFO 11-22 14:36:19 [x.py:1] "
CORE = "(EngineCore pid=2) ERROR 11-22 14:36:19 [core.py:9] "


def test_last_error_is_the_cause_not_its_consequence() -> None:
    lines = [
        CORE + "EngineCore failed to start.",
        CORE + "Traceback (most recent call last):",
        CORE + '  File "x.py", line 1, in f',
        CORE + "ValueError: KV cache is too small",
        "Traceback (most recent call last):",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        API + "Application shutdown complete.",
    ]
    assert last_error(lines) == "ValueError: KV cache is too small"


def test_a_kernel_that_was_not_built_ahead_is_told_with_what_to_do() -> None:
    """The words are FlashInfer 0.7.0's, whose last line names neither the kernel nor a remedy here."""
    lines = [
        CORE + "Traceback (most recent call last):",
        CORE + '  File "core.py", line 290, in build_and_load',
        CORE
        + "flashinfer.jit.core.MissingJITCacheError: JIT compilation is disabled via FLASHINFER_DISABLE_JIT "
        "environment variable, but the required module is not found in the JIT cache. Please add the missing "
        "module to the JIT cache build configuration.",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    ]
    told = last_error(lines)
    assert told is not None
    assert told.startswith("FlashInfer wants a kernel that was not built ahead")
    assert "VLLM_HAS_FLASHINFER_CUBIN=0" in told and "--attention-backend TRITON_ATTN" in told


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["api_server.py: error: unrecognized arguments: --nope"], "unrecognized arguments: --nope"),
        (["torch.OutOfMemoryError: CUDA out of memory."], "OutOfMemoryError: CUDA out of memory."),
        (
            [
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
                "  Value error, max_model_len is too long. [type=value_error, input_value=Args()]",
                "    For further information visit https://errors.pydantic.dev/",
            ],
            "ValidationError: 1 validation error for ModelConfig Value error, max_model_len is too long.",
        ),
        (
            [
                CORE
                + "pydantic_core._pydantic_core.ValidationError: 2 validation errors for SpeculativeConfig",
                CORE + "num_speculative_tokens",
                CORE + "  Input should be greater than 0 [type=greater_than, input_value=-1, input_type=int]",
                CORE + "    For further information visit https://errors.pydantic.dev/2.14/v/greater_than",
                CORE + "method",
                CORE + "  Input should be 'ngram' [type=literal_error, input_value='x', input_type=str]",
            ],
            "ValidationError: 2 validation errors for SpeculativeConfig num_speculative_tokens Input should "
            "be greater than 0 (given: -1)",
        ),
        (["RuntimeError:", "  the cause"], "RuntimeError: the cause"),
        (["ValueError: " + "word " * 100], "ValueError: " + "word " * 68 + "..."),
        (["all is well"], None),
    ],
)
def test_last_error_kinds(lines: list[str], error: str | None) -> None:
    assert last_error(lines) == error


def test_last_line_has_words_and_no_prefix() -> None:
    assert last_line([API + "the end", "-----", ""]) == "the end"
    assert last_line([]) is None


def test_what_clients_asked_is_no_cause() -> None:
    """Seen: the last line of a server whose keeper was killed."""
    asked = '(APIServer pid=1) INFO:     127.0.0.1:1 - "POST /v1/completions HTTP/1.1" 200 OK'
    assert last_line([API + "Application startup complete.", asked, asked]) == "Application startup complete."
    assert last_line([asked]) is None


def test_a_bare_error_gets_its_place() -> None:
    lines = [
        CORE + "Traceback (most recent call last):",
        CORE + '  File "/a/vllm/x.py", line 12, in load',
        CORE + "    assert param.shape == weight.shape",
        CORE + "           ^^^^^^^^^^^^^^^^^^^^^^^^^^^",
        CORE + "AssertionError",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    ]
    assert last_error(lines) == "AssertionError in load (x.py:12): assert param.shape == weight.shape"
    assert last_error(["AssertionError"]) is None


def test_what_the_compiler_says_comes_first() -> None:
    lines = [
        "torch._inductor.exc.InductorError: CppCompileError: C++ compile error",
        "",
        "Output:",
        "/t/c.cpp:1:10: fatal error: Python.h: No such file or directory",
        "RuntimeError: Worker failed with error 'C', please check the stack trace above for the root cause",
        "ValueError: something later",
    ]
    error = last_error(lines)
    assert error is not None
    assert error.startswith("the compiler says: Python.h: No such file or directory; ")
    assert "--enforce-eager" in error


def test_a_header_that_torch_missed_explains_its_failure() -> None:
    """Seen with a Python that has no headers: the compiler's own words are not in the log."""
    warning = "/t/cpp_builder.py:1361: UserWarning: Can't find Python.h in /p/include/python3.11"
    failed = (
        CORE + "torch._inductor.exc.InductorError: ImportError: /t/x.main.so: cannot open shared object file"
    )
    error = last_error([warning, failed])
    assert error is not None
    assert error.startswith("torch.compile: Can't find Python.h in /p/include/python3.11; install ")
    assert "x.main.so" in error
    assert last_error([warning, "ValueError: x"]) == "ValueError: x"


@pytest.mark.parametrize(
    "line",
    [
        "BrokenPipeError: [Errno 32] Broken pipe",
        "EOFError",
        "asyncio.exceptions.CancelledError: cancelled",
        "RuntimeError: Worker failed with error 'IndexError: list index out of range",
    ],
)
def test_a_consequence_counts_where_there_is_nothing_else(line: str) -> None:
    assert last_error(["ValueError: the cause", line]) == "ValueError: the cause"
    if ": " in line:
        assert last_error([line]) == line.rpartition("asyncio.exceptions.")[2]


def test_an_exception_of_cpp_is_an_error() -> None:
    lines = ["terminate called after throwing an instance of 'std::bad_alloc'", "  what():  std::bad_alloc"]
    assert last_error(lines) == "std::bad_alloc"


def test_refusal() -> None:
    refusal = partial(after, PREFIX, word="3f9c")
    assert refusal(CORE + "gb10[3f9c]: refused: norm.weight is not there\n") == "norm.weight is not there"
    assert refusal("gb10[3f9c]: refused: x") == "x"
    for line in (
        "the log says gb10: refused: x",
        "gb10: refused: x",
        "gb10[3f9d]: refused: x",
        "gb10[]: refused: x",
    ):
        assert refusal(CORE + line) is None


NONE_KILLED = memory.Kills(0, 0)
FREE = memory.Available(3 << 30, "MemAvailable")


def death(tmp_path: Path, *events: dict[str, object]) -> str | None:
    file = tmp_path / "deaths"
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    return violent_death(file, NONE_KILLED)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(memory, "available", lambda: FREE)
    monkeypatch.setattr(memory, "oom_kills", lambda: NONE_KILLED)
    return monkeypatch


def test_the_first_killed_process_is_named(tmp_path: Path, free: pytest.MonkeyPatch) -> None:
    core: dict[str, object] = {"pid": 2, "name": "EngineCore", "code": -9}
    said = (
        "its process EngineCore was killed by signal 9 (SIGKILL), "
        "perhaps out of memory: 3.0 GiB are free now (MemAvailable)"
    )
    orphan = {"pid": 3, "name": "VLLM::Worker", "code": -9, "orphan": True}
    server = {"pid": 1, "name": "python3", "code": 1, "orphan": False}
    assert death(tmp_path, orphan, core, server) == said
    free.setattr(memory, "oom_kills", lambda: memory.Kills(0, 1))
    assert str(death(tmp_path, core)).endswith("for want of memory on this machine")
    free.setattr(memory, "oom_kills", lambda: memory.Kills(1, 1))
    assert str(death(tmp_path, core)).endswith("for want of memory in this memory cgroup")


def test_an_end_for_want_of_memory_is_no_violent_death(tmp_path: Path) -> None:
    """What is killed after it is the keeper's own work; its figures are what is told."""
    end: dict[str, object] = {"memory": "1 MiB is free"}
    killed = {"pid": 2, "name": "VllmWorker-0", "code": -9}
    assert death(tmp_path, end, killed) is None
    assert memory_short(tmp_path / "deaths") == "1 MiB is free"
    death(tmp_path, killed)
    assert memory_short(tmp_path / "deaths") is None
    assert memory_short(tmp_path / "none") is None


def test_what_vllm_ended_itself_is_no_cause(tmp_path: Path) -> None:
    sent: dict[str, object] = {"pid": 2, "sent": 15}
    core: dict[str, object] = {"pid": 2, "name": "EngineCore", "code": -9}
    assert death(tmp_path, {"pid": 3, "name": "w", "code": 1}, sent, core) is None
    assert death(tmp_path, sent, core | {"code": -15}) is None
    # But nobody of vLLM sends a crash.
    assert (
        death(tmp_path, sent, core | {"code": -11})
        == "its process EngineCore was killed by signal 11 (SIGSEGV)"
    )
    assert death(tmp_path, {"pid": 3, "name": "w", "code": -9, "orphan": True}) is None
    assert death(tmp_path) is None
    assert violent_death(tmp_path / "nowhere", NONE_KILLED) is None


RAY_LOST = [
    "\x1b[33m(raylet)\x1b[0m A worker died or was killed while executing a task by an unexpected system "
    "error. Lease ID: 02 Node ID: b1 Worker IP address: 10.77.0.2 Worker port: 12803 Worker PID: 21168 "
    "Worker exit type: SYSTEM_ERROR Worker exit detail: End of file.",
    CORE + "irrelevant",
    "(EngineCore pid=20) ERROR 11-27 23:15:06 [ray_executor_v2.py:522] RayWorkerProc rank=[1] died "
    "unexpectedly, shutting down executor.",
    CORE + "RuntimeError: cancelled",
]


def test_a_rank_that_ray_lost() -> None:
    said = "died under Ray; the log of that node's gb10 serve may say more"
    assert lost_rank(RAY_LOST) == f"rank 1 (process 21168 on 10.77.0.2) {said}"
    assert lost_rank(RAY_LOST[1:]) == f"rank 1 {said}"
    # Ray loses others as well.
    assert lost_rank(RAY_LOST[:2]) is None and lost_rank(RAY_LOST[3:]) is None


def test_a_rank_whose_peer_was_first_to_say_so() -> None:
    """vLLM ends over the peer's error, and its executor has no time to name the rank."""
    worker = (
        "\x1b[36m(CpuRayWorkerProc pid={0}{1})\x1b[0m (Worker pid={0}) INFO 11-28 02:12:23 [parallel_state.py"
    )
    ranks = [
        worker.format(21168, ", ip=10.77.0.2") + ":2350] rank 1 in world size 2 is assigned as DP rank 0",
        worker.format(689, "") + ":2350] rank 0 in world size 2 is assigned as DP rank 0",
    ]
    ended = CORE + "RuntimeError: Worker failed with error 'Connection reset by peer'"
    said = (
        "rank 1 (process 21168 on 10.77.0.2) died under Ray; the log of that node's gb10 serve may say more"
    )
    # Ray passes on what a rank wrote when it comes to it.
    assert lost_rank([*ranks, RAY_LOST[0], ended]) == lost_rank([ended, RAY_LOST[0], *ranks]) == said
    assert lost_rank([ranks[1], RAY_LOST[0], ended]) is None
    assert lost_rank([*ranks, ended]) is None


def test_what_rays_workers_write_is_read_as_vllms() -> None:
    ray = "\x1b[36m(CpuRayWorkerProc pid=2, ip=10.77.0.2)\x1b[0m "
    assert last_error([ray + CORE + "ValueError: no such kernel"]) == "ValueError: no such kernel"
