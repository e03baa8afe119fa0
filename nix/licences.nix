# python/licences.toml for Nix: a wheel's licence as nixpkgs' `meta.license` has it, and the names of what is not free.
{ lib }:

let
  inherit (builtins)
    any
    concatMap
    elem
    filter
    foldl'
    fromTOML
    isString
    readFile
    split
    ;
  table = fromTOML (readFile ../python/licences.toml);

  bySpdx = {
    "0BSD" = lib.licenses.bsd0;
    "Apache-2.0" = lib.licenses.asl20;
    "BSD-2-Clause" = lib.licenses.bsd2;
    "BSD-3-Clause" = lib.licenses.bsd3;
    "BSL-1.0" = lib.licenses.boost;
    "CC0-1.0" = lib.licenses.cc0;
    "CNRI-Python" = lib.licenses.cnri-python;
    "ISC" = lib.licenses.isc;
    "LGPL-2.1-only" = lib.licenses.lgpl21Only;
    "LicenseRef-NVIDIA-Proprietary" = lib.licenses.unfree;
    "LicenseRef-Repoze" = lib.licenses.free;
    "LLVM-exception" = lib.licenses.llvm-exception;
    "MIT" = lib.licenses.mit;
    "MIT-0" = lib.licenses.mit0;
    "MIT-CMU" = lib.licenses.mit-cmu;
    "MPL-2.0" = lib.licenses.mpl20;
    "PSF-2.0" = lib.licenses.psfl;
    "Unlicense" = lib.licenses.unlicense;
  };

  # The licences that an expression names, as nixpkgs lists them: without what joins them.
  named =
    expression:
    map (
      id: bySpdx.${id} or (throw "gb10: nix/licences.nix knows no licence ${id} of nixpkgs; add it")
    ) (filter (part: isString part && part != "") (split " AND | OR | WITH |[()]" expression));

  isFree = licence: licence.free or true;
  unique = foldl' (done: item: if elem item done then done else done ++ [ item ]) [ ];
in
{
  # What a wheel of a profile on a system has. Empty where the table has no line: the check `licences` names those.
  of =
    {
      name,
      profile,
      system,
    }:
    unique (
      concatMap named (if table.wheels ? ${name} then [ table.wheels.${name} ] else [ ])
      ++ map (more: lib.licenses.${more.licence}) (
        filter (
          more: more.name == name && elem profile more.profiles && elem system more.systems
        ) table.also
      )
    );

  # What `allowUnfreePredicate` has to let pass for the CUDA half: wheels that are not free in some profile, on some
  # system, and what copies them.
  unfree =
    filter (
      name:
      !builtins.all isFree (named table.wheels.${name})
      || any (more: more.name == name && !isFree lib.licenses.${more.licence}) table.also
    ) (builtins.attrNames table.wheels)
    ++ [ "gb10-cuda-toolkit" ];
}
