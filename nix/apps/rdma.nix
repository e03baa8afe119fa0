# Lines before a program that uses several GPUs: NCCL opens libibverbs.so.1 and libmlx5.so.1 by name, and libibverbs the
# provider of the network adapter, of which it otherwise reads in /etc. Without them two Sparks would talk over TCP and say
# nothing of it. The caller may name providers of his own.
{ pkgs }:

''
  export LD_LIBRARY_PATH="$LD_LIBRARY_PATH:${pkgs.rdma-core}/lib"
  export RDMAV_DRIVERS=''${RDMAV_DRIVERS:-${pkgs.rdma-core}/lib/libibverbs/libmlx5}
''
