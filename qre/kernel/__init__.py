"""Interfaces to the kernel: netlink (qre.ko and links), BPF objects, TUN devices, sockets, capabilities. It makes no
decision about a tunnel, and does not depend on processes or commands.
"""
