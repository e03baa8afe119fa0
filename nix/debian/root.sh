# shellcheck shell=bash
# Debian's packages, unpacked and not installed: nixw (which reads this file) takes Nix from them, and the Debian base its
# build root, which is all that builds see as /usr.
# shellcheck disable=SC2154  # here, cache, unpacked: nixw sets them

readonly root_suite=bookworm # Debian 12, because it has Python 3.11 (CPU torch is built for it)
# Stands for the way in which `unpack` unpacks: part of the root's identity. Raise it when that changes.
readonly layout=4
# What builds see as /usr. Everything else a build needs is a derivation.
readonly root_packages=(
  bash coreutils findutils grep sed gawk tar gzip xz-utils bzip2 unzip patch diffutils file make
  gcc g++ libc6-dev libnuma1 patchelf python3 python3-pip util-linux libc-bin curl
)
# What from-root.nix makes packages of that run after the build, and no build needs: Python's headers (Triton compiles against
# them), RDMA (NCCL opens it by name).
readonly run_time_packages=(libpython3-dev libibverbs1 ibverbs-providers)

# The machine's Debian archive, in $mirror: what its own apt uses, or NIXW_MIRROR.
find_mirror() {
  mirror=${NIXW_MIRROR:-}
  if [ -z "$mirror" ]; then
    command -v apt-get >/dev/null || die "no Nix >= $min_nix and no apt-get here; install Nix (nixos.org), then run this again"
    # Works before the first `apt-get update` too, and writes nothing. Debian's cloud images name a list of mirrors in a file.
    mirror=$(apt-get update --print-uris 2>/dev/null | sed -n "s|^'\([^']*\)/dists/[^']*/InRelease'.*|\1|p" | grep -E '/debian(\.list)?/?$' | head -n 1) || true
    [ -n "$mirror" ] || die "this machine's apt names no Debian archive; set NIXW_MIRROR to one (an address that ends in /debian)"
  fi
}

# The keys that the archive is verified with, in $keyring.
find_keyring() {
  for keyring in "${NIXW_KEYRING:-}" /usr/share/keyrings/debian-archive-keyring.gpg /usr/share/keyrings/debian-archive-keyring.pgp; do
    if [ -n "$keyring" ] && [ -r "$keyring" ]; then return; fi
  done
  die "no Debian archive key here, so nothing could be verified; run: apt-get install debian-archive-keyring (or set NIXW_KEYRING)"
}

# download SUITE FOLDER PACKAGE…: the packages with all they need, in FOLDER/cache/archives. The machine's apt works on lists,
# archives and a package state of its own. The state is empty, so apt resolves every dependency; signatures are checked as
# always; nothing is installed.
download() {
  local suite=$1 folder=$2 log=$2.log mirror keyring apt
  shift 2
  find_mirror
  find_keyring
  mkdir -p "$folder/state/lists/partial" "$folder/cache/archives/partial"
  rm -f "$folder/cache/archives"/*.deb
  : >"$folder/state/status"
  printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "${mirror%/}" "$suite" >"$folder/sources.list"
  # Read after the machine's own settings (proxies and the like), so that these win. Hooks of the machine would change it.
  cat >"$folder/apt.conf" <<CONF
Dir::State "$folder/state";
Dir::State::status "$folder/state/status";
Dir::Cache "$folder/cache";
Dir::Cache::archives "archives/";
Dir::Etc::SourceList "$folder/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
APT::Install-Recommends "0";
APT::Install-Suggests "0";
APT::Sandbox::User "root";
APT::Get::AllowUnauthenticated "0";
Acquire::AllowInsecureRepositories "0";
Acquire::Languages "none";
Acquire::Retries "3";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
CONF
  say "fetching from Debian $suite: $*"
  apt=(apt-get -q -c "$folder/apt.conf")
  { "${apt[@]}" update -o APT::Update::Error-Mode=any && "${apt[@]}" install -y --download-only "$@"; } >"$log" 2>&1 || {
    grep -E '^(E|W|Err)' "$log" | tail -n 3 >&2
    die "could not fetch Debian packages ($suite); is the mirror reachable? The whole log: $log"
  }
}

# unpack SUITE TARGET PACKAGE…: fetch the packages with all they need and unpack them into TARGET, whole or not at all.
# Does nothing where TARGET holds what was asked for.
unpack() {
  local suite=$1 target=$2 folder=$cache/apt/$1 deb debs dir count=0
  local requested="layout $layout: $*"
  if [ "$(cat "$target/requested" 2>/dev/null)" = "$requested" ]; then return; fi
  shift 2
  mkdir -p "$folder"
  tmp=$(mktemp -d "$cache/.unpacking.XXXXXX")
  trap 'rm -rf "$tmp"' EXIT
  download "$suite" "$folder" "$@"
  debs=("$folder/cache/archives"/*.deb)
  [ -e "${debs[0]}" ] || die "apt fetched no packages ($suite); see $folder.log"
  echo "layout $layout" >"$tmp/packages"
  # Merged /usr, as Debian installs it: packages of this age still ship files below /bin and /lib.
  for dir in bin sbin lib lib64; do
    mkdir -p "$tmp/usr/$dir"
    ln -s "usr/$dir" "$tmp/$dir"
  done
  for deb in "${debs[@]}"; do
    count=$((count + 1))
    [ ! -t 2 ] || printf '\rnixw: unpacking %d of %d ' "$count" "${#debs[@]}" >&2
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$tmp" --keep-directory-symlink --no-same-owner --exclude=./usr/share/doc --exclude=./usr/share/man --exclude=./usr/share/locale ||
      die "could not unpack ${deb##*/} below $cache; is the disk full?"
    # shellcheck disable=SC2016
    dpkg-deb --show --showformat '${Package} ${Version} ${Architecture}\n' "$deb" >>"$tmp/packages"
  done
  [ ! -t 2 ] || printf '\r\033[K' >&2
  LC_ALL=C sort -o "$tmp/packages" "$tmp/packages"
  sed -n 's/^Fetched \(.*\) in .*/\1/p' "$folder.log" | paste -sd+ >"$tmp/fetched"
  # Which shell is "sh" and which compiler is "cc" is decided when Debian installs; nothing is installed here.
  [ -e "$tmp/usr/bin/sh" ] || ln -s bash "$tmp/usr/bin/sh"
  [ ! -e "$tmp/usr/bin/gcc" ] || ln -sf gcc "$tmp/usr/bin/cc"
  [ ! -e "$tmp/usr/bin/g++" ] || ln -sf g++ "$tmp/usr/bin/c++"
  printf '%s\n' "$requested" >"$tmp/requested"
  chmod -R u+rwX,go+rX "$tmp"
  rm -rf "$target"
  mv "$tmp" "$target"
  say "unpacked $count packages; fetched $(cat "$target/fetched")"
  rm -rf "$folder"
  trap - EXIT
}

# Can builds be closed in here? A container often forbids it. Where it cannot be told, Nix will say.
may_sandbox() { ! command -v unshare >/dev/null || unshare --mount --ipc --uts --net --pid --fork true 2>/dev/null || user_namespaces; }

# The Debian base: the build root, its identity ($base_dir: nix/debian beside the list of the root's packages), and the
# settings that make Nix build in it.
provide_debian_base() {
  local root=$cache/root id paths
  [ -z "$unpacked" ] || may_sandbox ||
    say "namespaces are closed here (a container?): the flake can be shown, but builds will fail; for Docker and Podman use --privileged"
  unpack "$root_suite" "$root" "${root_packages[@]}" "${run_time_packages[@]}"
  id=$(sha256sum "$root/packages" | cut -c 1-16)
  base_dir=$cache/base-$id
  if ! diff -rq --exclude=packages --exclude=flake.lock "$here/nix/debian" "$base_dir" >/dev/null 2>&1; then
    rm -rf "$base_dir.new"
    cp -r "$here/nix/debian" "$base_dir.new"
    cp "$root/packages" "$base_dir.new/packages"
    rm -rf "$base_dir"
    mv "$base_dir.new" "$base_dir"
  fi
  paths=$(
    printf '%s\n' "/usr=$root/usr" "/bin=$root/bin" "/lib=$root/lib"
    [ ! -e "$root/lib64" ] || printf '%s\n' "/lib64=$root/lib64"
    pip_files
    pip_local_folders
  )
  setting sandbox true
  setting sandbox-fallback false
  setting sandbox-paths "${paths//$'\n'/ }"
  setting substituters ''
}
