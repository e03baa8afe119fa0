# A fetched wheel -> its files in lib/pythonX.Y/site-packages and bin, patched if an overlay says so, byte-compiled.
{ pkgs, python }:

{
  wheel,
  # Where its machine code runs.
  target,
  src,
  # false: machine code of another system than `target`, which gets no loader and never runs.
  native ? true,
  change ? { },
  licences,
}:

pkgs.stdenv.mkDerivation {
  pname = wheel.name;
  inherit (wheel) version;
  inherit src;
  inherit (python) sitePackages;
  patches = change.patches or [ ];
  # A patch applies exactly or the build fails.
  patchFlags = "-p1 --fuzz=0 --no-backup-if-mismatch --batch";
  nativeBuildInputs = [
    pkgs.unzip
    pkgs.patchelf
    python
  ];
  # nixpkgs' fixup would rewrite what upstream tested: symbols, run paths, the first lines of scripts.
  dontFixup = true;
  dontConfigure = true;
  unpackPhase = ''
    mkdir -p "$out/$sitePackages"
    unzip -q "$src" -d "$out/$sitePackages"
    cd "$out/$sitePackages"
  '';
  buildPhase = ''
    for data in *.data; do
      [ -d "$data" ] || continue
      for kind in purelib platlib; do
        if [ -d "$data/$kind" ]; then cp -r "$data/$kind/." .; fi
      done
      if [ -d "$data/scripts" ]; then
        mkdir -p "$out/bin"
        cp -r "$data/scripts/." "$out/bin"
        chmod -R +x "$out/bin"
      fi
      if [ -d "$data/data" ]; then cp -r "$data/data/." "$out"; fi
      if [ -d "$data/headers" ]; then mkdir -p "$out/include" && cp -r "$data/headers/." "$out/include"; fi
      rm -rf "$data"
    done
  '';
  installPhase = ''
    ${change.postInstall or ""}
    find . -name __pycache__ -prune -exec rm -rf {} +
    # Hash-based byte code that is not checked again: the store never changes, and its time stamps say nothing.
    python3 -m compileall -q --invalidation-mode unchecked-hash . >/dev/null 2>&1 || true
  ''
  + (
    if native then
      ''
        source ${./patch-elf.sh}
        patch_elf_files "$out" ${target.stdenv.cc.bintools.dynamicLinker} ${pkgs.lib.makeLibraryPath target.gb10.wheelLibraries}
      ''
    else
      ""
  );
  # The wheel's, in bytes, or null: what an image gives a layer of its own.
  passthru = { inherit (wheel) size; };
  # Wheels of the other system are unpacked too, and never run.
  meta = import ../packages/meta.nix { inherit pkgs; } {
    description = "Wheel ${wheel.file}, unpacked";
    license = licences;
    sourceProvenance = [
      (
        if wheel.any then pkgs.lib.sourceTypes.fromSource else pkgs.lib.sourceTypes.binaryNativeCode
      )
    ];
  };
}
