"""ICMP errors about Dest: which visitor is told of them, as errors of the port."""
