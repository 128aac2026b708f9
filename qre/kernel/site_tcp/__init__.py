"""TCP connections to a server's port, passed to Dest by the kernel: NAT in an nftables table of our own, and nothing
else of this machine's firewall. The rules and their readers are values; ``site_face`` alone changes anything."""
