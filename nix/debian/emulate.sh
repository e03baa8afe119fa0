# shellcheck shell=bash
# aarch64 on x86_64: with NIXW_SYSTEM=aarch64-linux, Nix builds and runs aarch64's programs beside this machine's own, by
# QEMU's user-mode emulation. QEMU is unpacked like Nix. It is registered in a user namespace that ends with the command: no
# root is needed, and the machine's own list of binary formats stays as it is.
# shellcheck disable=SC2154  # cache, nix, system, unpacked: nixw sets them

# Debian 12's QEMU (7.2) dies of torch; Debian's current stable has 10.
readonly emulator_suite=stable
readonly emulated=aarch64-linux
native=$(uname -m)-linux

# What nixw puts before the command that it ends in.
within=()

# asks_for_emulation ARGUMENTS OF NIX: `.#emulated` is what the emulation is for, so it needs no variable.
asks_for_emulation() {
  local argument
  [ -z "${NIXW_SYSTEM:-}" ] && [ "$native" = x86_64-linux ] || return 1
  for argument in "$@"; do
    case $argument in
      --) return 1 ;;
      *'#emulated' | *'#emulated-cuda' | *'#emulated-mirrored') return 0 ;;
    esac
  done
  return 1
}

is_emulated() { [ "$system" != "$native" ]; }

# provide_emulation: the emulator, and Nix's settings for it.
provide_emulation() {
  local emulator=$cache/emulator
  [ "$native/$system" = "x86_64-linux/$emulated" ] || die "NIXW_SYSTEM is '$system', and this machine ($native) emulates nothing; only x86_64-linux emulates $emulated"
  # A daemon builds elsewhere, where QEMU is not registered.
  if [ -z "$unpacked" ] && ! [[ ${NIX_REMOTE:-} =~ ^(local|/) ]] && { [ -n "${NIX_REMOTE:-}" ] || [ -e /nix/var/nix/daemon-socket/socket ]; }; then
    die "a Nix daemon builds here, and NIXW_SYSTEM cannot reach it; let the machine emulate (binfmt) and set extra-platforms = $emulated in nix.conf, or set NIXW_NIX=debian and NIX_REMOTE=local?root=FOLDER"
  fi
  command -v unshare >/dev/null || die "$system is emulated by way of unshare, which is not here (Debian's util-linux has it)"
  user_namespaces || die "$system is emulated in a user namespace, and $(closed_namespaces); $([ "$(id -u)" = 0 ] && echo "for Docker and Podman use --privileged" || echo "run as root, or see sysctl user.max_user_namespaces")"
  unpack "$emulator_suite" "$emulator" qemu-user
  # It has forty emulators.
  find "$emulator/usr" -type f ! -name qemu-aarch64 -delete
  [ -x "$emulator/usr/bin/qemu-aarch64" ] || die "Debian's qemu-user has no qemu-aarch64; remove $emulator and run this again"
  within=(unshare --user --map-root-user --mount --propagation private bash "${BASH_SOURCE[0]}" "$emulator/usr/bin/qemu-aarch64")
  "${within[@]}" bash -c : || die "QEMU could not be registered in a user namespace (Linux 6.7 or newer can); this one is $(uname -r)"
  setting extra-platforms "$emulated $native"
  # Nobody may, in such a namespace.
  setting require-drop-supplementary-groups false
}

# emulate_in_debian_base: each derivation sees the build root that it names, so that one command builds for both.
emulate_in_debian_base() {
  # shellcheck disable=SC2034  # provide_root sets root
  local root hook=$cache/root-of-derivation
  provide_root "$native"
  cat >"$hook.new" <<'HOOK'
#!/bin/sh
# nixw's hook for Nix: the derivation in "$1" sees the build root that it names.
case ${NIX_REMOTE:-} in local\?root=*) prefix=${NIX_REMOTE#*=} prefix=${prefix%%&*} ;; *) prefix='' ;; esac
root=$(sed -n 's/.*("debianRoot","\([^"]*\)").*/\1/p' "$prefix$1")
[ -n "$root" ] || exit 0
echo extra-sandbox-paths
for folder in usr bin lib lib64; do echo "/$folder=$prefix$root/$folder"; done
echo
HOOK
  chmod +x "$hook.new"
  mv "$hook.new" "$hook"
  setting pre-build-hook "$hook"
}

# Called by itself, in the namespace: emulate.sh EMULATOR COMMAND…
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  emulator=$1
  shift
  list=/proc/sys/fs/binfmt_misc
  mount -t binfmt_misc binfmt_misc "$list"
  # 64-bit ELF for machine 183, program or shared object. F: it is opened now, so that no sandbox need have it. P: argv[0] is kept.
  printf '%s' ":gb10-aarch64:M::"'\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:'"$emulator:PF" >"$list/register"
  exec "$@"
fi
