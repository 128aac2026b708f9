// SPDX-License-Identifier: GPL-2.0-only
/*
 * Strays. The connection ID of a server's session is one that Dest chose, and Dest may choose it
 * again for a stranger; besides, whoever has seen it can write it. What comes with it from another
 * address and does not open goes to the socket's queue, as if there were no session: from there the
 * handshake worker relays it to Dest. Within a budget, because anybody can send such. A client has
 * one peer, and nothing to relay; nobody reads a socket that the module opened.
 */
#include <linux/netdevice.h>
#include <linux/percpu.h>
#include <linux/skbuff.h>
#include <linux/udp.h>
#include <net/dst.h>
#include <net/protocol.h>
#include "session.h"
#include "socket.h"
#include "strays.h"

#define QRE_STRAYS_PER_SECOND 500 /* as in the user data plane */

bool qre_stray_possible(struct qre_session *s, const struct qre_socket *qs,
			const struct qre_address *source)
{
	return !s->client && !qs->kernel && !qre_session_at(s, source);
}

bool qre_stray_passes(struct qre_session *s)
{
	bool passes;

	spin_lock(&s->lock);
	if (time_after_eq(jiffies, s->strays_since + HZ)) {
		s->strays_since = jiffies;
		s->strays = 0;
	}
	passes = s->strays < QRE_STRAYS_PER_SECOND;
	s->strays += passes;
	spin_unlock(&s->lock);
	return passes;
}

/* The one that is on its way through UDP a second time, on this CPU. */
static DEFINE_PER_CPU(const struct sk_buff *, qre_returning);

static int (*qre_udp_handler(const struct sk_buff *skb))(struct sk_buff *skb)
{
	const struct net_protocol *udp = rcu_dereference(inet_protos[IPPROTO_UDP]);

#if IS_ENABLED(CONFIG_IPV6)
	if (skb->protocol == htons(ETH_P_IPV6)) {
		const struct inet6_protocol *udp6 = rcu_dereference(inet6_protos[IPPROTO_UDP]);

		return udp6 ? udp6->handler : NULL;
	}
#endif
	return udp ? udp->handler : NULL;
}

void qre_stray_return(struct sk_buff *skb)
{
	int (*handler)(struct sk_buff * skb) = qre_udp_handler(skb);

	if (!handler || !skb_dst(skb)) { /* its route has ended meanwhile */
		kfree_skb(skb);
		return;
	}
	__skb_push(skb, sizeof(struct udphdr));
	this_cpu_write(qre_returning, skb);
	handler(skb);
	this_cpu_write(qre_returning, NULL);
}

bool qre_stray_returns(const struct sk_buff *skb)
{
	return this_cpu_read(qre_returning) == skb;
}
