# docs/ and the README as a site of files. What is wrong with a link, an anchor or the navigation is an error (mkdocs.yml).
{ pkgs }:

let
  inherit (builtins)
    attrNames
    concatMap
    elemAt
    filter
    isList
    match
    pathExists
    readDir
    readFile
    split
    ;
  inherit (pkgs.gb10) python pythonPath wheels;
  inherit (pkgs.lib.fileset) toSource unions;

  # Files that pages link to, by their paths in the repository. The hook only wants to know that they are there: their content
  # makes no other site.
  linked =
    prefix: page:
    map (found: elemAt found 0) (filter isList (split "]\\(${prefix}([^]():#]+)" (readFile page)));
  pages = filter (name: match ".*\\.md" name != null) (attrNames (readDir ../../docs));
  targets = filter (path: pathExists (../../. + "/${path}")) (
    linked "" ../../README.md ++ concatMap (name: linked "\\.\\./" (../../docs + "/${name}")) pages
  );
in
pkgs.runCommand "gb10-docs"
  {
    nativeBuildInputs = [ python ];
    src = toSource {
      root = ../..;
      fileset = unions [
        ../../README.md
        ../../docs
        ./hook.py
        ./mkdocs.yml
      ];
    };
    targets = builtins.concatStringsSep " " targets;
    PYTHONPATH = pythonPath wheels.docs;
    meta = import ../packages/meta.nix { inherit pkgs; } {
      description = "Documentation of gb10 as a site of static files";
    };
  }
  ''
    cp -r "$src" source && chmod -R u+w source && cd source
    for path in $targets; do
      [ -e "$path" ] || { mkdir -p "$(dirname "$path")" && touch "$path"; }
    done
    export PYTHONDONTWRITEBYTECODE=1 NO_MKDOCS_2_WARNING=1 SOURCE_DATE_EPOCH=1
    python3 -m mkdocs build -f nix/docs/mkdocs.yml -d "$out"
  ''
