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
    bench
    cluster
    cpu-env
    cuda-12x-env
    cuda-env
    cuda-toolkit
    demo-model
    docs
    doctor
    doctor-cuda
    download
    flashinfer
    image
    image-cpu
    image-cpu-ray
    image-ray
    install-service
    install-service-cpu
    kernels
    kernels-sparse24
    predict
    quality
    recipes
    sbom
    sbom-cpu
    sbom-cpu-ray
    sbom-ray
    serve
    serve-cuda
    serve-cuda-12x
    serve-cuda-ray
    serve-ray
    service
    service-cuda
    speculative
    vllm-fp4
    ;
  default = pkgs.gb10.serve;
  provenance = pkgs.gb10.provenanceOf source;
  provenance-cpu = pkgs.gb10.provenanceOfCpu source;
  provenance-cpu-ray = pkgs.gb10.provenanceOfCpuRay source;
  provenance-ray = pkgs.gb10.provenanceOfRay source;
}
