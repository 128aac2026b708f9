/* SPDX-License-Identifier: GPL-2.0-only */
/* A connection ID that packets come with. qre_net.lock is held. */
#ifndef QRE_CID_H
#define QRE_CID_H

#include <linux/list.h>

#include "qre.h"

struct netlink_ext_ack;
struct qre_device;
struct qre_session;

/* One that was adopted. */
struct qre_cid_entry {
	struct list_head entry;	       /* qre_net.cids */
	struct list_head device_entry; /* qre_device.cids, or qre_session.cids */
	struct hlist_node node;	       /* qre_socket.by_cid; RCU; unhashed without a session */
	struct qre_cid cid;
	u64 sequence;
	struct qre_device *qdev;
	struct qre_session *session; /* NULL: of the device alone */
	bool mirrored;		     /* it is in the BPF map */
	struct rcu_head rcu;
};

/* @id NULL: a CID of the device alone. */
int qre_cid_adopt(struct qre_device *qdev, const u8 *id, const struct qre_cid *cid, u64 sequence,
		  struct netlink_ext_ack *extack);
int qre_cid_release(struct qre_device *qdev, const u8 *id, const struct qre_cid *cid,
		    struct netlink_ext_ack *extack);

#endif
