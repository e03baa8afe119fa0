# What runs after the build, packaged from the build root into the store with its own loader and libraries, so that it
# does not touch the machine's /usr.
{ final }:

let
  # The libraries come in one package: glibc and its loader, and whatever the programs below (and manylinux wheels) need.
  runtime =
    final.runCommand "debian-runtime" { }
      # bash
      ''
        source ${./package.sh}
        mkdir -p "$out/lib"
        # x86_64 has it in lib64, aarch64 in lib.
        loader=$(find /lib64/ /lib/ -maxdepth 1 -name 'ld-linux-*.so.*' -print -quit)
        cp -L "$loader" "$out/lib/''${loader##*/}"
        copy_libraries "$out/lib" /usr/bin/python3.11 /usr/bin/bash /usr/bin/lscpu /usr/lib/python3.11/lib-dynload/*.so
        copy_named_libraries "$out/lib" libstdc++.so.6 libgcc_s.so.1 libz.so.1 libnuma.so.1 libgomp.so.1 libatomic.so.1 \
          libdl.so.2 libpthread.so.0 librt.so.1 libutil.so.1 libresolv.so.2 libm.so.6 libnss_files.so.2 libnss_dns.so.2
        # glibc has it on x86_64 alone.
        if find_library libmvec.so.1 >/dev/null; then copy_named_libraries "$out/lib" libmvec.so.1; fi
        close_c_library "$out/lib"
        set_library_paths "$out/lib"
      '';

  programs =
    pname: names:
    final.runCommand pname
      {
        inherit pname;
        meta.mainProgram = builtins.head names;
      }
      ''
        source ${./package.sh}
        mkdir -p "$out/bin"
        copy_programs "$out/bin" ${runtime} ${builtins.concatStringsSep " " names}
      '';

  python =
    final.runCommand "python3-3.11"
      {
        pname = "python3";
        meta.mainProgram = "python3";
        passthru = {
          pythonVersion = "3.11";
          sitePackages = "lib/python3.11/site-packages";
          interpreter = "${python}/bin/python3.11";
        };
      }
      ''
        source ${./package.sh}
        mkdir -p "$out/bin" "$out/lib"
        copy_programs "$out/bin" ${runtime} python3.11
        ln -s python3.11 "$out/bin/python3"
        ln -s python3.11 "$out/bin/python"
        cp -r /usr/lib/python3.11 "$out/lib/python3.11"
        chmod -R u+w "$out/lib"
        rm -rf "$out"/lib/python3.11/{test,idlelib,turtledemo,config-*,EXTERNALLY-MANAGED,sitecustomize.py}
        for module in "$out"/lib/python3.11/lib-dynload/*.so; do
          patchelf --set-rpath ${runtime}/lib "$module"
        done
        find "$out" -name __pycache__ -prune -exec rm -rf {} +
        # Headers, in one folder: Debian's pyconfig.h is in another one for each architecture.
        mkdir "$out/include"
        cp -r /usr/include/python3.11 "$out/include/python3.11"
        chmod -R u+w "$out/include"
        cp "/usr/include/$triple/python3.11/pyconfig.h" "$out/include/python3.11/pyconfig.h"
        # Hash-based byte code that is not checked again, and no other: what this python imports to compile it would leave with
        # a time stamp, to be compiled anew, into the store where root may, at each start.
        export PYTHONDONTWRITEBYTECODE=1
        "$out/bin/python3.11" -m compileall -q --invalidation-mode unchecked-hash "$out/lib/python3.11" || true
        "$out/bin/python3.11" -c 'import ssl, sqlite3, ctypes, lzma, bz2, zlib, readline, hashlib'
      '';

  # A C and C++ compiler that takes headers, libraries and its own parts of the store, and makes what runs with the runtime.
  # It is the root's gcc in a root of its own.
  compiler =
    final.runCommand "gcc"
      {
        pname = "gcc";
        meta.mainProgram = "gcc";
      }
      ''
        source ${./package.sh}
        source ${./compiler.sh}
        copy_compiler "$out" ${runtime} ${final.bash}/bin/bash
        printf '#include <cstdio>\n#include <cmath>\nint main(int n, char **) { return std::puts("built") < 0 || std::sqrt(n) < 0; }\n' >probe.cc
        PATH= "$out/bin/g++" -O1 probe.cc -o probe
        [ "$(./probe)" = built ]
        [ "$(patchelf --print-interpreter probe)" = "$(ls ${runtime}/lib/ld-linux-*)" ]
      '';

  # RDMA verbs and the provider of NVIDIA's network adapters.
  rdma = final.runCommand "rdma-core" { } ''
    source ${./package.sh}
    mkdir -p "$out/lib/libibverbs"
    copy_named_libraries "$out/lib" libibverbs.so.1 libmlx5.so.1
    drop_runtime_libraries "$out/lib" ${runtime}
    set_library_paths "$out/lib" ${runtime}/lib
    # libibverbs opens the provider by this name.
    for provider in "/usr/lib/$triple"/libibverbs/libmlx5-rdmav*.so; do
      ln -s ../libmlx5.so.1 "$out/lib/libibverbs/''${provider##*/}"
    done
  '';
in
{
  debianRuntime = runtime;
  # stdenv.cc
  debianCompiler = compiler;
  # Libraries that nixpkgs has in packages of their own: manylinux wheels take libz, vLLM's CPU library libnuma from the system.
  zlib = runtime;
  numactl = runtime;
  # NCCL opens libibverbs.so.1 and libmlx5.so.1 by name.
  rdma-core = rdma;

  bash = programs "bash" [ "bash" ];
  # `nix develop` asks its nixpkgs for this name.
  bashInteractive = final.bash;
  # lscpu, which vLLM's CPU platform asks for the cores.
  util-linux = programs "util-linux" [ "lscpu" ];

  # The interpreter of all environments.
  python311 = python;
  # For fetches, which run inside builds only: the build root's pip.
  python3Packages.pip = final.runCommand "pip" { } ''
    mkdir -p "$out/bin"
    printf '#!/bin/bash\nexec /usr/bin/python3 -m pip "$@"\n' >"$out/bin/pip"
    chmod +x "$out/bin/pip"
  '';
  # In the build root, so on every build's PATH: wheels are unpacked (unzip) and find the loader and the system's libraries
  # (patchelf); a test runs the line that `serve` prints (curl).
  unzip = final.runCommand "unzip" { } ''mkdir "$out"'';
  curl = final.runCommand "curl" { } ''mkdir "$out"'';
  patchelf = final.runCommand "patchelf" { } ''mkdir "$out"'';
}
