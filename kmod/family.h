/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef QRE_FAMILY_H
#define QRE_FAMILY_H

#include <net/genetlink.h>

struct qre_endpoint;

extern struct genl_family qre_family;

enum qre_group { /* multicast groups of the family, in this order */
		 QRE_GROUP_EVENTS,
		 QRE_GROUP_FRAMES,
};

/* The underlay's four. */
int qre_put_endpoint(struct sk_buff *skb, const struct qre_endpoint *endpoint);

#endif
