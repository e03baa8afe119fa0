# The patches of a folder, in the order of their names.
folder:

map (name: folder + "/${name}") (
  builtins.filter (name: builtins.match ".*\\.patch" name != null) (
    builtins.attrNames (builtins.readDir folder)
  )
)
