# The builder of every derivation of the Debian base.
source "$stdenv/setup"
genericBuild
