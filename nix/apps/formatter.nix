# `nix fmt`: ruff for Python, clang-format for CUDA, and nixfmt for Nix where the base has it.
{ pkgs }:

pkgs.writeShellApplication {
  name = "gb10-format";
  meta = import ../packages/meta.nix { inherit pkgs; } {
    description = "Formats Python, CUDA and, where the base has nixfmt, Nix";
  };
  runtimeInputs = [ pkgs.gb10.test-env ] ++ pkgs.lib.optionals (pkgs ? nixfmt) [ pkgs.nixfmt ];
  text = ''
    files=("$@")
    [ "$#" -gt 0 ] || mapfile -t files < <(git ls-files '*.nix' '*.py' 'kernels/*' 'vllm_fp4/*')
    nix=() python=() cuda=()
    for file in "''${files[@]}"; do
      case $file in
        *.nix) nix+=("$file") ;;
        *.py) python+=("$file") ;;
        *.cu | *.cuh | *.h | *.cpp) cuda+=("$file") ;;
      esac
    done
    [ "''${#python[@]}" -eq 0 ] || ruff format --config python/pyproject.toml "''${python[@]}"
    [ "''${#cuda[@]}" -eq 0 ] || clang-format -i --style=file "''${cuda[@]}"
    if [ "''${#nix[@]}" -eq 0 ]; then exit 0; fi
    if command -v nixfmt >/dev/null; then
      nixfmt "''${nix[@]}"
    else
      echo "no nixfmt on this base: Nix files stay as they are" >&2
    fi
  '';
}
