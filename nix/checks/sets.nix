# Parts of the repository that several checks read.
let
  gb10 = map (name: ../../python/src/gb10 + "/${name}");
  lab = map (name: ../../lab/src/gb10_lab + "/${name}");
in
rec {
  inherit gb10 lab;

  base = gb10 [
    "__init__.py"
    "arguments.py"
    "deaths.py"
    "errors.py"
    "files.py"
    "libraries.py"
    "py.typed"
    "segments.py"
    "terminal.py"
    "units.py"
  ];
  formats =
    base
    ++ gb10 [
      "checkpoint"
      "fp8.py"
      "nvfp4"
      "sparse24"
    ];
  plugin =
    formats
    ++ gb10 [
      "kernels"
      "machine"
      "vllm_plugin"
    ];
  # What a file of tests/kernels needs to look at machine code, apart from the others.
  machine-code = plugin ++ [
    ../../tests/kernels/conftest.py
    ../../tests/kernels/cubins.py
    ../../tests/kernels/libraries.py
  ];
  serve =
    plugin
    ++ gb10 [
      "__main__.py"
      "audit"
      "cli.py"
      "cluster"
      "doctor"
      "download"
      "recipes"
      "routing"
      "serve"
    ];
  lab-base = lab [
    "__init__.py"
    "__main__.py"
    "cli.py"
    "py.typed"
    "testbed"
    "text"
  ];
}
