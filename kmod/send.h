/* SPDX-License-Identifier: GPL-2.0-only */
/* Sealing, and what leaves (send.c). */
#ifndef QRE_SEND_H
#define QRE_SEND_H

#include <linux/netdevice.h>

#include "qre.h"
#include "underlay.h"

struct qre_key;
struct qre_session;

#define QRE_GSO_MAX_SEGS 44 /* of one outer super-packet: 44 of the largest size fit in one */

/* What packets are sealed with. */
struct qre_numbers {
	struct qre_key *key; /* a reference */
	u64 first;
	struct qre_target target; /* with a reference, if it has a socket */
	struct qre_cid cid;	  /* what they bear there */
	u8 size;		  /* bytes of each */
};

/* Take @count numbers; false: none are left. @elsewhere: not for the path in use. Their target is
 * the session's. */
bool qre_take_numbers(struct qre_session *s, unsigned int count, bool elsewhere,
		      struct qre_numbers *numbers);
/* Its marks are to be tested: the path is another one. Under qre_session.lock. */
void qre_ecn_restart(struct qre_session *s);
netdev_tx_t qre_xmit(struct sk_buff *skb, struct net_device *dev);
/* Seal @plain (frames), numbered already, and send it; consumes what the numbers hold. */
void qre_send_plain(struct qre_session *s, const struct qre_numbers *numbers, const u8 *plain,
		    size_t size);
void qre_send_exit(void);

#endif
