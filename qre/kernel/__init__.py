"""What speaks to the kernel: netlink (qre.ko and links), BPF objects, TUN devices, sockets, capabilities. No decision
about a tunnel is made here, and nothing here knows of processes or commands.
"""
