/* SPDX-License-Identifier: GPL-2.0-only */
/* Which session an inner address belongs to (allowedips.c). */
#ifndef QRE_ALLOWEDIPS_H
#define QRE_ALLOWEDIPS_H

#include <linux/types.h>

struct qre_allowed;
struct qre_allowed_ip;
struct qre_allowed_ips;
struct qre_session;

struct qre_allowed_ips *qre_allowed_ips_new(void); /* NULL: no memory */
void qre_allowed_ips_free(struct qre_allowed_ips *table);
/* Entries of a session that is not in the table yet, one for each of @ips; none: for everything.
 * NULL: no memory. They are freed by kvfree, a grace period after they were removed. */
struct qre_allowed *qre_allowed_ips_new_entries(struct qre_session *s,
						const struct qre_allowed_ip *ips,
						unsigned int *count);
/* qre_net.lock is held. */
void qre_allowed_ips_add(struct qre_allowed_ips *table, struct qre_allowed *entries,
			 unsigned int count);
void qre_allowed_ips_remove(struct qre_allowed_ips *table, struct qre_allowed *entries,
			    unsigned int count);
/* Under RCU. Whom a packet to this address goes to: the newest established session, or a held one.
 */
struct qre_session *qre_allowed_ips_find(struct qre_allowed_ips *table, const void *address,
					 bool ipv6);
/* Whether the session may use this source. */
bool qre_allowed_ips_owns(struct qre_allowed_ips *table, const struct qre_session *s,
			  const void *address, bool ipv6);

#endif
