# shellcheck shell=bash
# How pip is set up on this machine decides where wheels come from; the locks' hashes decide what they are.
# shellcheck disable=SC2154  # here, cache, nix: nixw sets them

# The settings that pip reads here, each with the name that the pip of a fetch knows it by: NAME=FILE. That pip's home is
# /etc/pip-home (nix/wheelhouse/pip-download.nix).
pip_files() {
  local file home=${HOME:-/nonexistent}
  for file in /etc/xdg/pip/pip.conf /etc/pip.conf; do
    [ ! -r "$file" ] || printf '%s=%s\n' "$file" "$file"
  done
  for file in .pip/pip.conf .config/pip/pip.conf; do
    [ ! -r "$home/$file" ] || printf '/etc/pip-home/%s=%s\n' "$file" "$home/$file"
  done
}

# Local folders that pip takes wheels from (find-links, file:// indexes); they must be visible to fetches.
pip_local_folders() {
  local file folder
  {
    pip_files | while IFS='=' read -r _ file; do
      sed -n 's/^[[:space:]]*\(find-links\|index-url\|extra-index-url\)[[:space:]]*[=:][[:space:]]*//p; s/^[[:space:]]\+\(\(file:\/\)\?\/.*\)/\1/p' "$file"
    done
    printf '%s\n' "${PIP_FIND_LINKS:-}" "${PIP_INDEX_URL:-}" "${PIP_EXTRA_INDEX_URL:-}"
  } | tr -s '[:blank:]' '\n' | sed -n 's|^file://\(/.*\)|\1|; s|/simple/*$||; /^\//p' | sort -u | while read -r folder; do
    [ ! -d "$folder" ] || printf '%s\n' "$folder"
  done
}

# A wheel of a lock that already lies in a local folder goes into the store by its hash: the fetch is then satisfied.
# This is how CPU torch, which no package index carries, reaches an air-gapped machine.
seed_store() {
  local folder wheel name stamp want path
  pip_local_folders | while read -r folder; do
    for wheel in "$folder"/*.whl; do
      name=${wheel##*/}
      want=$(grep -h -F "path = \"$name\"" "$here/python/locks/"*.toml 2>/dev/null | sed -n 's/.* sha256 = "\([0-9a-f]\{64\}\)".*/\1/p' | head -n 1) || continue
      [ -n "$want" ] || continue
      stamp=$cache/seeded/$want
      if [ -e "$stamp" ] && "$nix" path-info "$(cat "$stamp")" >/dev/null 2>&1; then continue; fi
      [ "$(sha256sum "$wheel" | cut -c 1-64)" = "$want" ] || continue
      path=$("$nix" store add --mode flat --hash-algo sha256 --name "$name" "$wheel" 2>/dev/null) || continue
      mkdir -p "$cache/seeded"
      printf '%s\n' "$path" >"$stamp"
    done
  done
}
