"""What a client does when nothing is acknowledged any more, as a browser does it: RFC 9002 §6.2 and RFC 9000 §9."""
