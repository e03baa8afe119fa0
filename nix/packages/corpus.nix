# The text that the testbed model is trained on and the text that it is measured on, out of wheels of the lock. The wheels
# are only read, so they are the same ones on every system: the text does not depend on the machine that makes it.
{ pkgs }:

let
  inherit (pkgs.lib.fileset) toSource unions;

  filesOf =
    profile:
    pkgs.gb10.wheelhouse.filesOf {
      inherit profile;
      system = "x86_64-linux";
      pythonVersion = "3.11";
    };

  # The modules that make it, and no others: a change elsewhere in the packages does not make the text anew.
  source = toSource {
    root = ../..;
    fileset = unions [
      ../../python/src/gb10/__init__.py
      ../../python/src/gb10/arguments.py
      ../../python/src/gb10/errors.py
      ../../python/src/gb10/files.py
      ../../lab/src/gb10_lab/__init__.py
      ../../lab/src/gb10_lab/__main__.py
      ../../lab/src/gb10_lab/cli.py
      ../../lab/src/gb10_lab/text/__init__.py
      ../../lab/src/gb10_lab/text/corpus.py
      ../../lab/src/gb10_lab/text/documents.py
    ];
  };

  make =
    {
      name,
      description,
      profile,
      file,
      heldOut ? null,
    }:
    pkgs.runCommand name
      {
        nativeBuildInputs = [ pkgs.gb10.python ];
        wheels = filesOf profile;
        PYTHONPATH = "${source}/python/src:${source}/lab/src:${pkgs.gb10.pythonPath pkgs.gb10.commandLine}";
        PYTHONDONTWRITEBYTECODE = true;
        # The sources of many projects, each under a free licence (gb10_lab.text looks at that).
        meta = import ./meta.nix { inherit pkgs; } {
          inherit description;
          license = pkgs.lib.licenses.free;
        };
      }
      ''
        python3 -m gb10_lab corpus --wheels $wheels --out "$out/${file}" --summary "$out/${profile}.json" ${
          if heldOut == null then "" else "--held-out ${heldOut}"
        }
      '';
in
rec {
  # heldout.jsonl, and heldout.json: its packages.
  heldout = make {
    name = "gb10-heldout";
    description = "Text that the testbed model is measured on: Python sources of a dozen projects";
    profile = "heldout";
    file = "heldout.jsonl";
  };

  # corpus.jsonl.xz, and corpus.json: its packages.
  corpus = make {
    name = "gb10-corpus";
    description = "Text that the testbed model is trained on: Python sources of about a hundred projects";
    profile = "corpus";
    file = "corpus.jsonl.xz";
    heldOut = "${heldout}/heldout.jsonl";
  };
}
