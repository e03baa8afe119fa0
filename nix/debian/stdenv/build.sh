# shellcheck shell=bash disable=SC2154,SC1091
# The builder of every derivation of the Debian base.
source "$stdenv/setup"
genericBuild
