# shellcheck shell=bash
# `nix run .#lock -- debian`: writes packages.lock, whole or not at all. It needs apt and no build root; nixw runs it.
# shellcheck disable=SC2154  # here, cache, nix: nixw sets them

readonly lock_systems=(x86_64-linux aarch64-linux)

lock_usage() {
  cat <<'HELP'
usage: ./nixw run .#lock -- debian [--check]

Writes nix/debian/packages.lock: name, version, SHA-256 and size of each package of the Debian base's build root, as the
Debian archive and its security suite have them now, for x86_64 and aarch64, and the hash of what they unpack to. Prints
what changed. Review the change like one of flake.lock: everything that is built on the Debian base is built anew.

  --check   write nothing; exit status 1 if the archive has other versions than the lock
HELP
}

# locked_packages SYSTEM: the packages that the archive would install, as lines of the lock.
locked_packages() {
  local system=$1 log=$cache/apt/root-$1.log wanted uris apt
  root_state "$system"
  update_lists "$log" "$root_suite"
  wanted=$("${apt[@]}" install -y --print-uris "${asked_packages[@]}" 2>>"$log" | sed -n "s/^'[^']*' \([^_ ]*\)_\([^_ ]*\)_[^_ ]*\.deb .*/\1=\2/p" | sed 's/%3a/:/g') || wanted=''
  # `download` says every SHA-256; `install` leaves some out.
  # shellcheck disable=SC2086
  if [ -z "$wanted" ] || ! uris=$("${apt[@]}" download --print-uris $wanted 2>>"$log"); then
    apt_reason "$log"
    die "apt cannot resolve the build root's packages for $system; the whole log: $log"
  fi
  # Nothing here needs an escape in JSON: letters, digits and + - . ~ : alone.
  sed -n "s/^'[^']*' \([a-z0-9+.-]*\)_\([A-Za-z0-9+.~%-]*\)_\([a-z0-9]*\)\.deb \([0-9]*\) SHA256:\([0-9a-f]\{64\}\)\$/{\"name\": \"\1\", \"version\": \"\2\", \"architecture\": \"\3\", \"size\": \4, \"sha256\": \"\5\"}/p" <<<"$uris" |
    sed 's/%3a/:/g' | LC_ALL=C sort >"$lock_folder/$system"
  [ "$(wc -l <"$lock_folder/$system")" = "$(wc -w <<<"$wanted")" ] ||
    die "apt does not say name, version, size and SHA-256 of every package for $system; the whole log: $log"
}

# print_lock HASH…: packages.lock, with the hash of each system's unpacked root.
print_lock() {
  local system comma=,
  printf '{\n  "suite": "%s",\n  "asked": "%s",\n  "systems": {\n' "$root_suite" "${asked_packages[*]}"
  for system in "${lock_systems[@]}"; do
    [ "$system" != "${lock_systems[-1]}" ] || comma=''
    printf '    "%s": {\n      "narHash": "%s",\n      "packages": [\n' "$system" "$1"
    sed '$ ! s/$/,/; s/^/        /' "$lock_folder/$system"
    printf '      ]\n    }%s\n' "$comma"
    shift
  done
  printf '  }\n}\n'
}

# print_changes NEW: "SYSTEM: NAME OLD -> NEW" for each package that differs. A lock that cannot be read has none.
print_changes() {
  local system old
  for system in "${lock_systems[@]}"; do
    old=$(of_root "$root_lock" "$system" list 2>/dev/null) || old=''
    awk -v of="$system" '
      NR == FNR { if ($2 != "") was[$2] = $3 " " $5; next }
      { name = $2; now = $3 " " $5
        if (!(name in was)) { print of ": " name " none -> " $3; next }
        split(was[name], before, " ")
        if (was[name] != now) print of ": " name " " before[1] " -> " $3 (before[1] == $3 ? " (another file)" : "")
        delete was[name] }
      END { for (name in was) { split(was[name], before, " "); print of ": " name " " before[1] " -> none" } }
    ' <(printf '%s\n' "$old") <(of_root "$1" "$system" list) | LC_ALL=C sort
  done
}

write_debian_lock() {
  local check='' system hash hashes=() new lock_folder
  case ${1:-} in
    '') ;;
    --check) check=yes ;;
    --help | -h)
      lock_usage
      return
      ;;
    *) die "lock debian: unknown argument '$1'; see $lock_command --help" ;;
  esac
  [ $# -le 1 ] || die "lock debian: unknown argument '$2'; see $lock_command --help"
  [ -n "$check" ] || [ -w "${root_lock%/*}" ] || die "cannot write ${root_lock%/*}"
  tmp=$(mktemp -d "$cache/.unpacking.XXXXXX")
  trap 'rm -rf "$tmp"' EXIT
  lock_folder=$tmp new=$tmp/packages.lock
  for system in "${lock_systems[@]}"; do
    say "asking the Debian archive for the build root of $system"
    locked_packages "$system"
  done
  print_lock "${lock_systems[@]}" >"$new"
  print_changes "$new" >"$tmp/changes"
  if [ -n "$check" ] && [ -s "$tmp/changes" ]; then
    cat "$tmp/changes"
    return 1
  fi
  for system in "${lock_systems[@]}"; do
    unpack_root "$new" "$system" "$tmp/root"
    hash=$("$nix" hash path "$tmp/root") || die "Nix cannot hash the unpacked build root"
    hashes+=("$hash")
    rm -rf "$tmp/root"
  done
  print_lock "${hashes[@]}" >"$new.whole"
  if cmp -s "$new.whole" "$root_lock"; then
    echo "nix/debian/packages.lock is what the Debian archive has"
    return
  fi
  cat "$tmp/changes"
  [ -s "$tmp/changes" ] || echo "nix/debian/packages.lock: the same packages; the list that was asked for or the unpacking differs"
  [ -z "$check" ] || return 1
  cp "$new.whole" "$root_lock.new"
  mv "$root_lock.new" "$root_lock"
  echo "wrote nix/debian/packages.lock; review it like flake.lock"
}
