# python/wheels.lock.json -> derivations: one that fetches and one that unpacks each wheel, one environment per profile.
{
  pkgs,
  lock,
  python,
  # Wheel name -> { patches, postInstall }: what the overlays change of upstream's wheels.
  changes ? { },
}:

let
  defaultChanges = changes;
  tag = "cp" + builtins.replaceStrings [ "." ] [ "" ] python.pythonVersion;
  fetchWheel = import ./fetch.nix { inherit pkgs; };
  unpackWheel = import ./unpack.nix { inherit pkgs python; };

  # The wheels of a profile for one system, by project name. Only what is asked for is fetched.
  wheelsOf =
    {
      profile,
      system ? pkgs.stdenv.hostPlatform.system,
      changes ? defaultChanges,
    }:
    let
      files =
        lock.profiles.${profile}.${system}.${tag}
          or (throw "gb10: profile ${profile} has no wheels for Python ${python.pythonVersion} on ${system}; see python/profiles.toml");
      native = system == pkgs.stdenv.hostPlatform.system;
    in
    builtins.listToAttrs (
      map (
        file:
        let
          wheel = lock.wheels.${file};
        in
        {
          inherit (wheel) name;
          value = unpackWheel {
            inherit wheel native;
            src = fetchWheel { inherit wheel python; };
            change = changes.${wheel.name} or { };
          };
        }
      ) files
    );
in
{
  inherit wheelsOf;

  # An environment: a virtual environment's layout whose site-packages link to the wheels' files.
  mkEnvironment = import ./environment.nix { inherit pkgs python; };
}
