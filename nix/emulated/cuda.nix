# What serves on a GPU: aarch64's CUDA environment, and its `serve-cuda` among planted drivers. Its plan; app.nix has the other.
{
  pkgs,
  aarch64,
  # aarch64's CUDA environment, unpacked here.
  env,
}:

let
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
    name = "emulated-cuda";
    inherit env;
    serve-cuda = "${serve-cuda}/bin/serve-cuda";
    driver = "${driver}/lib";
    bash = "${aarch64.bash}/bin/bash";
    programs = "${aarch64.util-linux}/bin";
  };
in
import ./program.nix { inherit pkgs plan; }
