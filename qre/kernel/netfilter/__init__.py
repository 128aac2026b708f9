"""What QRE's nftables tables have in common: the library, the words of a rule, what a table records of what was so
before it, and the forwarding of single devices. Which rules there are is said in ``site_tcp`` and ``forward``."""
