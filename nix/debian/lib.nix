# The part of nixpkgs' lib that nix/CONTRACT.md lists, with the same meaning.
let
  inherit (builtins)
    filter
    foldl'
    listToAttrs
    replaceStrings
    stringLength
    substring
    ;
in
{
  composeManyExtensions =
    extensions: final: prev:
    foldl' (done: extension: done // extension final (prev // done)) { } extensions;

  genAttrs =
    names: make:
    listToAttrs (
      map (name: {
        inherit name;
        value = make name;
      }) names
    );

  getExe = package: "${package}/bin/${package.meta.mainProgram or package.pname or package.name}";

  # Each folder once: here one package stands for several.
  makeLibraryPath =
    packages:
    builtins.concatStringsSep ":" (
      foldl' (done: path: if builtins.elem path done then done else done ++ [ path ]) [ ] (
        map (package: "${package}/lib") packages
      )
    );

  optionals = condition: values: if condition then values else [ ];

  removePrefix =
    prefix: text:
    let
      length = stringLength prefix;
    in
    if substring 0 length text == prefix then substring length (-1) text else text;

  removeSuffix =
    suffix: text:
    let
      length = stringLength text - stringLength suffix;
    in
    if length >= 0 && substring length (-1) text == suffix then substring 0 length text else text;

  # The separator is taken literally.
  splitString =
    separator: text:
    filter builtins.isString (
      builtins.split (replaceStrings [ "." "+" ] [ "\\." "\\+" ] separator) text
    );
}
