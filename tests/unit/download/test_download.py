"""`gb10 download`: what is fetched, resumed, compared, refused; bytes are counted at the hub."""

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from hub import COMMIT, Hub
from hub_model import BESIDE, INDEX, LEFT_OUT, SIZES, environment
from huggingface_hub import constants

from gb10.checkpoint.hub import interrupted
from gb10.cli import main
from gb10.download import fetch, listing, plan, store, transfer
from gb10.errors import UserError

NAME = "org/name"
WEIGHTS = sum(SIZES.values())


def snapshot(cache: Path) -> Path:
    return cache / "models--org--name" / "snapshots" / COMMIT


def download(*words: str) -> int:
    return main(["download", NAME, *words])


def whole(cache: Path, origin: Path) -> None:
    """All that vLLM reads is there, as at the hub, and nothing else; nothing is half there."""
    there = sorted(path.name for path in snapshot(cache).rglob("*") if path.is_file())
    assert there == sorted([*SIZES, *BESIDE])
    for name in there:
        assert (snapshot(cache) / name).read_bytes() == (origin / name).read_bytes()
    assert not [*cache.rglob("*.incomplete"), *cache.rglob("*.part")]
    assert (cache / "models--org--name/refs/main").read_text() == COMMIT


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the last command wrote as its error."""
    line = capsys.readouterr().err
    assert line.startswith("gb10: error: ") and line.count("\n") == 1
    return line


def test_what_vllm_reads_is_fetched_once(
    hub: Hub, cache: Path, origin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert download() == 0
    out = capsys.readouterr().out
    whole(cache, origin)
    assert hub.sent == WEIGHTS
    assert f"fetching org/name at {COMMIT[:12]}: 7 files, 1.0 MB; 0.0 MB that vLLM does not read" in out
    assert "model-1.safetensors: 0.7 MB, its digest is right" in out
    assert out.endswith(f"org/name is there, 1.0 MB: {snapshot(cache)}\n")
    assert "\r" not in out and "\x1b" not in out
    assert download() == 0
    assert hub.sent == WEIGHTS
    assert capsys.readouterr().out.count("\n") == 2


def test_huggingface_hub_finds_it_without_network(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM's own resolution asks: offline, by name, with its patterns."""
    assert download() == 0
    hub.close()
    from huggingface_hub import constants, snapshot_download

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = snapshot_download(NAME, local_files_only=True, allow_patterns=list(SIZES))
    assert Path(found) == snapshot(cache)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_was_ended_goes_on_where_it_was(hub: Hub, cache: Path, origin: Path, number: int) -> None:
    hub.pause = 0.05
    # Where the tests run in the background it is ignored, and children inherit that.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "import sys; from gb10.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "download", NAME]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        blobs = cache / "models--org--name/blobs"
        while sum(path.stat().st_size for path in blobs.glob("*.part")) < 200_000:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else -9)
    assert ("stopped; what was fetched is kept" in out) == (number == signal.SIGINT)
    kept = sum(path.stat().st_size for path in blobs.glob("*.part"))
    assert kept >= 200_000
    assert not any((snapshot(cache) / name).exists() for name in SIZES)
    assert not (cache / "models--org--name/refs/main").exists()
    hub.pause = 0.0
    before = -1
    while before != hub.sent:
        # It has not noticed yet that nobody listens.
        before = hub.sent
        time.sleep(0.3)
    hub.sent = 0
    assert download() == 0
    whole(cache, origin)
    assert hub.sent == WEIGHTS - kept


def test_a_connection_that_breaks_is_taken_up_where_it_was(hub: Hub, cache: Path, origin: Path) -> None:
    hub.cut = [100_000, 50_000, 1000]
    assert download() == 0
    whole(cache, origin)
    assert hub.sent == WEIGHTS
    assert sorted(hub.asked)[1][1].startswith("bytes=")


def test_a_hub_that_gives_whole_files_only(hub: Hub, cache: Path, origin: Path) -> None:
    hub.ranges = False
    hub.cut = [100_000]
    assert download() == 0
    whole(cache, origin)


def test_what_comes_damaged_is_refused_and_fetched_by_the_next(
    hub: Hub, cache: Path, origin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.damaged = ["model-2.safetensors"]
    assert download() == 2
    assert "model-2.safetensors came damaged" in error(capsys)
    assert not (snapshot(cache) / "model-2.safetensors").exists()
    assert not (cache / "models--org--name/refs/main").exists()
    assert download() == 0
    whole(cache, origin)


def test_a_damaged_beginning_is_fetched_anew(
    hub: Hub, cache: Path, origin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = plan.ask(NAME, None)
    (file,) = (one for one in wanted.files if one.name == "model-1.safetensors")
    wanted.part(file).parent.mkdir(parents=True, exist_ok=True)
    wanted.part(file).write_bytes(bytes(200_000))
    assert download() == 0
    assert "model-1.safetensors: what was there of it was damaged" in capsys.readouterr().out
    whole(cache, origin)


def test_a_file_that_was_cut_short_is_fetched_anew(hub: Hub, cache: Path, origin: Path) -> None:
    assert download() == 0
    blob = (snapshot(cache) / "model-1.safetensors").resolve()
    os.truncate(blob, 1000)
    assert download() == 0
    whole(cache, origin)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, "RepoNotFound", "is not on .*, or it is private"),
        (403, "GatedRepo", "is gated: ask for access"),
        (404, "RevisionNotFound", "has no revision"),
        (500, "", "answered 500"),
    ],
)
def test_the_hub_refuses(
    hub: Hub,
    cache: Path,
    status: int,
    code: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(transfer, "PAUSE", 0.01)
    hub.status, hub.code = status, code
    assert download() == 2
    assert re.search(said, error(capsys))
    assert not cache.exists() or list(cache.rglob("*.safetensors")) == []


def test_no_room(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before the first byte of weights, with the sums."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 500_000))
    assert download() == 2
    said = error(capsys)
    assert re.search(
        r"needs 1\.0 MB more and 1\.1 GB to spare, and .*/hub has 0\.5 MB free; free 1\.1 GB there", said
    )
    assert "HF_HOME" in said
    assert hub.asked == []


def test_a_disk_that_is_full_all_the_same(
    hub: Hub, cache: Path, origin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: object, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store._Part, "write", full)
        assert download() == 2
    assert "is full" in error(capsys)
    assert download() == 0
    whole(cache, origin)


def test_what_the_hub_gives_by_xet_alone(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", 500_000)
    assert download() == 2
    assert "model-1.safetensors has 0.7 MB, which the hub gives by Xet alone" in error(capsys)


HEAD = b'{"id": "org/name", "sha": "%s", "siblings": [{"rfilename": "a", '
NO_LIST = {
    "a page": b"<html>Log in to this network",
    "a list": b"[1]",
    "nothing": b"",
    "sizes in words": HEAD + b'"size": "x", "blobId": "%s"}]}',
    "no digest": HEAD + b'"size": 1, "lfs": {"size": 1}}]}',
}


@pytest.mark.parametrize("answer", NO_LIST.values(), ids=NO_LIST)
@pytest.mark.parametrize("command", ["download", "audit"])
def test_what_answers_is_no_hub(
    hub: Hub, answer: bytes, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A proxy's page, or a network's that wants a login."""
    body = answer.replace(b"%s", COMMIT.encode())
    monkeypatch.setattr(hub, "answer", lambda to: hub._send(to, 200, body))
    assert main([command, NAME]) == 2
    assert "is no hub's list of files; check HF_ENDPOINT, the proxy" in error(capsys)


def test_a_negative_size() -> None:
    with pytest.raises(UserError, match="-5 bytes"):
        listing.checked(NAME, "x.json", -5, "0" * 40)


def test_a_hub_that_never_answers(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listing, "_PATIENCE", 0.5)
    monkeypatch.setattr(hub, "answer", lambda to: time.sleep(5))
    began = time.monotonic()
    assert download() == 2
    assert time.monotonic() - began < 4
    assert "broke off" in error(capsys)


def test_an_index_that_names_what_is_not_there(
    hub: Hub, origin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (origin / "model-2.safetensors").unlink()
    assert download() == 2
    assert "lacks model-2.safetensors, which its model.safetensors.index.json names" in error(capsys)


def test_no_model(hub: Hub, origin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (origin / "config.json").unlink()
    assert download() == 2
    assert "has no config.json" in error(capsys)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("a/b/c", "no name of the hub"),
        ("../no-such-folder-of-mine", "no name of the hub"),
        ("/", "on this machine already"),
    ],
)
def test_what_is_no_name(hub: Hub, model: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", model]) == 2
    assert said in error(capsys)


@pytest.mark.parametrize("revision", ["../../x", "/etc", "a/../../b"])
def test_what_is_no_revision(hub: Hub, revision: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert download("--revision", revision) == 2
    assert "is no revision" in error(capsys)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        *(
            (name, "0" * 40)
            for name in ("../x.json", "/x.json", "", "a\0b", "C:\\x", "\x1b[31m", "a\nb", "\u202e")
        ),
        *(("x.json", digest) for digest in ("../../x", "None", "")),
    ],
)
def test_a_hub_that_would_write_elsewhere(name: str, digest: str) -> None:
    with pytest.raises(UserError, match="cannot be"):
        listing.checked(NAME, name, 1, digest)


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download() == 2
    assert "HF_HUB_OFFLINE is set" in error(capsys)


def test_another_process_fetches_it(
    hub: Hub, cache: Path, origin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second waits for the first one's lock, says so, and fetches what is left."""
    wanted = plan.ask(NAME, None)
    (file,) = (one for one in wanted.files if one.name == "model-1.safetensors")
    lock = cache / ".locks/models--org--name" / f"{file.digest}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    holds = ["flock", str(lock), sys.executable, "-c", "import time; print(1, flush=True); time.sleep(3)"]
    with subprocess.Popen(holds, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        assert download() == 0
    assert "model-1.safetensors is being fetched by another process" in capsys.readouterr().out
    whole(cache, origin)


def spoil(cache: Path, name: str) -> Path:
    """Another bit in a file; its size stays. Where its bytes are."""
    blob = (snapshot(cache) / name).resolve()
    blob.chmod(0o644)
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 4
    blob.write_bytes(content)
    return blob


@pytest.fixture(params=[True, False], ids=["asked", "offline"])
def asked(request: pytest.FixtureRequest, hub: Hub) -> bool:
    """Whether the hub can be asked when a cached model is compared."""
    return bool(request.param)


def downloaded(hub: Hub, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert download() == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not asked)
    hub.sent = 0


def test_check_of_nothing(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert download("--check") == 2
    assert "is not in the cache" in error(capsys)


def test_check(
    hub: Hub,
    cache: Path,
    origin: Path,
    asked: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    downloaded(hub, asked, monkeypatch)
    assert download("--check") == 0
    right = "is as the hub has it" if asked else "is as the names and the index in the cache say"
    printed = capsys.readouterr().out
    assert f"org/name {right}: {snapshot(cache)}\n" in printed
    assert ("compared without the hub: HF_HUB_OFFLINE is set" in printed) == (not asked)
    spoil(cache, "model-1.safetensors")
    # Its size is right.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert download() == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not asked)
    capsys.readouterr()
    assert download("--check") == 1
    printed_both = capsys.readouterr()
    assert "model-1.safetensors is damaged, and was taken out of the cache" in printed_both.out
    bad = "1 missing, damaged or unreadable; run: gb10 download org/name"
    assert printed_both.err == f"gb10: error: model org/name is not{right[2:]}: {bad}\n"
    assert hub.sent == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert download() == 0
    assert hub.sent == SIZES["model-1.safetensors"]
    whole(cache, origin)


@pytest.mark.parametrize("lost", ["link", "bytes"])
@pytest.mark.parametrize("name", ["model-2.safetensors", "tokenizer.json", "config.json"])
def test_check_of_what_lacks_a_file(
    hub: Hub,
    cache: Path,
    name: str,
    lost: str,
    asked: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    downloaded(hub, asked, monkeypatch)
    path = snapshot(cache) / name
    (path if lost == "link" else path.resolve()).unlink()
    capsys.readouterr()
    if name == "tokenizer.json" and not asked and lost == "link":
        # Nothing here names it, and tokenizer_config.json could be a tokenizer: said in docs/download.md.
        assert download("--check") == 0
        return
    assert download("--check") == 1
    printed = capsys.readouterr()
    if asked or lost == "bytes" or name.startswith("model"):
        assert f"{name} is missing\n" in printed.out
    assert "1 missing, damaged or unreadable; run: gb10 download org/name" in printed.err
    assert printed.err.count("\n") == 1
    assert hub.sent == 0


def test_check_of_an_empty_snapshot(hub: Hub, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot(cache).mkdir(parents=True)
    assert download("--check") == 1
    printed = capsys.readouterr()
    # The index is fetched by nobody: all files of weights count.
    assert "8 missing" in printed.err
    assert "model-1.safetensors is missing" in printed.out
    hub.close()
    assert download("--check") == 1
    assert "it has no config.json" in capsys.readouterr().out
    assert list(snapshot(cache).iterdir()) == []


def test_check_of_a_download_that_was_ended(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a file that nothing else names."""
    downloaded(hub, False, monkeypatch)
    part = cache / "models--org--name/blobs" / f"{'b' * 40}.incomplete"
    part.write_bytes(b"half")
    assert download("--check") == 1
    assert "a download of it was interrupted" in capsys.readouterr().out


def test_a_part_of_another_commit_hides_nothing(
    hub: Hub, cache: Path, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays, to be gone on with; what is there is whole all the same."""
    assert download() == 0
    part = cache / "models--org--name/blobs" / f"{'b' * 64}.part"
    part.write_bytes(b"half")
    assert download() == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not asked)
    assert download("--check") == 0
    assert not interrupted(cache / "models--org--name")
    assert part.exists()


def test_a_whole_model_in_a_cache_that_is_read_only(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert download() == 0

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    for name in ("mkdir", "unlink", "rename", "write_text", "touch"):
        monkeypatch.setattr(Path, name, refuse)
    assert download() == 0


def test_a_part_that_is_no_file(hub: Hub, cache: Path, origin: Path) -> None:
    wanted = plan.ask(NAME, None)
    (file,) = (one for one in wanted.files if one.name == "model-2.safetensors")
    os.mkfifo(wanted.part(file))
    assert download() == 0
    whole(cache, origin)


def test_check_of_a_name_that_leads_to_another_file(
    hub: Hub, cache: Path, origin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its bytes are right for their digest, and wrong for the name: only the hub knows."""
    assert download() == 0
    config, tokenizer = (snapshot(cache) / name for name in ("config.json", "tokenizer.json"))
    blob = tokenizer.resolve()
    config.unlink()
    config.symlink_to(blob)
    assert download("--check") == 1
    assert "config.json is damaged" in capsys.readouterr().out
    assert blob.exists() and tokenizer.exists() and not config.exists()
    assert download() == 0
    whole(cache, origin)


def test_check_where_nothing_can_be_removed(
    hub: Hub,
    cache: Path,
    asked: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A cache that is mounted to be read: root may write everywhere else."""
    downloaded(hub, asked, monkeypatch)
    shutil.rmtree(cache / ".locks")
    blobs = [spoil(cache, name) for name in ("model-1.safetensors", "tokenizer.json")]

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    capsys.readouterr()
    assert download("--check") == 1
    printed = capsys.readouterr()
    for name in ("model-1.safetensors", "tokenizer.json"):
        because = "is damaged, and cannot be taken out of the cache: read-only file system"
        assert f"{name} {because}\n" in printed.out
    assert "2 missing, damaged or unreadable; make" in printed.err and printed.err.count("\n") == 1
    assert all(blob.exists() for blob in blobs)


def test_check_of_what_cannot_be_read(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert download() == 0
    spoil(cache, "tokenizer.json")
    real = store.digest_of

    def torn(path: Path, *others: Any, **named: Any) -> str:
        if path.name == "model-1.safetensors":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, *others, **named)

    monkeypatch.setattr(store, "digest_of", torn)
    assert download("--check") == 1
    out = capsys.readouterr().out
    assert "model-1.safetensors cannot be read: input/output error" in out
    # The rest is compared all the same.
    assert "tokenizer.json is damaged" in out


def test_check_while_another_mends_it(
    hub: Hub, cache: Path, origin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was damaged when it was compared, and is right when the lock is had, stays."""
    assert download() == 0
    blob = spoil(cache, "model-1.safetensors")
    lock = cache / ".locks/models--org--name" / f"{blob.name}.lock"
    mends = "import shutil, sys, time; print(1, flush=True); time.sleep(3); shutil.copy(*sys.argv[1:])"
    command = [sys.executable, "-c", mends, str(origin / "model-1.safetensors"), str(blob)]
    with subprocess.Popen(["flock", str(lock), *command], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        assert download("--check") == 0
    assert "is being fetched by another process" in capsys.readouterr().out
    whole(cache, origin)


def test_check_of_what_has_no_digests(cache: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """A cache that was copied without its links: only the hub can say."""
    assert download() == 0
    copied = [path for path in snapshot(cache).rglob("*") if path.is_file()]
    for path in copied:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    assert download("--check") == 0
    spoil(cache, "tokenizer.json")
    assert download("--check") == 1
    assert "tokenizer.json is damaged, and was taken out" in capsys.readouterr().out
    assert not (snapshot(cache) / "tokenizer.json").exists()
    hub.close()
    assert download("--check") == 2
    assert "cannot be compared" in error(capsys)


@pytest.mark.parametrize("name", ["HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"])
@pytest.mark.parametrize("value", ["abc", "-1", "0", "1.5"])
def test_seconds_that_are_none(name: str, value: str) -> None:
    program = [sys.executable, "-m", "gb10", "download", NAME]
    done = subprocess.run(program, env=environment() | {name: value}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"gb10: error: {name}={value!r} is not a whole number of seconds above 0; unset it\n"
    )


@pytest.mark.parametrize(
    "address", ["http://[bad", "nothing", "http://a b", "http://x:99999", "file:///etc", "//x"]
)
@pytest.mark.parametrize("command", ["download", "audit"])
def test_what_is_no_address_of_a_hub(address: str, command: str) -> None:
    """In a process of its own: huggingface_hub reads it when it is imported."""
    program = [sys.executable, "-m", "gb10", command, NAME]
    done = subprocess.run(
        program, env=environment() | {"HF_ENDPOINT": address}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"gb10: error: HF_ENDPOINT is {address!r}, which is no address; set one such as https://host\n"
    )


@pytest.mark.parametrize("sha", ["../../../elsewhere", "/elsewhere", "main", "a" * 40 + "\n", ""])
def test_a_commit_that_is_none(hub: Hub, cache: Path, sha: str, capsys: pytest.CaptureFixture[str]) -> None:
    hub.sha = sha
    assert download() == 2
    assert "as its commit, which cannot be" in error(capsys)
    assert not cache.exists()


@pytest.mark.parametrize(
    "said", ["rubbish", "bytes 0-1/x", "bytes 7-9/300000", "bytes 99999999999999999999999-"]
)
def test_another_part_than_was_asked_for(
    hub: Hub, cache: Path, origin: Path, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.cut = [1000, 1000]
    hub.content_range = said
    assert download() == 2
    assert "answers with other bytes than were asked for" in error(capsys)
    assert not (cache / "models--org--name/refs/main").exists()
    hub.content_range = ""
    assert download() == 0
    whole(cache, origin)


def test_what_a_file_says_it_is_counts_for_nothing(
    hub: Hub, cache: Path, origin: Path, tmp_path: Path
) -> None:
    """A mirror could write anywhere by that, and give bytes a name that nobody compared."""
    hub.etag = f"../../../../{tmp_path.name}-elsewhere"
    before = sorted(tmp_path.parent.iterdir())
    assert download() == 0
    whole(cache, origin)
    assert hub.sent == WEIGHTS
    assert sorted(tmp_path.parent.iterdir()) == before
    blobs = {path.name for path in (cache / "models--org--name/blobs").iterdir()}
    assert blobs == {path.resolve().name for path in snapshot(cache).iterdir()}


def test_a_hub_that_asks_to_wait(
    hub: Hub, cache: Path, origin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transfer, "PAUSE", 0.01)
    hub.failures, hub.headers = [429], {"Retry-After": "1"}
    began = time.monotonic()
    assert download() == 0
    assert time.monotonic() - began > 1
    assert f"safetensors: {hub.endpoint} answered 429 and asks to wait 1 s" in capsys.readouterr().out
    whole(cache, origin)


def test_a_list_that_is_late(
    hub: Hub, cache: Path, origin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transfer, "PAUSE", 0.01)
    hub.lists, hub.headers = [503, 429], {"Retry-After": "1"}
    assert download() == 0
    assert (
        f"the list of its files: {hub.endpoint} answered 429 and asks to wait 1 s" in capsys.readouterr().out
    )
    whole(cache, origin)
    hub.lists, hub.headers = [503] * 20, {}
    assert download() == 2
    assert "answered 503; check HF_ENDPOINT" in error(capsys)
    assert len(hub.lists) == 20 - transfer.TRIES - 1


def test_a_file_that_is_listed_and_not_there(
    hub: Hub, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.failures = [404] * 10
    assert download() == 2
    assert re.search(r"answered 404 for model-\d.safetensors; check HF_ENDPOINT", error(capsys))


def test_a_hub_that_asks_to_wait_for_years(hub: Hub, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.failures, hub.headers = [429] * 9, {"RateLimit": '"api";r=0;t=99999999'}
    assert download() == 2
    assert "asks to wait 99999999 s; run it again then" in error(capsys)


def test_a_damaged_index_is_not_kept(
    hub: Hub, cache: Path, origin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.damaged = [INDEX]
    assert download() == 2
    assert f"{INDEX} came damaged" in error(capsys)
    assert not (snapshot(cache) / INDEX).exists()
    assert download() == 0
    whole(cache, origin)


def test_an_index_that_is_no_index_at_the_hub(
    hub: Hub, origin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (origin / INDEX).write_text("{torn")
    assert download() == 2
    assert INDEX in error(capsys)
    (origin / INDEX).write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    assert download() == 0


def test_weights_wait_for_all_else(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any time, a model that lacks a file lacks weights."""
    real, seen = store.store, []

    def slow(place: Any, file: listing.File, *others: Any) -> Path:
        if file.name == "tokenizer.json":
            time.sleep(0.5)
        if file.name in SIZES:
            seen.append(sorted(path.name for path in snapshot(cache).iterdir() if path.name not in SIZES))
        return real(place, file, *others)

    monkeypatch.setattr(store, "store", slow)
    assert download() == 0
    assert seen == [sorted(BESIDE)] * len(SIZES)


def test_no_byte_comes_twice_of_a_line_that_breaks_all_the_time(
    hub: Hub, cache: Path, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PAUSE", 0.01)
    hub.cut = [30_000] * 30
    assert download() == 0
    whole(cache, origin)
    assert hub.sent == WEIGHTS


def test_a_copy_that_was_cut_short_is_taken_up(
    hub: Hub, cache: Path, origin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A proxy's: it says no word of it."""
    monkeypatch.setattr(transfer, "PAUSE", 0.01)
    hub.short = [1000, 0, 5000]
    assert download() == 0
    whole(cache, origin)
    assert hub.sent == WEIGHTS
    shutil.rmtree(cache)
    hub.short = [0] * 100
    capsys.readouterr()
    assert download() == 2
    assert re.search(r"broke off \(0 of \d+ bytes of model-\d.safetensors came\)", error(capsys))


def test_bytes_that_another_left_without_a_name_are_compared(
    hub: Hub, cache: Path, origin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the right size; nobody has said that they are right."""
    assert download() == 0
    spoil(cache, "model-1.safetensors")
    (snapshot(cache) / "model-1.safetensors").unlink()
    assert download() == 0
    assert "what was there of it was damaged; fetching it anew" in capsys.readouterr().out
    whole(cache, origin)


def test_a_part_may_get_its_name_while_it_is_counted(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that shows how far it is looks at files that others rename."""
    monkeypatch.setattr(fetch, "_POLL", 0.0)
    for _ in range(5):
        assert download() == 0
        shutil.rmtree(cache)


def test_a_branch_that_moves_to_what_is_there(hub: Hub, cache: Path, origin: Path) -> None:
    assert download() == 0
    (cache / "models--org--name/refs/main").write_text("b" * 40)
    left = cache / "models--org--name/blobs/11.a0b1.incomplete"
    left.touch()
    assert download() == 0
    assert hub.sent == WEIGHTS and not left.exists()
    whole(cache, origin)


def test_a_model_of_other_weights(hub: Hub, origin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in origin.rglob("*"):
        if path.is_file() and (path.name == INDEX or path.suffix in (".safetensors", ".bin")):
            path.unlink()
    (origin / "m.gguf").touch()
    assert download() == 2
    assert "has no weights that vLLM reads with --load-format auto (it has m.gguf)" in error(capsys)


def test_what_nobody_thought_of_is_no_success(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Path:
        raise RuntimeError("nobody thought of it")

    monkeypatch.setattr(store, "store", fail)
    with pytest.raises(RuntimeError, match="nobody thought of it"):
        download()
    monkeypatch.setattr(store, "store", lambda *_: Path("/"))
    assert download() == 2
    assert not (cache / "models--org--name/refs/main").exists()


def test_a_password_in_the_address_is_not_shown(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = hub.endpoint.replace("//", "//user:secret@")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    hub.status = 403
    assert download() == 2
    assert "secret" not in error(capsys)


NAMES = [
    *SIZES,
    *BESIDE,
    *LEFT_OUT,
    "model.safetensors",
    "a.pt",
    "training_args.bin",
    "consolidated.safetensors",
]


@pytest.mark.parametrize(
    ("without", "load_format", "expected"),
    [
        ((), "auto", {"consolidated.safetensors"}),
        ((), "hf", set(SIZES)),
        (("consolidated.safetensors",), "auto", set(SIZES)),
        (("consolidated.safetensors",), "pt", {"a.pt"}),
        (("consolidated.safetensors",), "npcache", {"pytorch_model.bin"}),
    ],
)
def test_which_weights(without: tuple[str, ...], load_format: str, expected: set[str]) -> None:
    names = set(NAMES) - set(without)
    assert plan.weights(names, SIZES, load_format) == expected


def test_weights_without_an_index() -> None:
    names = {"a.safetensors", "b.bin", "x/c.safetensors"}
    assert plan.weights(names, (), "auto") == {"a.safetensors"}
    assert plan.weights({"b.bin", "training_args.bin"}, (), "auto") == {"b.bin"}
    assert plan.weights({"b.gguf"}, (), "auto") == set()
    with pytest.raises(UserError, match="--load-format gguf"):
        plan.weights(names, (), "gguf")


def test_a_file_that_grew_too_long(hub: Hub, cache: Path, origin: Path) -> None:
    wanted = plan.ask(NAME, None)
    (file,) = (one for one in wanted.files if one.name == "model-2.safetensors")
    wanted.part(file).parent.mkdir(parents=True, exist_ok=True)
    wanted.part(file).write_bytes(bytes(400_000))
    assert download() == 0
    whole(cache, origin)


def test_errors_of_the_server_and_resets_are_tried_again(
    hub: Hub, cache: Path, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PAUSE", 0.01)
    hub.failures = [503, 502, 500]
    hub.cut, hub.resets = [100_000, 200_000], True
    assert download() == 0
    whole(cache, origin)


def test_a_server_that_is_down_is_given_up(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transfer, "PAUSE", 0.01)
    hub.failures = [503] * 100
    assert download() == 2
    assert "answered 503" in error(capsys)
    assert len(SIZES) < len(hub.asked) <= len(SIZES) * (transfer.TRIES + 1)


def test_more_than_a_file_has_is_not_written(
    hub: Hub, cache: Path, origin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.longer = 5_000_000
    assert download() == 2
    assert re.search(r"sends more of model-\d.safetensors than its \d+ bytes", error(capsys))
    assert sum(path.stat().st_size for path in cache.rglob("*.part")) < WEIGHTS
    hub.longer = 0
    assert download() == 0
    whole(cache, origin)


def test_weights_are_last(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that was fetched in part lacks weights, and so counts as that, without its hub too."""
    monkeypatch.setattr(fetch, "_THREADS", 1)
    hub.failures = [404] * 100
    assert download() == 2
    assert {path.name for path in snapshot(cache).iterdir()} == set(BESIDE)


def test_parts_of_a_killed_huggingface_hub_are_taken_away(hub: Hub, cache: Path, origin: Path) -> None:
    """With one of them a model never counts as whole; what somebody fetches now stays."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined, unused-ignore]

    blobs, locks = cache / "models--org--name/blobs", cache / ".locks/models--org--name"
    left, held, ours = blobs / "11.a0b1.incomplete", blobs / "22.a0b1.incomplete", blobs / "33.incomplete"
    for folder in (blobs, locks):
        folder.mkdir(parents=True)
    for part in (left, held, ours):
        part.touch()
    with WeakFileLock(locks / "22.lock"):
        assert download() == 0
    assert [part.exists() for part in (left, held, ours)] == [False, True, True]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_without_a_reason(hub: Hub, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    hub.status = status
    assert download() == 2
    assert f"answered {status}; check HF_TOKEN" in error(capsys)


@pytest.mark.parametrize(("words", "status"), [(("download",), 143), (("serve",), 0)])
def test_a_service_that_is_stopped_while_it_fetches(
    hub: Hub, cache: Path, words: tuple[str, ...], status: int, registered: None
) -> None:
    """For systemd, and for a container whose first process hears no signal that it does not ask for."""
    hub.pause = 1.0
    command = [sys.executable, "-m", "gb10", *words, NAME]
    variables = environment() | {"GB10_PROFILE": "cpu", "PORT": str(free_port())}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        while not hub.sent:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == status
    assert out.splitlines()[-1] == "stopped; what was fetched is kept"


@pytest.mark.parametrize(
    ("silent", "damaged", "status"), [(True, [], 1), (False, ["model-1.safetensors"], 2)]
)
def test_a_service_starts_again_when_the_hub_went_away_only(
    hub: Hub, cache: Path, silent: bool, damaged: list[str], status: int, registered: None
) -> None:
    """The unit's RestartPreventExitStatus is 2: what the user has to change."""
    hub.silent, hub.damaged = silent, damaged
    done = subprocess.run(
        [sys.executable, "-m", "gb10", "serve", NAME],
        env=environment() | {"GB10_PROFILE": "cpu", "PORT": str(free_port())},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done
    assert done.stderr.startswith("gb10: error: ") and done.stderr.count("\n") == 1


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
