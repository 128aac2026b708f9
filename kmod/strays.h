/* SPDX-License-Identifier: GPL-2.0-only */
/* Packets that come to a session and are a stranger's (strays.c). */
#ifndef QRE_STRAYS_H
#define QRE_STRAYS_H

#include "qre.h"

struct qre_session;
struct qre_socket;
struct sk_buff;

/* Whether a packet from @source that the session cannot open is a stranger's rather than noise. */
bool qre_stray_possible(struct qre_session *s, const struct qre_socket *qs,
			const struct qre_address *source);
/* One more is passed on: true within the session's budget, otherwise it is counted. Without
 * qre_session.lock. */
bool qre_stray_passes(struct qre_session *s);
/* To its socket's queue, when encap_rcv has answered long ago. Consumes @skb, whose data is the UDP
 * payload; its device and route are held. Bottom halves off, under RCU. */
void qre_stray_return(struct sk_buff *skb);
bool qre_stray_returns(const struct sk_buff *skb); /* for encap_rcv: on this way */

#endif
