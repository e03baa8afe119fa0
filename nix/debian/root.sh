# shellcheck shell=bash
# Debian's packages, unpacked and not installed: nixw (which reads this file) takes Nix from them, and the Debian base its
# build root, which is all that builds see as /usr.
#
# The build root is pinned: packages.lock names each package's version and SHA-256, and what all of them give unpacked
# (narHash). So the root is a store path whose name is its content, which root.nix knows too. lock.sh writes packages.lock.
# shellcheck disable=SC2154  # here, cache, nix, unpacked: nixw sets them

readonly root_suite=bookworm # Debian 12, because it has Python 3.11 (CPU torch is built for it)
# What builds see as /usr; all that these need is in packages.lock. Everything else a build needs is a derivation.
readonly root_packages=(
  bash coreutils findutils grep sed gawk tar gzip xz-utils bzip2 unzip patch diffutils file make
  gcc g++ libc6-dev libnuma1 patchelf python3 python3-pip util-linux libc-bin curl
)
# What from-root.nix makes packages of that run after the build, and no build needs: Python's headers (Triton compiles against
# them), RDMA (NCCL opens it by name).
readonly run_time_packages=(libpython3-dev libibverbs1 ibverbs-providers)
readonly asked_packages=("${root_packages[@]}" "${run_time_packages[@]}")
readonly root_lock=$here/nix/debian/packages.lock
readonly lock_command='./nixw run .#lock -- debian'

# The addresses that the machine's apt would fetch signed lists from. Works before the first `apt-get update` too, and writes
# nothing. Debian's cloud images name a list of mirrors in a file.
apt_archives() { apt-get update --print-uris 2>/dev/null | sed -n "s|^'\([^']*\)/dists/\([^']*\)/InRelease'.*|\2 \1|p"; }

# The Debian archive, in $mirror, and the keys that it is verified with, in $keyring: the machine's own, or NIXW_MIRROR and
# NIXW_KEYRING. One line says all that is missing: on Ubuntu, both.
find_archive() {
  local lacking=''
  command -v apt-get >/dev/null || die "no apt-get here; install Nix (nixos.org) >= $min_nix where it can reach nixpkgs, then run this again"
  mirror=${NIXW_MIRROR:-}
  if [ -z "$mirror" ]; then
    mirror=$(apt_archives | cut -d ' ' -f 2- | grep -E '/debian(\.list)?/?$' | head -n 1) || true
  fi
  [ -n "$mirror" ] || lacking="this machine's apt names no Debian archive: set NIXW_MIRROR to one (an address that ends in /debian)"
  [ -z "${NIXW_KEYRING:-}" ] || [ -r "$NIXW_KEYRING" ] || die "NIXW_KEYRING names $NIXW_KEYRING, which cannot be read"
  for keyring in "${NIXW_KEYRING:-}" /usr/share/keyrings/debian-archive-keyring.gpg /usr/share/keyrings/debian-archive-keyring.pgp; do
    if [ -n "$keyring" ] && [ -r "$keyring" ]; then break; fi
    keyring=''
  done
  [ -n "$keyring" ] ||
    lacking="${lacking:+$lacking; }no Debian archive key here, so nothing could be verified: apt-get install debian-archive-keyring (or set NIXW_KEYRING)"
  [ -z "$lacking" ] || die "$lacking"
}

# Where the security suite is, in $security: NIXW_SECURITY_MIRROR, what the machine's apt uses, or the mirror's sibling.
find_security_archive() {
  security=${NIXW_SECURITY_MIRROR:-}
  [ -n "$security" ] || [ -n "${NIXW_MIRROR:-}" ] ||
    security=$(apt_archives | sed -n 's/^[a-z]*-security \(.*debian.*\)/\1/p' | head -n 1) || true
  [ -n "$security" ] || security=${mirror%/}-security
}

# apt_state FOLDER ARCHITECTURE SOURCE…: lists, archives and a package state in FOLDER for the machine's apt ("$apt"), which
# fetches from SOURCES ("ADDRESS SUITE"). The state is empty, so apt resolves every dependency; signatures are checked as
# always; nothing is installed. No ARCHITECTURE is the machine's.
apt_state() {
  local folder=$1 architecture=$2 source
  shift 2
  mkdir -p "$folder/state/lists/partial" "$folder/cache/archives/partial"
  rm -f "$folder/cache/archives"/*.deb
  : >"$folder/state/status"
  for source in "$@"; do
    printf 'deb [signed-by=%s] %s main\n' "$keyring" "$source"
  done >"$folder/sources.list"
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
  [ -z "$architecture" ] || cat >>"$folder/apt.conf" <<CONF
#clear APT::Architectures;
APT::Architecture "$architecture";
APT::Architectures { "$architecture"; };
CONF
  apt=(apt-get -q -c "$folder/apt.conf")
}

# update_lists LOG WHAT: what the archive has now.
update_lists() {
  "${apt[@]}" update -o APT::Update::Error-Mode=any >"$1" 2>&1 || {
    apt_reason "$1"
    die "could not fetch Debian packages ($2); is the mirror reachable? The whole log: $1"
  }
}

apt_reason() { grep -E '^(E|W|Err)' "$1" | tail -n 3 >&2 || true; }

# download SUITE FOLDER PACKAGE…: the packages with all they need, as the archive has them now, in FOLDER/cache/archives.
download() {
  local suite=$1 folder=$2 log=$2.log mirror keyring apt
  shift 2
  find_archive
  apt_state "$folder" '' "${mirror%/} $suite"
  say "fetching from Debian $suite: $*"
  update_lists "$log" "$suite"
  "${apt[@]}" install -y --download-only "$@" >>"$log" 2>&1 || {
    apt_reason "$log"
    die "could not fetch Debian packages ($suite); is the mirror reachable? The whole log: $log"
  }
}

# unpack_files TARGET DEB…: the packages' files, with a merged /usr as Debian installs it: packages of this age still ship
# files below /bin and /lib.
unpack_files() {
  local target=$1 deb dir count=0
  shift
  for dir in bin sbin lib lib64; do
    mkdir -p "$target/usr/$dir"
    ln -s "usr/$dir" "$target/$dir"
  done
  for deb in "$@"; do
    count=$((count + 1))
    [ ! -t 2 ] || printf '\rnixw: unpacking %d of %d ' "$count" "$#" >&2
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$target" --keep-directory-symlink --no-same-owner --exclude=./usr/share/doc --exclude=./usr/share/man --exclude=./usr/share/locale ||
      die "could not unpack ${deb##*/} below $cache; is the disk full?"
  done
  [ ! -t 2 ] || printf '\r\033[K' >&2
  # Which shell is "sh" and which compiler is "cc" is decided when Debian installs; nothing is installed here.
  [ -e "$target/usr/bin/sh" ] || ln -s bash "$target/usr/bin/sh"
  [ ! -e "$target/usr/bin/gcc" ] || ln -sf gcc "$target/usr/bin/cc"
  [ ! -e "$target/usr/bin/g++" ] || ln -sf g++ "$target/usr/bin/c++"
  chmod -R u+rwX,go+rX "$target"
}

# unpack SUITE TARGET PACKAGE…: fetch the packages with all they need and unpack them into TARGET, whole or not at all.
# Does nothing where TARGET holds what was asked for.
unpack() {
  local suite=$1 target=$2 folder=$cache/apt/$1 debs
  local requested="layout 5: $*"
  if [ "$(cat "$target/requested" 2>/dev/null)" = "$requested" ]; then return; fi
  shift 2
  mkdir -p "$folder"
  tmp=$(mktemp -d "$cache/.unpacking.XXXXXX")
  trap 'rm -rf "$tmp"' EXIT
  download "$suite" "$folder" "$@"
  debs=("$folder/cache/archives"/*.deb)
  [ -e "${debs[0]}" ] || die "apt fetched no packages ($suite); see $folder.log"
  unpack_files "$tmp" "${debs[@]}"
  amount_fetched "$folder.log" >"$tmp/fetched"
  printf '%s\n' "$requested" >"$tmp/requested"
  rm -rf "$target"
  mv "$tmp" "$target"
  say "unpacked ${#debs[@]} packages; fetched $(cat "$target/fetched")"
  rm -rf "$folder"
  trap - EXIT
}

# In apt's own words, from its log: "51.2 MB".
amount_fetched() { sed -n 's/^Fetched \(.*\) in .*/\1/p' "$1" | paste -sd+; }

# ------------------------------------------------------------------------------------------------ the pinned root

# Nix's older commands, which take many paths at once.
nix_store() {
  if [ -z "$unpacked" ] && command -v nix-store >/dev/null; then
    nix-store "$@"
  else
    (exec -a nix-store "$nix" "$@")
  fi
}

# Where a store path lies: a store of the user's own has its /nix in another folder.
in_store() {
  local prefix=''
  case ${NIX_REMOTE:-} in
    local\?root=*) prefix=${NIX_REMOTE#*=} ;;
    /*) prefix=$NIX_REMOTE ;;
  esac
  printf '%s%s' "${prefix%%&*}" "$1"
}

# of_root LOCK SYSTEM ATTRIBUTE: what root.nix says.
of_root() {
  "$nix" eval --read-only --impure --raw --file "$here/nix/debian/root.nix" --argstr lockFile "$1" --argstr system "$2" "$3" 2>"$cache/lock.log"
}

debian_architecture() { case $1 in x86_64-linux) echo amd64 ;; aarch64-linux) echo arm64 ;; esac; }

# root_state SYSTEM: apt for that system's build root, with the security suite.
root_state() {
  find_archive
  find_security_archive
  apt_state "$cache/apt/root-$1" "$(debian_architecture "$1")" "${mirror%/} $root_suite" "${security%/} $root_suite-security"
}

# provide_packages LOCK SYSTEM: the packages that a lock names, in "${debs[@]}": store paths, fetched where the store lacks
# them. apt verifies the archive's signature; the lock's SHA-256 decides.
provide_packages() {
  local lock=$1 system=$2 folder=$cache/apt/root-$2 log=$cache/apt/root-$2.log list lacking wanted=() files=()
  local path name version architecture sha256 file vanished mirror keyring security apt
  list=$(of_root "$lock" "$system" list) || die "cannot read nix/debian/packages.lock (see $cache/lock.log); write it anew: $lock_command"
  mapfile -t debs < <(cut -d ' ' -f 1 <<<"$list")
  lacking=$(nix_store --check-validity --print-invalid "${debs[@]}") || die "Nix cannot look into its store"
  [ -n "$lacking" ] || return 0
  while read -r path name version architecture sha256; do
    [[ $'\n'$lacking$'\n' != *$'\n'$path$'\n'* ]] || wanted+=("$name=$version")
  done <<<"$list"
  root_state "$system"
  # A mirror may be behind: the hashes say what is taken.
  printf 'Acquire::Check-Valid-Until "0";\n' >>"$folder/apt.conf"
  say "fetching ${#wanted[@]} of ${#debs[@]} packages of Debian $root_suite for $system"
  update_lists "$log" "$root_suite"
  (cd "$folder/cache/archives" && "${apt[@]}" download "${wanted[@]}") >>"$log" 2>&1 || {
    vanished=$(sed -n "s/^E: Version '\(.*\)' for '\(.*\)' was not found/\2 \1/p; s/^E: Unable to locate package \(.*\)/\1/p" "$log" | sort -u | paste -sd, | sed 's/,/, /g')
    [ -z "$vanished" ] || die "the Debian archive has other versions than packages.lock, which names: $vanished. Take the archive's: $lock_command"
    apt_reason "$log"
    die "could not fetch Debian packages ($root_suite); is the mirror reachable? The whole log: $log"
  }
  while read -r path name version architecture sha256; do
    [[ " ${wanted[*]} " == *" $name=$version "* ]] || continue
    file=$folder/cache/archives/${name}_${version//:/%3a}_$architecture.deb
    [ -e "$file" ] || die "apt did not fetch $name $version; see $log"
    [ "$(sha256sum <"$file")" = "$sha256  -" ] ||
      die "the Debian archive's $name $version has not the SHA-256 that packages.lock names; nothing was taken (see $file)"
    # As the store names it.
    path=${path##*/}
    [ "$file" = "$folder/cache/archives/${path#*-}" ] || mv "$file" "$folder/cache/archives/${path#*-}"
    files+=("$folder/cache/archives/${path#*-}")
  done <<<"$list"
  nix_store --add-fixed sha256 "${files[@]}" >/dev/null || die "could not add Debian packages to the store; is the disk full?"
  mkdir -p "$cache/roots"
  amount_fetched "$log" >>"$cache/roots/fetched"
  rm -rf "$folder"
}

# unpack_root LOCK SYSTEM FOLDER: the build root of a lock.
unpack_root() {
  local debs deb files=()
  provide_packages "$1" "$2"
  for deb in "${debs[@]}"; do files+=("$(in_store "$deb")"); done
  unpack_files "$3" "${files[@]}"
  # Nothing else of it is seen by builds.
  find "$3" -mindepth 1 -maxdepth 1 ! -name usr ! -name bin ! -name sbin ! -name lib ! -name lib64 -exec rm -rf {} +
}

# root_link SYSTEM: what keeps the lock's build root from Nix's garbage collector.
root_link() { printf '%s/roots/%s-%s' "$cache" "$1" "$(sha256sum <"$root_lock" | cut -c 1-16)"; }

# provide_root SYSTEM: in $root the folder of that system's build root, a store path. A link in the cache is its root for
# Nix's garbage collector; links that were not used for a month go.
provide_root() {
  local system=$1 link path added
  [ -s "$root_lock" ] || die "there is no nix/debian/packages.lock; write it: $lock_command"
  grep -q -x -F "  \"asked\": \"${asked_packages[*]}\"," "$root_lock" ||
    die "nix/debian/packages.lock is not of the packages that nix/debian/root.sh asks for; write it anew: $lock_command"
  link=$(root_link "$system")
  path=$(readlink "$link" 2>/dev/null) || path=''
  root=$(in_store "$path")
  if [ -n "$path" ] && [ -e "$root/usr/bin/bash" ]; then
    touch -h "$link"
    return
  fi
  path=$(of_root "$root_lock" "$system" path) || die "cannot read nix/debian/packages.lock (see $cache/lock.log); write it anew: $lock_command"
  if [ -n "$(nix_store --check-validity --print-invalid "$path")" ]; then
    tmp=$(mktemp -d "$cache/.unpacking.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    unpack_root "$root_lock" "$system" "$tmp/root"
    added=$("$nix" store add --name "${path#*-}" "$tmp/root") || die "could not add the build root to the store; is the disk full?"
    [ "$added" = "$path" ] ||
      die "the packages of packages.lock unpack to $added, not to $path as it says; write it anew: $lock_command"
    rm -rf "$tmp"
    trap - EXIT
    say "the build root of $system: $path"
  fi
  mkdir -p "$cache/roots"
  find "$cache/roots" -type l -mtime +30 -delete
  nix_store --realise --add-root "$link" "$path" >/dev/null || die "could not keep $path from Nix's garbage collector"
  root=$(in_store "$path")
}

# Can builds be closed in here? A container often forbids it. Where it cannot be told, Nix will say.
may_sandbox() { ! command -v unshare >/dev/null || unshare --mount --ipc --uts --net --pid --fork true 2>/dev/null || user_namespaces; }

# builds ARGUMENTS OF NIX: could they build something? To evaluate takes no build root.
builds() {
  case "$1 ${2:-}" in
    eval\ * | flake\ show | flake\ metadata | flake\ info | flake\ archive | derivation\ *) return 1 ;;
    flake\ check) [[ " $* " != *" --no-build "* ]] ;;
  esac
}

# provide_debian_base ARGUMENTS OF NIX: the build root, and the settings that make Nix build in it.
provide_debian_base() {
  local paths root
  [ -z "$unpacked" ] || may_sandbox ||
    say "namespaces are closed here (a container?): the flake can be shown, but builds will fail; for Docker and Podman use --privileged"
  builds "$@" || return 0
  provide_root "$system"
  paths=$(
    printf '%s\n' "/usr=$root/usr" "/bin=$root/bin" "/lib=$root/lib" "/lib64=$root/lib64"
    pip_files
    pip_local_folders
  )
  setting sandbox true
  setting sandbox-fallback false
  setting sandbox-paths "${paths//$'\n'/ }"
  setting substituters ''
}
