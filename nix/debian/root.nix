# The build root of packages.lock, and the packages that it is made of, by their content: paths that ./nixw fills.
#
# A store that lacks one asks for a builder with the feature "made-by-./nixw", which no machine has.
{
  system,
  lockFile ? ./packages.lock,
}:

let
  lock = (builtins.fromJSON (builtins.readFile lockFile)).systems.${system};

  byContent =
    outputHashMode: name: outputHash:
    derivation {
      inherit
        name
        system
        outputHash
        outputHashMode
        ;
      builder = "nixw";
      requiredSystemFeatures = [ "made-by-./nixw" ];
    };

  # Epochs and tildes are no letters of a store path.
  fileName =
    package:
    "${package.name}_${
      builtins.replaceStrings [ ":" "~" ] [ "-" "-" ] package.version
    }_${package.architecture}.deb";
in
rec {
  root = byContent "recursive" "debian-root" lock.narHash;

  # For nixw: the root's path, and a line for each package.
  path = root.outPath;
  list = builtins.concatStringsSep "\n" (
    map (
      package:
      builtins.concatStringsSep " " [
        (byContent "flat" (fileName package) "sha256:${package.sha256}").outPath
        package.name
        package.version
        package.architecture
        package.sha256
      ]
    ) lock.packages
  );
}
