# shellcheck shell=bash
# Makes the NVIDIA driver's libraries visible to programs whose loader does not look in the system's folders.
#
# NixOS has them in /run/opengl-driver/lib. Elsewhere (DGX OS, Debian, Ubuntu) they lie beside the system's own glibc and
# libstdc++, which must not be mixed in: so only libcuda and libnvidia-* are linked into a folder of this process's own.

if [ -e /run/opengl-driver/lib/libcuda.so.1 ]; then
  gb10_driver=/run/opengl-driver/lib
else
  gb10_driver=${XDG_RUNTIME_DIR:-/tmp}/gb10-driver-$(id -u)
  mkdir -p "$gb10_driver"
  chmod 700 "$gb10_driver"
  for gb10_folder in "/usr/lib/$(uname -m)-linux-gnu" /usr/lib64 /usr/local/nvidia/lib64 /usr/lib/wsl/lib; do
    if [ -e "$gb10_folder/libcuda.so.1" ]; then
      for gb10_library in "$gb10_folder"/libcuda.so* "$gb10_folder"/libcudadebugger.so* "$gb10_folder"/libnvidia-*.so*; do
        if [ -e "$gb10_library" ]; then ln -sfn "$gb10_library" "$gb10_driver/"; fi
      done
      break
    fi
  done
fi

if [ ! -e "$gb10_driver/libcuda.so.1" ]; then
  echo "gb10: error: no libcuda.so.1 found; install NVIDIA's driver, or set GB10_PROFILE=cpu" >&2
  exit 2
fi
export LD_LIBRARY_PATH="$gb10_driver${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export TRITON_LIBCUDA_PATH=$gb10_driver
