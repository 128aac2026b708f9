"""The user data plane: a TUN device, a UDP socket and the sessions between them."""
