# What `nix run .#NAME` runs.
{
  pkgs,
  # The same set for aarch64, which an x86_64 machine emulates.
  aarch64,
}:

let
  app = package: description: {
    type = "app";
    program = pkgs.lib.getExe package;
    meta = { inherit description; };
  };
in
{
  audit = app pkgs.gb10.audit "Say what a decoded token reads of a model and what fits, from its headers";
  bench = app pkgs.gb10.bench "Measure how fast a server answers, and compare results or two servers";
  cluster = app pkgs.gb10.cluster "Plan, check and run one engine on several hosts, over ssh";
  doctor = app pkgs.gb10.doctor "Say what of this machine stops a server, and what mends it";
  doctor-cuda = app pkgs.gb10.doctor-cuda "As doctor, and run kernels on the GPU (with NVIDIA's libraries, which are not free)";
  download = app pkgs.gb10.download "Fetch a model of the hub: resumed, compared, refused where it does not fit";
  install-service = app pkgs.gb10.install-service "Install serve-cuda as a service of systemd, or remove it";
  install-service-cpu = app pkgs.gb10.install-service-cpu "Install serve, for the CPU, as a service of systemd, or remove it";
  lock = app pkgs.gb10.lock "Write python/locks/ from python/profiles.toml";
  predict = app pkgs.gb10.predict "Predict the tokens a second of a model on one GB10, with an error bar";
  push = app pkgs.gb10.push "Send the image to a registry, layer by layer";
  push-cpu = app pkgs.gb10.push-cpu "Send the image for the CPU to a registry, layer by layer";
  push-cpu-ray = app pkgs.gb10.push-cpu-ray "Send the image for the CPU with Ray to a registry, layer by layer";
  push-ray = app pkgs.gb10.push-ray "Send the image with Ray to a registry, layer by layer";
  quality = app pkgs.gb10.quality "Measure what NVFP4, FP8 and 2:4 cost the testbed model in quality";
  rebuild = app pkgs.gb10.rebuild "Build every derivation of this flake once more and compare";
  recipes = app pkgs.gb10.recipes "List, show, check and import recipes for serve --recipe";
  serve = app pkgs.gb10.serve "Serve an NVFP4 model with an OpenAI-compatible API";
  serve-cuda = app pkgs.gb10.serve-cuda "Serve an NVFP4 model on NVIDIA GPUs (with NVIDIA's libraries, which are not free)";
  serve-cuda-12x = app pkgs.gb10.serve-cuda-12x "As serve-cuda, with FlashInfer's modules for GPUs of 12.x";
  serve-cuda-ray = app pkgs.gb10.serve-cuda-ray "As serve-cuda, with Ray for vLLM's executor of that name";
  serve-ray = app pkgs.gb10.serve-ray "As serve, with Ray for vLLM's executor of that name";
  speculative = app pkgs.gb10.speculative "Measure how many MTP drafts are accepted, and that the output stays the same";
}
// (
  if pkgs.stdenv.hostPlatform.system == "x86_64-linux" then
    let
      emulated = import ../emulated { inherit pkgs aarch64; };
    in
    {
      emulated = app emulated.emulated "Run aarch64's programs emulated, and compare them with x86_64's";
      emulated-cuda = app emulated.emulated-cuda "What serves on a GPU, on aarch64: the CUDA environment imported, serve-cuda among planted drivers";
      emulated-mirrored = app emulated.emulated-mirrored "The same with the package index's torch, where PyTorch's own index cannot be reached";
    }
  else
    { }
)
