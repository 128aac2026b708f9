"""What Dest's datagrams of one flow look like, as far as anyone can read them, so that ours can look the same.
Sans-IO; no secret, and nothing that is sent."""
