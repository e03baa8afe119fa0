// An external definition with a name of its own in each unit: what nvcc calls the unit after (compile.sh).
__attribute__((visibility("hidden"))) void GB10_UNIT() {}
