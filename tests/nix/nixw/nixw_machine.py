"""A machine of fakes: `nix`, `apt-get`, `dpkg-deb` and `unshare` are fake, and few real tools are there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
REVISION = "0123456789abcdef0123456789abcdef01234567"
# What nixw takes for granted on any Debian. Nothing else of the real machine is on its PATH.
TOOLS = """
    awk basename bash cat chmod cmp cp cut dirname du env find flock grep head id ln ls mkdir mktemp mv paste
    printf readlink rm sed sh sha256sum sleep sort stat tail tar touch tr uname wc xargs
"""

# Writes each call's arguments to $FAKE/calls: items end in NUL, calls in a line "end". Its store knows
# content by the first 32 digits of a SHA-256; a folder's is that of its files, one after another.
NIX = r"""
if [ "$*" = --version ]; then echo "$FAKE_NIX_NAME $FAKE_NIX_VERSION"; exit "${FAKE_NIX_STATUS:-0}"; fi
{ printf '%s\0' "$@"; printf 'end\n'; } >>"$FAKE/calls"
printf '%s\n' "${NIX_REMOTE:-}" >"$FAKE/remote"
printf '%s\n' "${HOME:-}" >"$FAKE/home"
printf '%s\n' "${NIX_CONFIG:-}" >"$FAKE/config"
printf '%s\n' "${NIX_CACHE_HOME:-}" "${NIX_STATE_HOME:-}" "${NIX_DATA_HOME:-}" >"$FAKE/homes"
case ${NIX_REMOTE:-} in local*) store=${NIX_REMOTE#*=} ;; *) store=$FAKE ;; esac
last=${@: -1}
digits() { sha256sum | cut -c 1-32; }
folder_digits() { (cd "$1" && find . -type f | LC_ALL=C sort | xargs cat | digits); }
case " $* " in
  *" flake prefetch "*) exit "$FAKE_PREFETCH_STATUS" ;;
  *" store add --name "*)
    path=/nix/store/$(folder_digits "$last")-$4
    mkdir -p "$store/nix/store"
    cp -r "$last" "$store$path"
    echo "$path" ;;
  *" store add "*) echo "/nix/store/0000-$last" ;;
  *" store info "*) cat "$FAKE/info" 2>/dev/null || exit 1 ;;
  *" path-info "*) ;;
  *" hash path "*) folder_digits "$last" ;;
  *" --check-validity "*)
    for path; do case $path in /*) [ -e "$store$path" ] || echo "$path" ;; esac; done ;;
  *" --add-fixed "*)
    mkdir -p "$store/nix/store"
    for file in "${@:3}"; do cp "$file" "$store/nix/store/$(digits <"$file")-${file##*/}"; done ;;
  *" --add-root "*) ln -sfn "$last" "$3" ;;
  *"/root.nix --argstr lockFile "*)
    # What root.nix says of the packages.lock that it is given.
    lock=${@: -5:1} system=${@: -2:1}
    awk -F '"' -v of="$system" -v what="$last" '
      $2 ~ /-linux$/ { on = ($2 == of) }
      on && $2 == "narHash" && what == "path" { print "/nix/store/" $4 "-debian-root"; found = 1 }
      on && $2 == "name" && what == "list" {
        file = $4 "_" $8 "_" $12 ".deb"
        gsub(/[:~]/, "-", file)
        print "/nix/store/" substr($18, 1, 32) "-" file, $4, $8, $12, $18
        found = 1
      }
      END { exit !found }' "$lock" ;;
  *) echo "nix ran"; exit "${FAKE_RUN_STATUS:-0}" ;;
esac
"""

# "Downloads" what lies in $FAKE/debs/SUITE (root-SYSTEM for a build root). $FAKE_APT says how it goes wrong.
APT_GET = """
if [ "$*" = "update --print-uris" ]; then cat "$FAKE/uris"; exit; fi
while [ "$#" -gt 0 ]; do
  case $1 in
    -c) conf=$2; shift ;;
    update | install | download) word=$1; shift; break ;;
  esac
  shift
done
folder=$(dirname "$conf")
suite=$(basename "$folder")
case " $* " in *" --print-uris "*) ;; *) echo "$word $suite" >>"$FAKE/apt" ;; esac
cp "$conf" "$FAKE/apt.conf"
cp "$folder/sources.list" "$FAKE/sources.list"
if [ "$word" = update ]; then
  if [ "${FAKE_APT:-}" = unreachable ]; then echo "E: Failed to fetch" >&2; exit 100; fi
  exit 0
fi
case $word:$1 in
  install:-y)
    if [ "$2" = --print-uris ]; then
      for file in "$FAKE/debs/$suite"/*.deb; do echo "'http://m.invalid/a.deb' ${file##*/} 10 MD5Sum:0"; done
      exit
    fi ;;
  download:--print-uris)
    shift
    for file in "$FAKE/debs/$suite"/*.deb; do
      sum=$(sha256sum <"$file")
      echo "'http://m.invalid/a.deb' ${file##*/} $(wc -c <"$file") SHA256:${sum%% *}"
    done
    exit ;;
  download:*)
    status=0
    for package; do
      name=${package%%=*} version=${package#*=}
      if ! cp "$FAKE/debs/$suite/${name}_${version/:/%3a}"_*.deb . 2>/dev/null; then
        echo "E: Version '$version' for '$name' was not found" >&2
        status=100
      fi
    done
    if [ "${FAKE_APT:-}" = slow ]; then : >"$FAKE/waiting"; sleep "$FAKE_SECONDS"; fi
    echo "Fetched 4567 kB in 1s (12 MB/s)"
    exit $status ;;
esac
cp "$FAKE/debs/$suite"/a*.deb "$folder/cache/archives/"
if [ "${FAKE_APT:-}" = slow ]; then : >"$FAKE/waiting"; sleep "$FAKE_SECONDS"; fi
if [ "${FAKE_APT:-}" = half ]; then echo "E: Unable to fetch some archives" >&2; exit 100; fi
cp "$FAKE/debs/$suite"/*.deb "$folder/cache/archives/"
echo "Fetched 12.3 MB in 1s (12 MB/s)"
"""

# A fake .deb is a tar of its files.
DPKG_DEB = """
case $1 in
  --fsys-tarfile)
    case $2:${FAKE_DPKG:-} in
      *b_*:slow | *-python*:slow) head -c 600 "$2"; : >"$FAKE/waiting"; sleep "$FAKE_SECONDS" ;;
      *b_*:broken | *-python*:broken)
        head -c 600 "$2"
        echo "dpkg-deb: error: unexpected end of file" >&2
        exit 2 ;;
    esac
    exec cat "$2" ;;
  --show) echo "$(basename "${@: -1}" .deb) 1.0 all" ;;
esac
"""

EMULATORS = ("qemu-aarch64", "qemu-m68k")
SYSTEMS = {"x86_64-linux": "amd64", "aarch64-linux": "arm64"}
# The build root's packages, by name and version as apt names their files, and their files.
ROOT = {
    "base_1.0~b1": {
        "usr/bin/bash": "exit 0\n",
        "usr/bin/gcc": "exit 0\n",
        "usr/lib64/ld.so": "",
        "etc/motd": "",
    },
    "python_1%3a2.0": {"usr/bin/python3": "exit 0\n"},
}

# Nothing is closed in by it; what nixw starts through emulate.sh is started without QEMU.
UNSHARE = """
if [ "$FAKE_UNSHARE_STATUS" = 0 ]; then
  while [ "$#" -gt 0 ]; do
    case $1 in
      */emulate.sh)
        [ -x "$2" ] && echo "$2" >"$FAKE/emulator"
        shift 2
        exec "$@" ;;
    esac
    shift
  done
fi
exit "$FAKE_UNSHARE_STATUS"
"""

# The loader of the unpacked Nix: called with options that have a value, then PROGRAM ARGUMENTS.
LOADER = 'while [[ $1 == --* ]]; do shift 2; done\nexec bash "$@"'

# --set-interpreter LOADER --force-rpath --set-rpath FOLDER --output FILE PROGRAM
PATCHELF = """
[ "$1 $3 $4 $6" = "--set-interpreter --force-rpath --set-rpath --output" ] && [ -x "$2" ] && [ -d "$5" ]
cp "$8" "$7"
"""


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Machine:
    """A checkout with nixw, fakes, a home that must stay empty, and a cache folder."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    # Where nixw is called; the checkout if nothing else is said.
    current: Path | None = None

    @property
    def home(self) -> Path:
        """HOME."""
        return self.folder / "home"

    @property
    def cache(self) -> Path:
        """NIXW_CACHE; nixw makes it."""
        return self.folder / "cache"

    @property
    def fake(self) -> Path:
        """Where the fakes keep their records."""
        return self.folder / "fake"

    @property
    def nixw(self) -> Path:
        """The copy of nixw under test."""
        return self.folder / "checkout" / "nixw"

    @property
    def half_made(self) -> list[Path]:
        """Folders of an unpacking that did not end."""
        return sorted(self.cache.glob(".unpacking.*"))

    def add_program(self, name: str, text: str) -> None:
        """Put a fake on PATH."""
        _write_program(self.folder / "bin" / name, text)

    def change(self, old: str, new: str, file: str = "nixw") -> None:
        """Replace a machine's fixed path or test in the copy of nixw; it must be there."""
        path = self.nixw.parent / file
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start nixw in a process group of its own."""
        bash = self.folder / "tools" / "bash"
        return subprocess.Popen(
            [str(bash), str(self.nixw), *arguments],
            env=self.environment | environment,
            cwd=self.current or self.folder / "checkout",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A test run in the background ignores SIGINT, and a shell that starts so cannot undo that.
            preexec_fn=_heed_interrupts,
            start_new_session=True,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run nixw to its end."""
        with self.start(*arguments, **environment) as process:
            try:
                out, err = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def wait_until_busy(self) -> None:
        """Wait until a slow fake says that it is at work."""
        end = time.monotonic() + 30
        while not (self.fake / "waiting").exists():
            assert time.monotonic() < end, "the fake was not called"
            time.sleep(0.02)
        (self.fake / "waiting").unlink()

    @property
    def root(self) -> Path:
        """Where the fake store has the build root of the checkout's lock."""
        lock = json.loads((self.nixw.parent / "nix/debian/packages.lock").read_text())
        return self.fake / f"nix/store/{lock['systems']['x86_64-linux']['narHash']}-debian-root"

    def calls(self) -> list[list[str]]:
        """Arguments of each call of nix but `nix --version`."""
        record = self.fake / "calls"
        if not record.exists():
            return []
        return [call.split("\0")[:-1] for call in record.read_text().split("end\n")[:-1]]

    def apt_calls(self) -> list[str]:
        """`update SUITE` and `install SUITE`, in order."""
        record = self.fake / "apt"
        return record.read_text().splitlines() if record.exists() else []

    def settings(self) -> dict[str, str]:
        """What NIX_CONFIG held at the last call of nix."""
        lines = (self.fake / "config").read_text().splitlines()
        pairs = [line.partition(" = ") for line in lines if line]
        return {name: value for name, _, value in pairs}


def _write_program(path: Path, text: str) -> None:
    path.write_text(f"#!{shutil.which('bash')}\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def write_package(path: Path, files: dict[str, str]) -> None:
    """Write a fake .deb with these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.mode = 0o755
            data = text.encode()
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def _make_packages(debs: Path) -> None:
    bash = shutil.which("bash")
    library = "usr/lib/x86_64-linux-gnu"
    (debs / "stable").mkdir(parents=True)
    write_package(
        debs / "stable" / "a_libs.deb",
        {f"{library}/ld-linux-x86-64.so.2": f"#!{bash}\n{LOADER}\n", f"{library}/libnixstore.so": ""},
    )
    programs = {"nix": f"#!{bash}\n{NIX}", "git": "exit 0\n", "patchelf": f"set -e\n{PATCHELF}"}
    write_package(debs / "stable" / "b_nix.deb", {f"usr/bin/{name}": text for name, text in programs.items()})
    write_package(debs / "stable" / "c_qemu.deb", {f"usr/bin/{name}": "exit 0\n" for name in EMULATORS})
    for system, architecture in SYSTEMS.items():
        for file, files in ROOT.items():
            write_package(debs / f"root-{system}" / f"{file}_{architecture}.deb", files)


def write_lock(made: Machine) -> None:
    """Write packages.lock of what the archive has, as `nix run .#lock -- debian` does."""
    files = {name: text for part in ROOT.values() for name, text in part.items() if name.startswith("usr/")}
    content = "".join(files[name] for name in sorted(files))
    nar_hash = hashlib.sha256(content.encode()).hexdigest()[:32]
    asked = json.loads((CHECKOUT / "nix/debian/packages.lock").read_text())["asked"]
    parts = []
    for system in SYSTEMS:
        packages = []
        for deb in sorted((made.fake / f"debs/root-{system}").glob("*.deb")):
            name, version, architecture = deb.stem.replace("%3a", ":").split("_")
            digest = hashlib.sha256(deb.read_bytes()).hexdigest()
            packages.append(
                f'        {{"name": "{name}", "version": "{version}", "architecture": "{architecture}", '
                f'"size": {deb.stat().st_size}, "sha256": "{digest}"}}'
            )
        parts.append(
            f'    "{system}": {{\n      "narHash": "{nar_hash}",\n'
            '      "packages": [\n' + ",\n".join(packages) + "\n      ]\n    }"
        )
    (made.nixw.parent / "nix/debian/packages.lock").write_text(
        f'{{\n  "suite": "bookworm",\n  "asked": "{asked}",\n  "systems": {{\n'
        + ",\n".join(parts)
        + "\n  }\n}\n"
    )


def make_machine(folder: Path) -> Machine:
    """A bare Debian in an empty folder: apt works, there is no Nix, the user may write /nix."""
    made = Machine(folder)
    for name in ("home", "fake", "bin", "tools", "checkout/nix", "checkout/python/locks", "wheels"):
        (folder / name).mkdir(parents=True)
    for tool in TOOLS.split():
        # Which awk is "awk" is decided when Debian installs; in the build root nothing is installed.
        found = shutil.which(tool) or shutil.which(f"g{tool}")
        if found:
            (folder / "tools" / tool).symlink_to(found)
    for name, text in {"apt-get": APT_GET, "dpkg-deb": DPKG_DEB, "unshare": UNSHARE}.items():
        made.add_program(name, text)
    _make_packages(made.fake / "debs")
    (made.fake / "uris").write_text(
        "'http://site.invalid/other/dists/x/InRelease' site_InRelease 0 \n"
        "'http://mirror.invalid/debian/dists/bookworm/InRelease' mirror_InRelease 0 \n"
    )
    shutil.copy(CHECKOUT / "nixw", made.nixw)
    shutil.copytree(CHECKOUT / "nix/debian", folder / "checkout/nix/debian")
    (folder / "checkout/flake.lock").write_text(
        f'{{\n "nodes": {{\n  "nixpkgs": {{\n   "locked": {{\n    "rev": "{REVISION}"\n'
        '   },\n   "original": { "type": "github" }\n  }\n }\n}\n'
    )
    wheel = hashlib.sha256(b"a wheel").hexdigest()
    (folder / "checkout/python/locks/pylock.cpu.toml").write_text(
        f'packages = [\n{{ wheels = [{{ path = "torch-2.whl", hashes = {{ sha256 = "{wheel}" }} }}] }},\n]\n'
    )
    (folder / "keyring.gpg").write_text("keys")
    (folder / "bundle.crt").write_text("certificates")
    made.change("local prefix=''", "local prefix=$FAKE", "nix/debian/root.sh")
    write_lock(made)
    # The test may run as any user, on a machine with or without /nix.
    made.change("[ -w /nix/store ] || { [ ! -e /nix ] && [ -w / ]; }", '"$FAKE_MAY_WRITE_NIX"')
    made.environment = {
        "PATH": f"{folder}/bin:{folder}/tools",
        "HOME": str(made.home),
        "NIXW_CACHE": str(made.cache),
        "NIXW_KEYRING": str(folder / "keyring.gpg"),
        "NIX_SSL_CERT_FILE": str(folder / "bundle.crt"),
        "FAKE": str(made.fake),
        "FAKE_NIX_NAME": "nix (Nix)",
        "FAKE_NIX_VERSION": "2.26.3",
        "FAKE_PREFETCH_STATUS": "1",
        "FAKE_UNSHARE_STATUS": "0",
        "FAKE_MAY_WRITE_NIX": "true",
        "FAKE_SECONDS": "60",
    }
    return made
