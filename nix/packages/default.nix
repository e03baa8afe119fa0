# What people build and run: `nix build .#NAME`, `nix run .#NAME`.
{
  pkgs,
  # The flake's commit and the hash of its files, for the provenance.
  source ? {
    revision = "unknown";
    narHash = "unknown";
  },
}:

{
  inherit (pkgs.gb10)
    audit
    cluster
    cpu-env
    cuda-12x-env
    cuda-env
    cuda-toolkit
    demo-model
    docs
    doctor
    doctor-cuda
    flashinfer
    image
    image-cpu
    install-service
    install-service-cpu
    kernels
    kernels-sparse24
    predict
    quality
    sbom
    sbom-cpu
    serve
    serve-cuda
    serve-cuda-12x
    service
    service-cuda
    speculative
    vllm-fp4
    ;
  default = pkgs.gb10.serve;
  provenance = pkgs.gb10.provenanceOf source;
  provenance-cpu = pkgs.gb10.provenanceOfCpu source;
}
