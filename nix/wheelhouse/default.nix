# python/locks/ -> derivations: one that fetches and one that unpacks each wheel, one environment per profile.
{
  pkgs,
  # Where the wheels run. `pkgs` unpacks, patches and byte-compiles them; no file of theirs runs there.
  target ? pkgs,
  # The folder of the locks: pylock.PROFILE-SYSTEM-TAG.toml.
  locks,
  python,
  # { name, profile, system } -> the licences of a wheel.
  licencesOf ? (import ../licences.nix { inherit (pkgs) lib; }).of,
  # Wheel name -> { patches, postInstall, only }: what the overlays change of upstream's wheels. `only` has the same for
  # one profile: only.PROFILE.
  changes ? { },
}:

let
  defaultChanges = changes;
  tagOf = pythonVersion: "cp" + builtins.replaceStrings [ "." ] [ "" ] pythonVersion;
  fetchWheel = import ./fetch.nix { inherit pkgs; };
  unpackWheel = import ./unpack.nix { inherit pkgs python; };
  changeOf = profile: change: change // change.only.${profile} or { };

  # The wheels of a profile on one system. Only this lock is read.
  entriesOf =
    {
      profile,
      system,
      pythonVersion,
    }:
    let
      lock = locks + "/pylock.${profile}-${system}-${tagOf pythonVersion}.toml";
    in
    if builtins.pathExists lock then
      map (
        package:
        let
          wheel = builtins.head package.wheels;
        in
        {
          inherit (package) name version;
          # Not known of what only PyTorch's index has and nobody fetched for the lock.
          size = wheel.size or null;
          file = wheel.path;
          # For any system: it holds no machine code, and is the same unpacked for all.
          any = pkgs.lib.hasSuffix "-any.whl" wheel.path;
          inherit (wheel.hashes) sha256;
          index = package.tool.gb10.index or null;
        }
      ) (builtins.fromTOML (builtins.readFile lock)).packages
    else
      throw "gb10: profile ${profile} has no wheels for Python ${pythonVersion} on ${system}; see python/profiles.toml";

  # The wheels of a profile for one system, by project name. Only what is asked for is fetched.
  wheelsOf =
    {
      profile,
      system ? target.stdenv.hostPlatform.system,
      changes ? defaultChanges,
    }:
    let
      native = system == target.stdenv.hostPlatform.system;
    in
    builtins.listToAttrs (
      map
        (wheel: {
          inherit (wheel) name;
          value = unpackWheel {
            inherit wheel native;
            target = if wheel.any then pkgs else target;
            src = fetchWheel {
              inherit wheel;
              inherit (python) pythonVersion;
            };
            licences = licencesOf {
              inherit (wheel) name;
              inherit profile system;
            };
            change = changeOf profile (changes.${wheel.name} or { });
          };
        })
        (entriesOf {
          inherit profile system;
          inherit (python) pythonVersion;
        })
    );

  # The files of a profile as the index has them, to be read: the same on every base and machine.
  filesOf =
    {
      profile,
      system,
      pythonVersion,
    }@environment:
    map (wheel: fetchWheel { inherit wheel pythonVersion; }) (entriesOf environment);
in
{
  inherit wheelsOf filesOf;

  # An environment: a virtual environment's layout whose site-packages link to the wheels' files.
  mkEnvironment = import ./environment.nix { inherit pkgs python target; };
}
