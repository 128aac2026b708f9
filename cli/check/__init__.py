"""`check`: what this machine and a profile are able to do. Looks, and changes nothing."""
