# `nix run .#push -- DEST`, `.#push-cpu`: sends an image to a registry, layer by layer: what skopeo remembers of it is not sent again.
{ pkgs }:

let
  push =
    name: image:
    pkgs.writeShellApplication {
      inherit name;
      meta = import ../packages/meta.nix { inherit pkgs; } {
        description = "Sends the image ${image.imageName} to a registry, layer by layer";
      };
      # On the Debian base it is the machine's.
      runtimeInputs = pkgs.lib.optionals (pkgs ? skopeo) [ pkgs.skopeo ];
      text = ''
        usage='usage: nix run .#${name} -- DEST [OPTION OF skopeo copy…]; DEST is docker://REGISTRY/NAME:TAG, oci:FOLDER:TAG, or skopeo'"'"'s dir:, docker-archive:, oci-archive: or containers-storage:'
        stop() {
          printf '${name}: error: %s\n' "$*" >&2
          exit 2
        }
        case ''${1:-} in
          -h | --help)
            echo "$usage"
            exit 0
            ;;
          docker://?* | oci:?* | dir:?* | docker-archive:?* | oci-archive:?* | containers-storage:?*) ;;
          *) stop "'${"\${1:-}"}' is no destination; $usage" ;;
        esac
        command -v skopeo >/dev/null || stop 'skopeo is not installed; install it (apt install skopeo), or use a machine that reaches nixpkgs'
        destination=$1
        shift
        # skopeo reads an archive from a file alone; it goes when this ends.
        folder=$(mktemp -d "''${TMPDIR:-/var/tmp}/gb10-push.XXXXXX" 2>/dev/null) || stop "no folder can be made in ''${TMPDIR:-/var/tmp}; TMPDIR names another place"
        trap 'rm -rf "$folder"' EXIT
        # Before the image is written, which takes minutes: skopeo reads its words and both names first, and misses the image then.
        said=$(skopeo copy --insecure-policy "$@" "dir:$folder" "$destination" 2>&1) || true
        case $said in
          *"$folder/manifest.json"*) ;;
          *)
            why=$(sed -n 's/.*level=fatal msg="\(.*\)"$/\1/p' <<<"$said")
            stop "skopeo does not take '$destination''${*:+ $*}'; ''${why:-see skopeo copy --help}"
            ;;
        esac
        ${image} >"$folder/image.tar" || stop "the image could not be written to $folder; has it the room? TMPDIR names another place"
        # The place may be a machine's that has no policy: what is sent was made here.
        skopeo copy --insecure-policy "$@" "docker-archive:$folder/image.tar" "$destination"
      '';
    };
in
{
  push = push "push" pkgs.gb10.image;
  push-cpu = push "push-cpu" pkgs.gb10.image-cpu;
  push-cpu-ray = push "push-cpu-ray" pkgs.gb10.image-cpu-ray;
  push-ray = push "push-ray" pkgs.gb10.image-ray;
}
