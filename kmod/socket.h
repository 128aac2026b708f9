/* SPDX-License-Identifier: GPL-2.0-only */
/* The UDP socket that sessions send through and are found by (socket.c). */
#ifndef QRE_SOCKET_H
#define QRE_SOCKET_H

#include <linux/list.h>
#include <linux/refcount.h>
#include <linux/rhashtable.h>
#include <linux/u64_stats_sync.h>
#include <linux/workqueue.h>

#include "address.h"
#include "cid.h"

struct netlink_ext_ack;
struct qre_net;
struct qre_session;
struct sock;
struct socket;

struct qre_socket_stats {
	u64_stats_t rx, passed;
	struct u64_stats_sync syncp;
};

struct qre_socket {
	struct list_head entry; /* qre_net.sockets */
	struct rhash_head node; /* by struct sock, for encap_rcv; RCU */
	struct qre_net *qn;
	struct socket *sock;
	struct sock *sk;
	bool kernel; /* made by us; otherwise user space's, held by its file */
	bool shared; /* registered as such */
	bool unhooked;
	struct qre_address address;    /* that it is bound to */
	u32 users;		       /* sessions; qre_net.lock */
	struct hlist_head by_cid[256]; /* struct qre_cid_entry.node; RCU */
	unsigned long cid_lengths;     /* bit n: a CID of n bytes is in by_cid */
	u16 length_users[QRE_CID_MAX + 1];
	struct qre_session __rcu *client; /* the client session that uses it */
	struct qre_socket_stats __percpu *stats;
	struct delayed_work unpin; /* see qre_socket_unpin */
	refcount_t refs;
	struct rcu_work free;
};

/*
 * qre_net.lock is held. Find or open the socket for a session that nobody can find yet: s->socket,
 * which it may send through. Undone by qre_socket_leave.
 */
int qre_socket_join(struct qre_session *s, int fd, struct netlink_ext_ack *extack);
void qre_socket_leave(struct qre_session *s);
/* qre_net.lock is held. A client's session gets what arrives, or gets it no more; a server's is
 * found by its CIDs. */
void qre_socket_publish(struct qre_session *s);
void qre_socket_unpublish(struct qre_session *s);
/* qre_net.lock is held. Another one for a client's session, which nobody uses yet: ERR_PTR. Then it
 * gets what arrives there (under qre_session.lock, too), until it is returned; NULL: none was. */
struct qre_socket *qre_socket_lend(struct qre_session *s, u32 fd, struct netlink_ext_ack *extack);
void qre_socket_admit(struct qre_socket *qs, struct qre_session *s);
void qre_socket_return(struct qre_socket *qs);
void qre_socket_put(struct qre_socket *qs); /* any context */
/* Whether it can reach peers of this family. */
#define QRE_OTHER_FAMILY                                                                           \
	"UnderlayPeerIPv4, UnderlayPeerIPv6: the session's socket is of the other version of IP"
bool qre_socket_speaks(const struct qre_socket *qs, u16 family);
void qre_socket_add_cid(struct qre_socket *qs, struct qre_cid_entry *entry);
void qre_socket_del_cid(struct qre_socket *qs, struct qre_cid_entry *entry);
/* Under RCU. */
struct qre_socket *qre_socket_of(const struct sock *sk);
struct qre_session *qre_socket_session(struct qre_socket *qs, const u8 *after_first, u32 available);
/* At the end of a namespace, which nobody else is in any more. The first drops what is registered,
 * the second waits until every socket is closed. */
void qre_sockets_release(struct qre_net *qn);
void qre_sockets_wait(struct qre_net *qn);
int qre_sockets_init(void);
void qre_sockets_exit(void);

/* The shared socket; qre_net.lock is held. */
int qre_shared_register(struct qre_net *qn, u32 fd, struct netlink_ext_ack *extack);
int qre_shared_unregister(struct qre_net *qn, struct netlink_ext_ack *extack); /* -ENOENT: none */
struct qre_shared_info {
	bool set;
	struct qre_address address;
	u64 rx, passed;
};
void qre_shared_tell(struct qre_net *qn, struct qre_shared_info *info);

#endif
