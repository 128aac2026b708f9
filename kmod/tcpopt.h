/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * TCP headers of inner packets (RFC 9293 section 3.1), which anybody may have made: the maximum
 * segment size that a SYN offers, and whether a segment may be cut in two. Depends on nothing but
 * fixed-width types (see ackwin.h).
 */
#ifndef QRE_TCPOPT_H
#define QRE_TCPOPT_H

#include "portable.h"

#define QRE_TCP_HEADER 20 /* without options */

/*
 * @tcp: a TCP header and @size bytes in all. When it is a SYN that offers segments above @most,
 * write @most there, and correct the checksum unless it is @partial: still to be computed. True:
 * something was changed.
 */
bool qre_tcp_clamp_mss(u8 *tcp, size_t size, u16 most, bool partial);

/* Whether the segment means the same when it is cut: it has data and no SYN, RST or urgent pointer,
 * and no option that signs it (RFC 2385, RFC 5925). */
bool qre_tcp_divisible(const u8 *tcp, size_t size);

#endif
