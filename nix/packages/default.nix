# What people build and run: `nix build .#NAME`, `nix run .#NAME`.
{
  pkgs,
  # The flake's commit and the hash of its files, for the provenance.
  source ? {
    revision = "unknown";
    narHash = "unknown";
  },
}:

let
  installed = import ../completion/installed.nix { inherit pkgs; };
in
pkgs.lib.genAttrs [
  "audit"
  "bench"
  "cluster"
  "doctor"
  "doctor-cuda"
  "download"
  "predict"
  "recipes"
  "serve"
  "serve-cuda"
  "serve-cuda-12x"
  "serve-cuda-ray"
  "serve-ray"
] installed
// {
  inherit (pkgs.gb10)
    completion
    cpu-env
    cuda-12x-env
    cuda-env
    cuda-toolkit
    demo-model
    docs
    flashinfer
    image
    image-cpu
    image-cpu-ray
    image-ray
    install-service
    install-service-cpu
    kernels
    kernels-sparse24
    quality
    sbom
    sbom-cpu
    sbom-cpu-ray
    sbom-ray
    service
    service-cuda
    speculative
    vllm-fp4
    ;
  default = installed "serve";
  provenance = pkgs.gb10.provenanceOf source;
  provenance-cpu = pkgs.gb10.provenanceOfCpu source;
  provenance-cpu-ray = pkgs.gb10.provenanceOfCpuRay source;
  provenance-ray = pkgs.gb10.provenanceOfRay source;
}
