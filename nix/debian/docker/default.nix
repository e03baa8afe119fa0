# nixpkgs' dockerTools.streamLayeredImage, with those of its arguments and of its layering pipeline's words that the flake uses.
{ final }:

{
  # A program that writes an archive for `podman load`.
  streamLayeredImage =
    {
      name,
      tag,
      # What the root folder shows: links into these.
      contents ? [ ],
      config ? { },
      created ? "1970-01-01T00:00:01Z",
      mtime ? "1970-01-01T00:00:01Z",
      # Run in the root folder.
      extraCommands ? "",
      layeringPipeline,
      passthru ? { },
      meta ? { },
    }:
    let
      baseName = baseNameOf name;
      base = final.writeText "${baseName}-base.json" (
        builtins.toJSON {
          inherit config created mtime;
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
        final.runCommand "${baseName}-root.tar"
          {
            inherit contents mtime;
            nativeBuildInputs = [ final.gb10.python ];
          }
          ''
            mkdir root
            cd root
            for content in $contents; do cp -rs --no-preserve=mode "$content"/. .; done
            ${extraCommands}
            cd ..
            python3 ${./stream.py} root root "$mtime" >"$out"
          '';
      conf =
        final.runCommand "${baseName}-conf.json"
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
    final.runCommand "stream-${baseName}"
      {
        passthru = passthru // {
          inherit conf;
          imageName = name;
          imageTag = tag;
          isExe = true;
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
