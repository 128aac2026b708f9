"""A server's tunnel as a way to other networks: forwarding for its device and the uplinks alone, and an nftables
table of our own that lets the tunnel's packets pass and nothing else. ``forwarder`` alone changes anything."""
