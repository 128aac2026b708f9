/* SPDX-License-Identifier: GPL-2.0-only */
/* A network device of kind qre (device.c). */
#ifndef QRE_DEVICE_H
#define QRE_DEVICE_H

#include <linux/list.h>
#include <linux/netdevice.h>
#include <linux/u64_stats_sync.h>
#include <net/rtnetlink.h>

#include "qre.h"

struct qre_allowed_ips;
struct qre_gro;
struct qre_session;

struct qre_counters { /* per CPU; index of drops: enum qre_drop */
	u64_stats_t rx_packets, rx_bytes, tx_packets, tx_bytes;
	u64_stats_t drops[QRE_DROP_MAX + 1];
	struct u64_stats_sync syncp;
};

/* What DEVICE_SET stores: DEVICE_GET returns it, mostly user space uses it. */
struct qre_device_config {
	enum qre_role role;
	char dest[QRE_NAME_MAX + 1];
	char server_name[QRE_NAME_MAX + 1];
	char endpoint[QRE_NAME_MAX + 1];
	struct qre_address listen; /* its family AF_UNSPEC: as AF_INET */
	u16 keepalive;		   /* seconds */
	u32 max_sessions;
	u32 fwmark;
};

struct qre_allowed_ips; /* allowedips.c */

struct qre_device {
	struct net_device *dev;
	struct list_head entry; /* qre_net.devices */
	struct qre_counters __percpu *counters;
	struct qre_gro *gro;
	struct qre_allowed_ips *allowed_ips;
	struct list_head sessions; /* struct qre_session.entry; RCU readers, qre_net.lock writers */
	u32 session_count;
	struct list_head cids; /* struct qre_cid_entry.device_entry: of no session */
	u32 cid_count;
	struct qre_device_config config;
	u8 *dest_profile;
	size_t dest_profile_size;
	u8 ecn;		/* of outer packets */
	u32 fwmark;	/* of those that leave by a socket that we opened */
	bool published; /* in qre_net.devices: registered, and not being unregistered */
};

extern struct rtnl_link_ops qre_link_ops;

/* Devices of the caller's namespace; qre_net.lock is held. */
struct qre_device *qre_device_by_name(struct net *net, const char *name);
struct qre_device *qre_device_by_index(struct net *net, u32 ifindex);
/* RTNL is held, qre_net.lock is not. Makes and registers a device; ERR_PTR(-EEXIST, -ENOSPC, ...).
 */
struct qre_device *qre_device_create(struct net *net, const char *name,
				     struct netlink_ext_ack *extack);
/* RTNL is held, qre_net.lock is not. Ends every session of it. */
void qre_device_destroy(struct qre_device *qdev);
/* A role change, or a smaller limit than what is there, is refused (-EBUSY) while there are
 * sessions. RTNL and qre_net.lock are held. @mtu 0: unchanged. Whole or not at all. */
int qre_device_configure(struct qre_device *qdev, const struct qre_device_config *config, u32 mtu,
			 struct netlink_ext_ack *extack);
void qre_count_drop(struct qre_device *qdev, enum qre_drop why, unsigned int packets);
struct qre_totals {
	u64 rx_packets, rx_bytes, tx_packets, tx_bytes;
	u64 drops[QRE_DROP_MAX + 1];
};
void qre_device_totals(struct qre_device *qdev, struct qre_totals *totals);

void qre_count_session(struct qre_session *s, bool receive, unsigned int packets, u64 bytes);

#endif
