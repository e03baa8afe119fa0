"""A memory cgroup, and a process that takes the memory in it."""
