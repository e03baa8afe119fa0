# `nix run .#download -- MODEL`: a model of the hub into its cache, before it is served. It is small: whoever downloads 50 GB of a
# model need not wait for 4 GB of vLLM first.
{ pkgs }:

let
  environment = pkgs.gb10.environment {
    name = "gb10-download-env";
    description = "What `gb10 download` imports: huggingface_hub, without vLLM";
    wheels = pkgs.gb10.commandLine // {
      inherit (pkgs.gb10.wheels.cpu)
        anyio
        click
        filelock
        fsspec
        h11
        hf-xet
        httpcore2
        httpx2
        huggingface-hub
        idna
        packaging
        psutil
        pyyaml
        sniffio
        tqdm
        truststore
        ;
    };
    extra = [ pkgs.gb10.package ];
    isolated = true;
  };
in
pkgs.writeShellApplication {
  name = "download";
  meta = import ../packages/meta.nix { inherit pkgs; } {
    description = "Fetches a model of the hub: resumed, compared, refused where it does not fit";
  };
  text = ''
    ${import ./isolated.nix environment "gb10 download"}
  '';
}
