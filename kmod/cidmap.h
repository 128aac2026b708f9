/* SPDX-License-Identifier: GPL-2.0-only */
/* The BPF map that connection IDs are mirrored in (cidmap.c). qre_net.lock is held. */
#ifndef QRE_CIDMAP_H
#define QRE_CIDMAP_H

#include <linux/types.h>

struct bpf_map;
struct netlink_ext_ack;
struct qre_cid_entry;
struct qre_net;

struct qre_cidmap {
	struct bpf_map *map; /* NULL: none */
	u32 id;
	u32 entries; /* CIDs that are in it */
	u32 missing; /* CIDs that should be and are not */
	u64 failures;
};

int qre_cidmap_register(struct qre_net *qn, u32 fd, struct netlink_ext_ack *extack);
int qre_cidmap_unregister(struct qre_net *qn, struct netlink_ext_ack *extack); /* -ENOENT: none */

void qre_cidmap_add(struct qre_net *qn, struct qre_cid_entry *entry);
void qre_cidmap_del(struct qre_net *qn, struct qre_cid_entry *entry);
void qre_cidmap_release(struct qre_net *qn);

#endif
