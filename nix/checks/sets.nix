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
    "errors.py"
    "files.py"
    "py.typed"
  ];
  formats =
    base
    ++ gb10 [
      "checkpoint"
      "nvfp4"
      "sparse24"
    ];
  plugin =
    formats
    ++ gb10 [
      "routing"
      "vllm_plugin"
    ];
  serve =
    plugin
    ++ gb10 [
      "__main__.py"
      "cli.py"
      "machine"
      "serve"
    ];
  lab-base = lab [
    "__init__.py"
    "__main__.py"
    "py.typed"
    "testbed"
    "text"
  ];
}
