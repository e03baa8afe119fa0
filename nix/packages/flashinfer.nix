# FlashInfer's modules for 12.x, compiled ahead of time (../flashinfer/modules.toml): a derivation for each group, and all
# of them as the package that FlashInfer looks for. FlashInfer's own build code lists the sources and runs nvcc.
{ pkgs }:

let
  inherit (pkgs.gb10) cuda-toolkit python wheels;
  inherit (builtins.fromTOML (builtins.readFile ../flashinfer/modules.toml)) groups target;
  flashinfer = wheels.cuda.flashinfer-python;
  # FlashInfer's licence and CUTLASS's, whose templates are compiled into the modules.
  meta =
    more:
    import ./meta.nix { inherit pkgs; } (
      {
        license = [
          pkgs.lib.licenses.asl20
          pkgs.lib.licenses.bsd3
        ];
      }
      // more
    );

  # What FlashInfer's build code imports, and ninja. torch is only asked for its ABI, which is that of CUDA's torch.
  tools = {
    inherit (wheels.cpu)
      apache-tvm-ffi
      certifi
      charset-normalizer
      filelock
      fsspec
      idna
      jinja2
      markupsafe
      mpmath
      networkx
      ninja
      numpy
      packaging
      requests
      sympy
      torch
      tqdm
      typing-extensions
      urllib3
      ;
    inherit flashinfer;
  };

  # A toolkit as FlashInfer expects one: headers of the CUDA libraries, and names to link by. Nothing of them is copied
  # into a module; what runs takes the libraries that torch has loaded.
  cuda-home =
    pkgs.runCommand "gb10-flashinfer-cuda-home"
      {
        nativeBuildInputs = [ pkgs.stdenv.cc ];
        meta = meta { description = "CUDA toolkit as FlashInfer's build expects one, of links"; };
        libraries = map (name: "${wheels.cuda.${name}}/${python.sitePackages}/nvidia/cu13") [
          "nvidia-cublas"
          "nvidia-cuda-nvrtc"
          "nvidia-curand"
        ];
      }
      ''
        mkdir -p "$out/bin" "$out/include" "$out/lib64/stubs"
        ln -s ${cuda-toolkit}/bin/nvcc "$out/bin/nvcc"
        ln -s ${cuda-toolkit}/include/* "$out/include/"
        for folder in $libraries; do ln -sfn "$folder"/include/* "$out/include/"; done
        for library in ${cuda-toolkit}/lib/libcudart.so.* $(printf '%s/lib/*.so.* ' $libraries); do
          name=''${library##*/}
          ln -sfn "$library" "$out/lib64/''${name%%.so.*}.so"
        done
        # The driver's library, which only a machine with a GPU has.
        echo | $CC -shared -Wl,-soname,libcuda.so.1 -x c - -o "$out/lib64/stubs/libcuda.so"
      '';

  group =
    name: listed:
    pkgs.runCommand "gb10-flashinfer-${name}"
      {
        nativeBuildInputs = [
          python
          pkgs.patchelf
          pkgs.stdenv.cc
        ];
        PYTHONPATH = pkgs.gb10.pythonPath tools;
        PYTHONDONTWRITEBYTECODE = true;
        CUDA_HOME = cuda-home;
        # nvcc finds its parts beside its own real path.
        FLASHINFER_NVCC = "${cuda-toolkit}/bin/nvcc";
        # So that no process id and no time is in a module.
        FLASHINFER_NVCC_LAUNCHER = "bash ${../flashinfer/unit}/compile.sh";
        FLASHINFER_CUDA_ARCH_LIST = target;
        # As in kernels/Makefile, so that no process id is in an object. nvcc itself reads this variable.
        NVCC_APPEND_FLAGS = "-objtemp";
        # A linker that keeps only what has a symbol would drop the driver's library, whose stand-in has none.
        FLASHINFER_EXTRA_LDFLAGS = "-Wl,--no-as-needed -lcuda -Wl,--as-needed";
        # Of the list, what it is made of: another group, or the routes that end here, make it not anew.
        group = builtins.toJSON { inherit (listed) gibibytes modules; };
        passAsFile = [ "group" ];
        meta = meta { description = "Group of FlashInfer's modules: ${name}"; };
      }
      ''
        export HOME=$PWD FLASHINFER_WORKSPACE_BASE=$PWD PATH=${wheels.cpu.ninja}/bin:$PATH
        python3 ${../flashinfer/build.py} "$groupPath" "$out"
        find "$out" -name '*.so' -exec patchelf --remove-rpath {} +
      '';
  built = builtins.mapAttrs group groups;

  # A package of some groups, which FlashInfer finds by its name.
  package =
    groups:
    pkgs.runCommand "gb10-flashinfer-jit-cache"
      {
        nativeBuildInputs = [ python ];
        groups = map (group: "${group}") groups;
        version = "${flashinfer.version}+gb10";
        inherit target;
        inherit (python) sitePackages;
        meta = meta {
          description = "FlashInfer's modules for compute capability 12.x, compiled ahead of time";
        };
        passthru = {
          inherit cuda-home package;
          groups = built;
        }
        // built;
      }
      ''
        site=$out/$sitePackages cache=$out/$sitePackages/flashinfer_jit_cache
        mkdir -p "$cache/modules" "$site/flashinfer_jit_cache-$version.dist-info"
        cp ${../flashinfer/cache}/__init__.py "$cache/"
        for group in $groups; do ln -s "$group"/* "$cache/modules/"; done
        cd "$cache"
        python3 -c '
        import json, os
        names = sorted(os.listdir("modules"))
        target = "sm" + os.environ["target"].replace(".", "")
        print(json.dumps({"version": os.environ["version"], "target": target, "modules": names}, indent=1))
        ' >manifest.json
        printf 'Metadata-Version: 2.1\nName: flashinfer-jit-cache\nVersion: %s\n' "$version" \
          >"$site/flashinfer_jit_cache-$version.dist-info/METADATA"
        python3 -m compileall -q --invalidation-mode unchecked-hash "$cache/__init__.py"
      '';
in
package (builtins.attrValues built)
