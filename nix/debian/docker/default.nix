# nixpkgs' dockerTools.streamLayeredImage, with those of its arguments and of its layering pipeline's words that the flake uses.
{ final }:

{
  # A program that writes an archive for `podman load`.
  streamLayeredImage =
    {
      name,
      tag,
      config,
      # Run in the root folder.
      extraCommands,
      layeringPipeline,
      meta,
    }:
    let
      # nixpkgs' too, of the image and of all that is in it.
      created = "1970-01-01T00:00:01Z";
      base = final.writeText "${name}-base.json" (
        builtins.toJSON {
          inherit config created;
          architecture =
            {
              x86_64-linux = "amd64";
              aarch64-linux = "arm64";
            }
            .${final.stdenv.hostPlatform.system};
          repo_tag = "${name}:${tag}";
        }
      );
      # A tar file: the store would not keep the permissions that extraCommands give.
      root =
        final.runCommand "${name}-root.tar" { nativeBuildInputs = [ final.gb10.python ]; } ''
          mkdir root
          cd root
          ${extraCommands}
          cd ..
          python3 ${./stream.py} root root ${created} >"$out"
        '';
      conf =
        final.runCommand "${name}-conf.json"
          {
            exportReferencesGraph = [
              "base.graph"
              base
              "root.graph"
              root
            ];
            pipeline = builtins.toJSON layeringPipeline;
            passAsFile = [ "pipeline" ];
            nativeBuildInputs = [ final.gb10.python ];
          }
          ''
            python3 ${./layers.py} base.graph root.graph ${base} ${root} "$pipelinePath" >"$out"
          '';
    in
    final.runCommand "stream-${name}"
      {
        passthru = {
          inherit conf;
          imageName = name;
        };
        inherit meta;
      }
      ''
        {
          echo '#!${final.bash}/bin/bash'
          echo 'exec ${final.gb10.python}/bin/python3 -I ${./stream.py} image ${conf} "$@"'
        } >"$out"
        chmod +x "$out"
      '';
}
