/* SPDX-License-Identifier: GPL-2.0-only */
/* What qre.ko keeps of a network namespace (main.c). */
#ifndef QRE_NAMESPACE_H
#define QRE_NAMESPACE_H

#include <linux/list.h>
#include <linux/llist.h>
#include <linux/mutex.h>
#include <linux/workqueue.h>

#include "cidmap.h"

struct net;
struct qre_key_book;
struct qre_socket;
struct sk_buff;

struct qre_loader { /* what SHARED_LOADER_SET said */
	bool set;
	char program[32];
	char pin_dir[256];
	u8 cid_length;
	u32 pid;
};

struct qre_net {
	struct net *net;
	struct mutex lock;
	struct list_head devices; /* registered ones */
	u32 device_count;	  /* those on their way, too; RTNL */
	u64 session_number;	  /* of the last session */
	struct list_head sockets; /* struct qre_socket.entry */
	atomic_t live_sockets;	  /* those that are being freed, too */
	struct list_head cids;	  /* struct qre_cid_entry.entry: all adopted ones */
	u32 cid_count;
	struct qre_socket *shared; /* the registered one, or NULL */
	struct qre_cidmap map;
	struct qre_loader loader;
	struct qre_key_book *used_keys;
	struct workqueue_struct *wq; /* from the first device on */
	struct llist_head ended;     /* struct qre_session.ended: to be unpublished */
	struct llist_head tidied;    /* struct qre_session.tidied: sockets of theirs go */
	struct work_struct reap;
};

struct qre_net *qre_net_of(struct net *net);
/* What a namespace with devices needs. RTNL is held. */
int qre_net_begin_devices(struct qre_net *qn);
/* Whether the sender of @request may change anything, and see more than counters. */
#define QRE_NOT_CAPABLE                                                                            \
	"CAP_NET_ADMIN is needed, in the initial user namespace unless qre is loaded with "        \
	"userns=1"
bool qre_may(struct sk_buff *request, struct net *net);
bool qre_may_make_links(struct net *net); /* the calling process */

#endif
