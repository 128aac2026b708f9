/* SPDX-License-Identifier: GPL-2.0-only */
/* The way to the peer (underlay.c): routes, and the headers of UDP and IP. */
#ifndef QRE_UNDERLAY_H
#define QRE_UNDERLAY_H

#include "qre.h"

struct qre_session;
struct qre_socket;
struct sk_buff;

/* Where packets go, and by which of our ports. */
struct qre_target {
	struct qre_address peer;
	struct qre_socket *through; /* NULL: the session's */
	unsigned int port;	    /* qre_session.port, when they were numbered */
	u8 ecn;
};

/* Bottom halves are off, under RCU. Consumes @skb, @packets of one size whose data is the UDP
 * payload, with room for the headers. */
void qre_udp_send(struct qre_session *s, struct sk_buff *skb, const struct qre_target *to,
		  unsigned int packets);
/* Routes that were found before are looked for anew. Any context */
void qre_routes_forget(struct qre_session *s);

#endif
