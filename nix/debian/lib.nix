# The part of nixpkgs' lib that the flake uses, with the same meaning.
let
  inherit (builtins)
    any
    concatMap
    filter
    foldl'
    listToAttrs
    replaceStrings
    stringLength
    substring
    ;

  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;

  hasSuffix =
    suffix: text:
    let
      length = stringLength text - stringLength suffix;
    in
    length >= 0 && substring length (-1) text == suffix;
in
{
  # overlays.default
  composeManyExtensions =
    extensions: final: prev:
    foldl' (done: extension: done // extension final (prev // done)) { } extensions;

  # The files that a derivation reads. A set of files is a list of paths here; a folder stands for all that is in it.
  fileset = {
    unions = concatMap (part: if builtins.isList part then part else [ part ]);

    toSource =
      { root, fileset }:
      let
        names = map (
          path:
          if builtins.pathExists path then toString path else throw "fileset: ${toString path} does not exist"
        ) (if builtins.isList fileset then fileset else [ fileset ]);
        # A named file, what is below a named folder, or a folder on the way to either.
        wanted =
          path: type:
          any (
            name:
            path == name || hasPrefix "${name}/" path || (type == "directory" && hasPrefix "${path}/" name)
          ) names;
      in
      {
        outPath = builtins.path {
          name = "source";
          path = root;
          filter = path: type: baseNameOf path != "__pycache__" && wanted path type;
        };
      };
  };

  # Outputs for each system.
  genAttrs =
    names: make:
    listToAttrs (
      map (name: {
        inherit name;
        value = make name;
      }) names
    );

  # What `meta.license` names, by nixpkgs' names.
  licenses =
    listToAttrs (
      map
        (name: {
          inherit name;
          value = {
            shortName = name;
            free = true;
          };
        })
        [
          "asl20"
          "boost"
          "bsd0"
          "bsd2"
          "bsd3"
          "cc0"
          "cnri-python"
          "free"
          "isc"
          "lgpl21Only"
          "llvm-exception"
          "mit"
          "mit-cmu"
          "mit0"
          "mpl20"
          "psfl"
          "unlicense"
        ]
    )
    // listToAttrs (
      map
        (name: {
          inherit name;
          value = {
            shortName = name;
            free = false;
          };
        })
        [
          "issl"
          "unfree"
          "unfreeRedistributable"
        ]
    );

  # `meta.sourceProvenance`.
  sourceTypes = {
    binaryNativeCode = {
      shortName = "binaryNativeCode";
      isSource = false;
    };
    fromSource = {
      shortName = "fromSource";
      isSource = true;
    };
  };

  # What allowUnfreePredicate looks at.
  getName = package: package.pname or (builtins.parseDrvName package.name).name;

  # Apps.
  getExe = package: "${package}/bin/${package.meta.mainProgram or package.pname or package.name}";

  # Folders of the system's libraries, each once: here one package stands for several.
  makeLibraryPath =
    packages:
    builtins.concatStringsSep ":" (
      foldl' (done: path: if builtins.elem path done then done else done ++ [ path ]) [ ] (
        map (package: "${package}/lib") packages
      )
    );

  # Lists with conditions.
  optionals = condition: values: if condition then values else [ ];

  # Wheel file names.
  inherit hasPrefix hasSuffix;
  removeSuffix =
    suffix: text:
    if hasSuffix suffix text then substring 0 (stringLength text - stringLength suffix) text else text;

  # Paths relative to a folder.
  removePrefix =
    prefix: text: if hasPrefix prefix text then substring (stringLength prefix) (-1) text else text;

  # Wheel file names. The separator is taken literally.
  splitString =
    separator: text:
    filter builtins.isString (
      builtins.split (replaceStrings [ "." "+" ] [ "\\." "\\+" ] separator) text
    );
}
