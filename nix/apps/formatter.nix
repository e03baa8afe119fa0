# `nix fmt`: ruff for Python; nixfmt for Nix where the base has it, else the layout check, which rewrites nothing.
{ pkgs }:

pkgs.writeShellApplication {
  name = "gb10-format";
  runtimeInputs = [ pkgs.gb10.test-env ] ++ pkgs.lib.optionals (pkgs ? nixfmt) [ pkgs.nixfmt ];
  text = ''
    files=("$@")
    [ "$#" -gt 0 ] || mapfile -t files < <(git ls-files '*.nix' '*.py')
    nix=() python=()
    for file in "''${files[@]}"; do
      case $file in
        *.nix) nix+=("$file") ;;
        *.py) python+=("$file") ;;
      esac
    done
    [ "''${#python[@]}" -eq 0 ] || ruff format --config python/pyproject.toml "''${python[@]}"
    if [ "''${#nix[@]}" -eq 0 ]; then exit 0; fi
    if command -v nixfmt >/dev/null; then
      nixfmt "''${nix[@]}"
    else
      echo "no nixfmt on this base: checking the layout of Nix files only" >&2
      python3 ${./checks/lint}/layout.py "''${nix[@]}"
    fi
  '';
}
