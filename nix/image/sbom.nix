# Each image's bill of materials, what is known of advisories, and its provenance: made of the locks and the store, and held
# against what the image's archive holds (docs/security.md).
{ pkgs }:

let
  inherit (pkgs) lib;
  inherit (pkgs.gb10) python pythonPath wheels;
  inherit (lib.fileset) toSource unions;
  inherit (pkgs.stdenv.hostPlatform) system;
  onDebian = pkgs ? debianRuntime;

  # The archive's reader alone: it reads gigabytes, and nothing of what a bill says makes it do so again.
  reader = toSource {
    root = ./bom;
    fileset = unions [
      ./bom/gb10_bom/__init__.py
      ./bom/gb10_bom/archive.py
      ./bom/gb10_bom/errors.py
    ];
  };
  source = toSource {
    root = ./bom;
    fileset = ./bom/gb10_bom;
  };

  # Versions are compared as pip does it.
  needed = wheels.sbom // {
    inherit (wheels.cpu) packaging;
  };

  # On nixpkgs; the stand-in's packages are cut from Debian's, and debian-licences.toml has theirs.
  licenceOf =
    package:
    let
      given = package.meta.license or [ ];
      licences = if builtins.isList given then given else [ given ];
    in
    builtins.concatStringsSep " AND " (
      map (licence: licence.spdxId or "LicenseRef-nixpkgs-${licence.shortName}") licences
    );

  item =
    kind: licence: package: {
      path = "${package}";
      inherit kind licence;
      name = lib.getName package;
      version = package.version or "";
      description = package.meta.description or "";
      derivation = builtins.unsafeDiscardStringContext package.drvPath;
    };

  # What the overlays did to a wheel beside its patches.
  changesOf =
    profile: name:
    let
      change = pkgs.gb10.wheelChanges.${name} or { };
    in
    (change.postInstall or "") + (change.only.${profile}.postInstall or "");

  ofWheel =
    profile: wheel:
    item "wheel" "" wheel
    // {
      description = "";
      patches = map (patch: "${patch}") (wheel.patches or [ ]);
      changes = changesOf profile wheel.pname;
    };

  # Names of the base's packages are those of their store paths.
  ofBase =
    package:
    if onDebian then
      item "cut" "Apache-2.0" package // { inherit (package) name; }
    else
      item "nixpkgs" (licenceOf package) package;

  profilesOf = about: [ about.profile ] ++ about.upon;

  itemsOf =
    about:
    builtins.concatMap (profile: map (ofWheel profile) (builtins.attrValues wheels.${profile})) (
      profilesOf about
    )
    ++ map ofBase (about.base ++ lib.optionals onDebian [ pkgs.debianRuntime ])
    ++ map (item "package" "Apache-2.0") [
      about.entry
      about.program
      about.doctor
      about.environment
      pkgs.gb10.package
    ]
    ++ map (
      package: item (if package == pkgs.gb10.demo-model then "model" else "package") "Apache-2.0" package
    ) about.own
    ++ [
      {
        path = "${about.script}";
        kind = "package";
        licence = "Apache-2.0";
        name = "entry.py";
        description = "What the image starts with";
      }
    ];

  contentOf =
    image:
    pkgs.runCommand "${image.about.name}-content.json"
      {
        nativeBuildInputs = [ python ];
        PYTHONPATH = reader;
      }
      ''
        ${image} | python3 -m gb10_bom.archive "$out"
      '';

  planOf =
    image:
    pkgs.writeText "${image.about.name}-plan.json" (builtins.toJSON {
      image = {
        inherit (image.about) name version description;
        licence = image.about.licences;
      };
      inherit system;
      inherit (image.about) profile rootFiles;
      inherit (python) sitePackages;
      base = if onDebian then "debian" else "nixpkgs";
      items = itemsOf image.about;
      content = "${contentOf image}";
      registration = "${pkgs.closureInfo { rootPaths = [ image.about.entry ]; }}/registration";
      lock = "${lockOf image.about.profile}";
      moreLocks = map (profile: "${lockOf profile}") image.about.upon;
      licences = "${../../python/licences.toml}";
      vendored = "${./vendored.toml}";
      debianLock = "${../debian/packages.lock}";
      debianFiles = "${./debian-files.json}";
      debianLicences = "${./debian-licences.toml}";
    });
  lockName = profile: "pylock.${profile}-${system}-${tag}.toml";
  lockOf = profile: ../../python/locks + "/${lockName profile}";
  lockWords = profile: "--lock python/locks/${lockName profile}=${lockOf profile}";
  tag = "cp${builtins.replaceStrings [ "." ] [ "" ] python.pythonVersion}";

  sbom =
    image:
    pkgs.runCommand "${image.about.name}-sbom"
      {
        nativeBuildInputs = [ python ];
        PYTHONPATH = "${source}:${pythonPath needed}";
        plan = planOf image;
        meta = import ../packages/meta.nix { inherit pkgs; } {
          description = "Bill of materials of the image ${image.about.name} in CycloneDX, and its OpenVEX document";
        };
        passthru.plan = planOf image;
      }
      ''
        mkdir "$out"
        python3 -m gb10_bom sbom "$plan" ${./advisories.toml} --out "$out"
      '';
  # The file that says what was built from what: of one state of the flake, so a function of it.
  provenance =
    output: image: flake:
    pkgs.runCommand "${image.about.name}-provenance"
      {
        nativeBuildInputs = [ python ];
        PYTHONPATH = "${source}:${pythonPath needed}";
        meta = import ../packages/meta.nix { inherit pkgs; } {
          description = "SLSA provenance of the image ${image.about.name}, as an in-toto statement that nobody signed";
        };
      }
      ''
        mkdir "$out"
        python3 -m gb10_bom provenance ${planOf image} --out "$out" \
          --output packages.${system}.${output} --revision ${flake.revision} --nar-hash ${flake.narHash} \
          ${toString (map lockWords (profilesOf image.about))} \
          --lock flake.lock=${../../flake.lock} --lock nix/debian/packages.lock=${../debian/packages.lock}
      '';
in
{
  sbom = sbom pkgs.gb10.image;
  sbom-cpu = sbom pkgs.gb10.image-cpu;
  sbom-cpu-ray = sbom pkgs.gb10.image-cpu-ray;
  sbom-ray = sbom pkgs.gb10.image-ray;
  provenanceOf = provenance "image" pkgs.gb10.image;
  provenanceOfCpu = provenance "image-cpu" pkgs.gb10.image-cpu;
  provenanceOfCpuRay = provenance "image-cpu-ray" pkgs.gb10.image-cpu-ray;
  provenanceOfRay = provenance "image-ray" pkgs.gb10.image-ray;
}
