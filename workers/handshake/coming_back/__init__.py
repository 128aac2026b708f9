"""The files of tickets, and what the handshakes of either end do with them."""
