# Lines before a program that uses the GPU: the loader finds the NVIDIA driver's libraries, and of the system's none
# (gb10.machine.driver). The caller's LD_LIBRARY_PATH is asked for the driver and goes: what else it names is built against
# another glibc, or is another version of a library that the environment has.
environment: ''
  LD_LIBRARY_PATH=$(${environment}/bin/python3 -I -m gb10.machine.driver)
  export LD_LIBRARY_PATH TRITON_LIBCUDA_PATH=$LD_LIBRARY_PATH
''
