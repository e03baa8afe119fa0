"""One model on two nodes, in two network namespaces of this machine: its tokens, and what breaks it."""
