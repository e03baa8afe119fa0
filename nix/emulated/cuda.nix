# What serves on a GPU: aarch64's CUDA environment, and its `serve-cuda` among planted drivers. The same program as app.nix's.
{
  pkgs,
  aarch64,
  # aarch64's CUDA environment, unpacked here.
  env,
}:

let
  name = "emulated-cuda";

  # serve-cuda as aarch64 has it, but for the kernels: nvcc would compile them emulated, and nothing here gets so far.
  inherit
    (import ../apps/serve.nix {
      pkgs = aarch64 // {
        gb10 = aarch64.gb10 // {
          cuda-env = env;
          kernels = "/no-kernels";
        };
      };
    })
    serve-cuda
    ;

  driver = aarch64.runCommand "gb10-planted-driver" { } ''
    mkdir -p "$out/lib"
    $CC -O2 -Wall -Wextra -Werror -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$out/lib/libcuda.so.1" ${./libcuda.c}
  '';

  plan = {
    inherit env name;
    serve-cuda = "${serve-cuda}/bin/serve-cuda";
    driver = "${driver}/lib";
    bash = "${aarch64.bash}/bin/bash";
    programs = "${aarch64.util-linux}/bin";
  };
in
pkgs.writeShellApplication {
  inherit name;
  text = ''
    exec ${pkgs.gb10.python}/bin/python3 -I ${./steps.py} ${pkgs.writeText "${name}.json" (builtins.toJSON plan)} "$@"
  '';
}
