// SPDX-License-Identifier: GPL-2.0-only
/*
 * UDP sockets that carry sessions: user space's (the shared one of a server's port, a client's
 * own), taken over by descriptor, and those that the module opens itself.
 *
 * sk_user_data is BPF's (REUSEPORT_SOCKARRAY keeps its slot there) and is never touched: what
 * belongs to a socket is found in a table of our own, by its address. The descriptor's owner can
 * still change encap_type; packets then reach the socket's queue, and nothing else happens.
 *
 * A process can hold the lock of its socket for as long as it likes (a page fault in a corked
 * sendmsg): the hook is taken and given back without that lock.
 */
#include <linux/file.h>
#include <linux/hash.h>
#include <linux/net.h>
#include <linux/rhashtable.h>
#include <linux/slab.h>
#include <net/inet_sock.h>
#include <net/sock.h>
#include <net/udp.h>
#include <net/udp_tunnel.h>
#include "cid.h"
#include "compat.h"
#include "device.h"
#include "namespace.h"
#include "receive.h"
#include "session.h"
#include "socket.h"

#define QRE_ENCAP_TYPE	   1 /* any but 0 makes UDP ask encap_rcv */
#define QRE_UNPIN_INTERVAL (HZ / 4)

static u32 qre_sock_hash(const void *at, u32 size, u32 seed)
{
	const struct sock *const *sk = at;

	return hash_64((uintptr_t)*sk ^ (u64)seed << 32, 32) ^ seed;
}

/* By struct sock: grows with its entries, so that lookups stay cheap with many sockets. */
static struct rhashtable qre_sockets;
static const struct rhashtable_params qre_sockets_params = {
	.hashfn = qre_sock_hash,
	.key_len = sizeof(struct sock *),
	.key_offset = offsetof(struct qre_socket, sk),
	.head_offset = offsetof(struct qre_socket, node),
	.automatic_shrinking = true,
};

struct qre_socket *qre_socket_of(const struct sock *sk)
{
	return rhashtable_lookup(&qre_sockets, &sk, qre_sockets_params);
}

int qre_sockets_init(void)
{
	return rhashtable_init(&qre_sockets, &qre_sockets_params);
}

void qre_sockets_exit(void)
{
	rhashtable_destroy(&qre_sockets);
}

/* --- what arrives --- */

static u64 qre_cid_hash(const u8 *bytes, unsigned int length)
{
	u64 word = 0;

	memcpy(&word, bytes, min_t(unsigned int, length, sizeof(word)));
	return hash_64(word ^ length, 8);
}

void qre_socket_add_cid(struct qre_socket *qs, struct qre_cid_entry *entry)
{
	unsigned int length = entry->cid.length;

	hlist_add_head_rcu(&entry->node, &qs->by_cid[qre_cid_hash(entry->cid.bytes, length)]);
	if (!qs->length_users[length]++)
		set_bit(length, &qs->cid_lengths);
}

void qre_socket_del_cid(struct qre_socket *qs, struct qre_cid_entry *entry)
{
	unsigned int length = entry->cid.length;

	if (hlist_unhashed(&entry->node))
		return;
	hlist_del_init_rcu(&entry->node);
	if (!--qs->length_users[length])
		clear_bit(length, &qs->cid_lengths);
}

struct qre_session *qre_socket_session(struct qre_socket *qs, const u8 *after_first, u32 available)
{
	struct qre_session *client = rcu_dereference(qs->client);
	unsigned long lengths = READ_ONCE(qs->cid_lengths);
	unsigned int length;

	for_each_set_bit(length, &lengths, QRE_CID_MAX + 1) {
		struct qre_cid_entry *entry;

		if (available < length)
			break;
		hlist_for_each_entry_rcu(entry, &qs->by_cid[qre_cid_hash(after_first, length)],
					 node)
			if (entry->cid.length == length &&
			    !memcmp(entry->cid.bytes, after_first, length))
				return READ_ONCE(entry->session);
	}
	if (client && available >= client->rx_cid_size &&
	    !memcmp(after_first, client->client_cid.bytes, client->rx_cid_size))
		return client;
	return NULL;
}

/* --- life --- */

static void qre_socket_free(struct work_struct *work)
{
	struct qre_socket *qs = container_of(to_rcu_work(work), struct qre_socket, free);

	if (qs->kernel) {
		kernel_sock_shutdown(qs->sock, SHUT_RDWR);
		sock_release(qs->sock);
	} else {
		__fput_sync(
			qs->sock->file); /* now: left for later, it might outlive its namespace */
	}
	free_percpu(qs->stats);
	if (atomic_dec_and_test(&qs->qn->live_sockets))
		wake_up_var(&qs->qn->live_sockets);
	kfree(qs);
}

void qre_socket_put(struct qre_socket *qs)
{
	if (qs && refcount_dec_and_test(&qs->refs)) {
		INIT_RCU_WORK(&qs->free, qre_socket_free);
		queue_rcu_work(qre_wq, &qs->free);
	}
}

/*
 * A socket of user space holds its namespace, and we hold the socket: a namespace whose processes
 * are all dead would never end. Once our descriptor is the only one left, and no process can get
 * another, the socket becomes one of the kernel's kind, which holds no namespace but ends with it.
 */
static bool qre_socket_try_unpin(struct qre_socket *qs)
{
	struct sock *sk = qs->sk;

	if (file_count(qs->sock->file) != 1)
		return false;
	lock_sock(sk); /* no process can hold it */
	if (sk->sk_net_refcnt) {
		/* What sk_alloc() and __sk_destruct() do otherwise for a socket of the kernel. */
		qre_keep_net_memory(sock_net(sk));
		sk->sk_net_refcnt = 0;
		sock_inuse_add(sock_net(sk), -1);
		put_net_track(sock_net(sk), &sk->ns_tracker);
		qre_track_kernel_socket(sock_net(sk), &sk->ns_tracker);
	}
	release_sock(sk);
	return true;
}

/* Has a reference of its own while it is on its way or queued. */
static void qre_socket_unpin(struct work_struct *work)
{
	struct qre_socket *qs = container_of(to_delayed_work(work), struct qre_socket, unpin);

	if (READ_ONCE(qs->unhooked) || qre_socket_try_unpin(qs))
		qre_socket_put(qs);
	else
		queue_delayed_work(qre_wq, &qs->unpin, QRE_UNPIN_INTERVAL);
}

/* Take the hook; it must not be in use. */
static int qre_socket_hook(struct qre_socket *qs, struct netlink_ext_ack *extack)
{
	struct udp_sock *up = udp_sk(qs->sk);
	int error;

	error = rhashtable_lookup_insert_fast(&qre_sockets, &qs->node, qre_sockets_params);
	if (error && error != -EEXIST)
		return error;
	if (!error && !READ_ONCE(up->encap_type) && !cmpxchg(&up->encap_rcv, NULL, qre_encap_rcv)) {
		WRITE_ONCE(up->encap_type, QRE_ENCAP_TYPE);
		qre_encap_enable(qs->sock);
		return 0;
	}
	if (!error)
		rhashtable_remove_fast(&qre_sockets, &qs->node, qre_sockets_params);
	NL_SET_ERR_MSG(extack, "SocketFd: the socket is in use by another tunnel");
	return -EBUSY;
}

/* qre_net.lock is held; the reference of the tables goes. */
static void qre_socket_unhook(struct qre_socket *qs)
{
	struct udp_sock *up = udp_sk(qs->sk);

	list_del(&qs->entry);
	WRITE_ONCE(qs->unhooked, true);
	if (cmpxchg(&up->encap_rcv, qre_encap_rcv, NULL) == qre_encap_rcv)
		WRITE_ONCE(up->encap_type, 0);
	rhashtable_remove_fast(&qre_sockets, &qs->node, qre_sockets_params);
	if (qs->kernel) {
		/* Its port is free at once; the socket itself is closed a grace period later. */
		lock_sock(qs->sk); /* ours alone */
		qs->sk->sk_prot->unhash(qs->sk);
		release_sock(qs->sk);
	} else if (cancel_delayed_work(&qs->unpin)) {
		qre_socket_put(qs);
	}
	qre_socket_put(qs); /* freed after a grace period: packets under way still find it */
}

static void qre_socket_unused(struct qre_socket *qs)
{
	if (!qs->users && !qs->shared)
		qre_socket_unhook(qs);
}

static struct qre_address qre_address_bound(const struct sock *sk)
{
	__be16 port = inet_sk(sk)->inet_sport;

#if IS_ENABLED(CONFIG_IPV6)
	if (sk->sk_family == AF_INET6 && !ipv6_addr_v4mapped(&sk->sk_v6_rcv_saddr))
		return qre_address_v6(&sk->sk_v6_rcv_saddr, port);
#endif
	return qre_address_v4(inet_sk(sk)->inet_rcv_saddr, port);
}

bool qre_socket_speaks(const struct qre_socket *qs, u16 family)
{
	if (qs->address.family == AF_INET || family == AF_INET6)
		return qs->address.family == family;
	return qre_address_is_any(&qs->address) && !ipv6_only_sock(qs->sk);
}

static struct qre_socket *qre_socket_new(struct qre_net *qn, struct socket *sock, bool kernel,
					 struct netlink_ext_ack *extack)
{
	struct qre_socket *qs = kzalloc(sizeof(*qs), GFP_KERNEL_ACCOUNT);
	int error = -ENOMEM;

	if (!qs)
		return ERR_PTR(-ENOMEM);
	qs->stats = __netdev_alloc_pcpu_stats(struct qre_socket_stats, GFP_KERNEL_ACCOUNT);
	if (!qs->stats)
		goto free;
	qs->qn = qn;
	qs->sock = sock;
	qs->sk = sock->sk;
	qs->kernel = kernel;
	qs->address = qre_address_bound(qs->sk);
	refcount_set(&qs->refs, 1);
	INIT_DELAYED_WORK(&qs->unpin, qre_socket_unpin);
	error = qre_socket_hook(qs, extack);
	if (error)
		goto free;
	atomic_inc(&qn->live_sockets);
	list_add(&qs->entry, &qn->sockets);
	if (!kernel) {
		refcount_inc(&qs->refs);
		queue_delayed_work(qre_wq, &qs->unpin, QRE_UNPIN_INTERVAL);
	}
	return qs;
free:
	free_percpu(qs->stats);
	kfree(qs);
	return ERR_PTR(error);
}

/* A bound UDP socket of the caller's namespace by descriptor. */
static struct qre_socket *qre_socket_by_fd(struct qre_net *qn, u32 fd,
					   struct netlink_ext_ack *extack)
{
	struct qre_socket *qs;
	struct socket *sock;
	int error;

	sock = sockfd_lookup(fd, &error);
	if (!sock) {
		if (error == -ENOTSOCK)
			NL_SET_ERR_MSG(extack, "SocketFd is not a socket");
		else
			NL_SET_ERR_MSG(extack, "SocketFd is not an open descriptor");
		return ERR_PTR(error);
	}
	error = -EINVAL;
	if (!net_eq(sock_net(sock->sk), qn->net)) {
		NL_SET_ERR_MSG(extack, "SocketFd is a socket of another network namespace");
	} else if ((sock->sk->sk_family != AF_INET && sock->sk->sk_family != AF_INET6) ||
		   sock->type != SOCK_DGRAM || sock->sk->sk_protocol != IPPROTO_UDP) {
		NL_SET_ERR_MSG(extack, "SocketFd is not a UDP socket of IPv4 or IPv6");
	} else if (!inet_sk(sock->sk)->inet_num) {
		NL_SET_ERR_MSG(extack, "SocketFd is a socket that is not bound");
	} else {
		qs = qre_socket_new(qn, sock, false, extack);
		if (!IS_ERR(qs))
			return qs;
		error = PTR_ERR(qs);
	}
	sockfd_put(sock);
	return ERR_PTR(error);
}

/* One of IPv6 that is bound to every address speaks IPv4, too, as user space's do. */
static int qre_sock_create(struct net *net, const struct qre_address *local, struct socket **sock)
{
	struct udp_port_cfg config = {
		.family = local->family,
		.local_udp_port = local->port,
		.use_udp_checksums = true,
		.use_udp6_tx_checksums = true,
		.use_udp6_rx_checksums = true,
	};

#if IS_ENABLED(CONFIG_IPV6)
	if (local->family == AF_INET6)
		config.local_ip6 = local->ip6;
	else
		config.local_ip.s_addr = local->ip4;
#else
	if (local->family != AF_INET)
		return -EAFNOSUPPORT;
	config.local_ip.s_addr = local->ip4;
#endif
	return udp_sock_create(net, &config, sock);
}

/* Nothing is fragmented, and no word of ICMP about the path's MTU is wanted: as user space's. */
static void qre_sock_never_fragments(struct sock *sk)
{
	ip_sock_set_mtu_discover(sk, IP_PMTUDISC_PROBE);
#if IS_ENABLED(CONFIG_IPV6)
	if (sk->sk_family == AF_INET6)
		inet6_sk(sk)->pmtudisc = IPV6_PMTUDISC_INTERFACE;
#endif
}

static struct qre_socket *qre_socket_open(struct qre_session *s, struct netlink_ext_ack *extack)
{
	struct qre_net *qn = qre_net_of(dev_net(s->qdev->dev));
	struct qre_socket *qs;
	struct socket *sock;
	int error;

	error = qre_sock_create(qn->net, &s->endpoint.local, &sock);
	if (error == -EAFNOSUPPORT) {
		NL_SET_ERR_MSG(extack, "UnderlayLocalIPv6: this machine has no IPv6");
		return ERR_PTR(error);
	}
	if (error) {
		NL_SET_ERR_MSG(extack, "UnderlayLocalPort: no socket can be bound to this address");
		return ERR_PTR(error);
	}
	WRITE_ONCE(sock->sk->sk_mark, s->qdev->config.fwmark);
	qre_sock_never_fragments(sock->sk);
	qs = qre_socket_new(qn, sock, true, extack);
	if (IS_ERR(qs))
		sock_release(sock);
	return qs;
}

/* Whether it is bound to every address, that one too. */
static bool qre_socket_covers(const struct qre_socket *qs, const struct qre_address *local)
{
	return qs->address.port == local->port && qre_address_is_any(&qs->address) &&
	       qre_socket_speaks(qs, local->family);
}

static struct qre_socket *qre_socket_at(struct qre_net *qn, const struct qre_address *local)
{
	struct qre_socket *qs;

	list_for_each_entry(qs, &qn->sockets, entry)
		if (qre_address_equal(&qs->address, local) ||
		    (qs->shared && qre_socket_covers(qs, local)))
			return qs;
	return NULL;
}

/* A client's session that is closing gives its place to the next one; the socket may be gone then.
 */
static bool qre_socket_vacate(struct qre_socket *qs, const struct qre_session *s)
{
	struct qre_session *client = rcu_dereference_protected(qs->client, 1);

	if (!s->client || !client || READ_ONCE(client->life) < QRE_LIFE_CLOSING)
		return false;
	qre_session_unpublish(client);
	return true;
}

/* Whether this session can be told from those that use the socket already. */
static int qre_socket_suits(struct qre_socket *qs, const struct qre_session *s,
			    struct netlink_ext_ack *extack)
{
	struct qre_session *client = rcu_dereference_protected(qs->client, 1);

	if (s->client && client) {
		NL_SET_ERR_MSG(
			extack,
			"UnderlayLocalPort: another client session speaks from this address");
		return -EADDRINUSE;
	}
	if (s->has_endpoint && !qre_socket_speaks(qs, s->peer.family)) {
		NL_SET_ERR_MSG(extack, QRE_OTHER_FAMILY);
		return -EAFNOSUPPORT;
	}
	/* Whoever has an empty id gets every packet. */
	if (s->client && !s->rx_cid_size && (qs->shared || qs->users)) {
		NL_SET_ERR_MSG(extack,
			       "ClientConnectionId is empty: the client needs a port of its own");
		return -EADDRINUSE;
	}
	if (!s->client && client && !client->rx_cid_size) {
		NL_SET_ERR_MSG(extack, "UnderlayLocalPort: a client session without a "
				       "ClientConnectionId speaks from this address");
		return -EADDRINUSE;
	}
	return 0;
}

int qre_socket_join(struct qre_session *s, int fd, struct netlink_ext_ack *extack)
{
	struct qre_net *qn = qre_net_of(dev_net(s->qdev->dev));
	struct qre_socket *qs;
	int error;

	if (fd >= 0) {
		qs = qre_socket_by_fd(qn, fd, extack);
	} else if (s->has_endpoint) {
		qs = qre_socket_at(qn, &s->endpoint.local);
		if (qs && qre_socket_vacate(qs, s))
			qs = qre_socket_at(qn, &s->endpoint.local);
		if (!qs)
			qs = qre_socket_open(s, extack);
	} else {
		qs = qn->shared; /* or none: nothing can be sent nor received until one is
				    registered */
	}
	if (IS_ERR(qs))
		return PTR_ERR(qs);
	if (!qs)
		return 0;
	error = qre_socket_suits(qs, s, extack);
	if (error) {
		qre_socket_unused(qs);
		return error;
	}
	qs->users++;
	refcount_inc(&qs->refs);
	s->socket = qs;
	return 0;
}

void qre_socket_leave(struct qre_session *s)
{
	struct qre_socket *qs = s->socket;

	if (!qs)
		return;
	qs->users--;
	qre_socket_unused(qs);
	/* The session's reference goes when the session is freed: it may be transmitting just now.
	 */
}

void qre_socket_publish(struct qre_session *s)
{
	if (s->client && s->socket)
		rcu_assign_pointer(s->socket->client, s);
}

void qre_socket_unpublish(struct qre_session *s)
{
	if (s->client && s->socket)
		RCU_INIT_POINTER(s->socket->client, NULL);
}

/* --- a second socket of a client --- */

struct qre_socket *qre_socket_lend(struct qre_session *s, u32 fd, struct netlink_ext_ack *extack)
{
	struct qre_socket *qs = qre_socket_by_fd(qre_net_of(dev_net(s->qdev->dev)), fd, extack);
	int error;

	if (IS_ERR(qs))
		return qs;
	error = qre_socket_suits(qs, s, extack);
	if (error) {
		qre_socket_unused(qs);
		return ERR_PTR(error);
	}
	qs->users++;
	refcount_inc(&qs->refs);
	return qs;
}

void qre_socket_admit(struct qre_socket *qs, struct qre_session *s)
{
	rcu_assign_pointer(qs->client, s);
}

void qre_socket_return(struct qre_socket *qs)
{
	if (!qs)
		return;
	RCU_INIT_POINTER(qs->client, NULL);
	qs->users--;
	qre_socket_unused(qs);
	qre_socket_put(qs); /* packets under way find it until a grace period is over */
}

/* --- the shared socket --- */

static bool qre_session_moves(const struct qre_session *s, const struct qre_socket *from)
{
	return !s->client && s->socket == from && (from || !s->has_endpoint);
}

/* Sessions that speak through @from (NULL: those without a socket) go on through @to. */
static void qre_sessions_move(struct qre_net *qn, struct qre_socket *from, struct qre_socket *to)
{
	struct qre_cid_entry *entry;
	struct qre_device *qdev;
	unsigned int moved = 0;
	struct qre_session *s;

	list_for_each_entry(qdev, &qn->devices, entry) {
		list_for_each_entry(s, &qdev->sessions, entry) {
			if (!qre_session_moves(s, from))
				continue;
			if (from)
				list_for_each_entry(entry, &s->cids, device_entry)
					qre_socket_del_cid(from, entry);
			to->users++;
			refcount_inc(&to->refs);
			WRITE_ONCE(s->socket, to);
			list_for_each_entry(entry, &s->cids, device_entry)
				qre_socket_add_cid(to, entry);
			moved++;
		}
	}
	if (!from || !moved)
		return;
	synchronize_net(); /* the old one is no longer used for sending */
	from->users -= moved;
	while (moved--)
		qre_socket_put(from);
}

int qre_shared_register(struct qre_net *qn, u32 fd, struct netlink_ext_ack *extack)
{
	struct qre_socket *old = qn->shared, *qs, *same;

	qs = qre_socket_by_fd(qn, fd, extack);
	if (IS_ERR(qs))
		return PTR_ERR(qs);
	if (old && !qre_address_equal(&old->address, &qs->address)) {
		NL_SET_ERR_MSG(extack,
			       "SocketFd: a shared socket of another address is registered");
		qre_socket_unused(qs);
		return -EBUSY;
	}
	qs->shared = true;
	qn->shared = qs;
	if (old) {
		qre_sessions_move(qn, old, qs);
		old->shared = false;
		qre_socket_unused(old);
	}
	/* Sessions whose underlay names this address, through a socket of ours or through none. */
	same = NULL;
	list_for_each_entry(same, &qn->sockets, entry)
		if (same != qs && same->kernel &&
		    (qre_address_equal(&same->address, &qs->address) ||
		     qre_socket_covers(qs, &same->address)) &&
		    !rcu_access_pointer(same->client))
			break;
	if (!list_entry_is_head(same, &qn->sockets, entry)) {
		qre_sessions_move(qn, same, qs);
		qre_socket_unused(same);
	}
	qre_sessions_move(qn, NULL, qs);
	return 0;
}

int qre_shared_unregister(struct qre_net *qn, struct netlink_ext_ack *extack)
{
	struct qre_socket *qs = qn->shared;

	if (!qs) {
		NL_SET_ERR_MSG(extack, "no shared socket is registered");
		return -ENOENT;
	}
	/* Sessions that speak through it keep it, until they end. */
	qn->shared = NULL;
	qs->shared = false;
	qre_socket_unused(qs);
	return 0;
}

void qre_shared_tell(struct qre_net *qn, struct qre_shared_info *info)
{
	struct qre_socket *qs = qn->shared;
	int cpu;

	memset(info, 0, sizeof(*info));
	if (!qs)
		return;
	info->set = true;
	info->address = qs->address;
	for_each_possible_cpu(cpu) {
		struct qre_socket_stats *stats = per_cpu_ptr(qs->stats, cpu);
		unsigned int start;
		u64 rx, passed;

		do {
			start = u64_stats_fetch_begin(&stats->syncp);
			rx = u64_stats_read(&stats->rx);
			passed = u64_stats_read(&stats->passed);
		} while (u64_stats_fetch_retry(&stats->syncp, start));
		info->rx += rx;
		info->passed += passed;
	}
}

void qre_sockets_release(struct qre_net *qn)
{
	if (qn->shared)
		qre_shared_unregister(qn, NULL);
	WARN_ON(!list_empty(&qn->sockets));
}

void qre_sockets_wait(struct qre_net *qn)
{
	wait_var_event(&qn->live_sockets, !atomic_read(&qn->live_sockets));
}
