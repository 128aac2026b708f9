// SPDX-License-Identifier: GPL-2.0-only
/* The life of sessions: what user space asks for, carried out whole or not at all. */
#include <crypto/algapi.h>
#include <linux/slab.h>
#include <linux/rculist.h>
#include <net/ipv6.h>
#include "allowedips.h"
#include "cid.h"
#include "cidmap.h"
#include "compat.h"
#include "control.h"
#include "device.h"
#include "events.h"
#include "key.h"
#include "namespace.h"
#include "session.h"
#include "socket.h"
#include "usedkeys.h"

static bool qre_same_cid(const struct qre_cid *a, const struct qre_cid *b)
{
	return a->length == b->length && !memcmp(a->bytes, b->bytes, a->length);
}

/* --- finding --- */

static bool qre_session_ends(const struct qre_session *s)
{
	return READ_ONCE(s->life) >= QRE_LIFE_CLOSING;
}

static struct qre_session *qre_session_any(struct qre_device *qdev, const u8 *id)
{
	struct qre_session *s;

	list_for_each_entry(s, &qdev->sessions, entry)
		if (!memcmp(s->id, id, QRE_SESSION_ID_SIZE))
			return s;
	return NULL;
}

struct qre_session *qre_session_find(struct qre_device *qdev, const u8 *id)
{
	struct qre_session *s = qre_session_any(qdev, id);

	return s && READ_ONCE(s->life) != QRE_LIFE_ENDED ? s : NULL;
}

struct qre_session *qre_session_from(struct qre_device *qdev, u64 number)
{
	struct qre_session *s;

	list_for_each_entry(s, &qdev->sessions, entry)
		if (s->number >= number && READ_ONCE(s->life) != QRE_LIFE_ENDED)
			return s;
	return NULL;
}

u64 qre_session_number(const struct qre_session *s)
{
	return s->number;
}

/* --- connection IDs --- */

static struct qre_cid_entry *qre_cid_find(struct qre_net *qn, const struct qre_cid *cid)
{
	struct qre_cid_entry *entry;

	list_for_each_entry(entry, &qn->cids, entry)
		if (qre_same_cid(&entry->cid, cid))
			return entry;
	return NULL;
}

static struct qre_cid_entry *qre_cid_new(const struct qre_cid *cid, u64 sequence)
{
	struct qre_cid_entry *entry = kzalloc(sizeof(*entry), GFP_KERNEL_ACCOUNT);

	if (entry) {
		entry->cid = *cid;
		entry->sequence = sequence;
	}
	return entry;
}

/* To a session, or to the device alone. */
static void qre_cid_give(struct qre_cid_entry *entry, struct qre_session *s)
{
	WRITE_ONCE(entry->session, s);
	if (s) {
		list_add_tail(&entry->device_entry, &s->cids);
		s->cid_count++;
		if (s->socket)
			qre_socket_add_cid(s->socket, entry);
	} else {
		list_add_tail(&entry->device_entry, &entry->qdev->cids);
		entry->qdev->cid_count++;
	}
}

/* Packets are steered to the kernel when there is a socket that takes them. */
static void qre_cid_link(struct qre_cid_entry *entry, struct qre_device *qdev,
			 struct qre_session *s)
{
	struct qre_net *qn = qre_net_of(dev_net(qdev->dev));

	entry->qdev = qdev;
	list_add_tail(&entry->entry, &qn->cids);
	qn->cid_count++;
	qre_cid_give(entry, s);
	qre_cidmap_add(qn, entry);
}

/* One of the device alone becomes the session's: it is steered to the kernel all the while. */
static void qre_cid_move(struct qre_cid_entry *entry, struct qre_session *s, u64 sequence)
{
	list_del(&entry->device_entry);
	entry->qdev->cid_count--;
	entry->sequence = sequence;
	qre_cid_give(entry, s);
}

static void qre_cid_unlink(struct qre_cid_entry *entry)
{
	struct qre_net *qn = qre_net_of(dev_net(entry->qdev->dev));
	struct qre_session *s = entry->session;

	qre_cidmap_del(qn, entry);
	if (s) {
		if (s->socket)
			qre_socket_del_cid(s->socket, entry);
		s->cid_count--;
	} else {
		entry->qdev->cid_count--;
	}
	list_del(&entry->device_entry);
	list_del(&entry->entry);
	qn->cid_count--;
	kfree_rcu(entry, rcu);
}

static int qre_cid_room(struct qre_net *qn, struct netlink_ext_ack *extack)
{
	if (qn->cid_count < QRE_CIDS_MAX)
		return 0;
	NL_SET_ERR_MSG(extack, "ConnectionId: too many connection ids in this namespace");
	return -ENOSPC;
}

int qre_cid_adopt(struct qre_device *qdev, const u8 *id, const struct qre_cid *cid, u64 sequence,
		  struct netlink_ext_ack *extack)
{
	struct qre_net *qn = qre_net_of(dev_net(qdev->dev));
	struct qre_session *s = id ? qre_session_find(qdev, id) : NULL;
	struct qre_cid_entry *entry = qre_cid_find(qn, cid);
	int error;

	if (id && (!s || qre_session_ends(s))) {
		NL_SET_ERR_MSG(extack, "SessionId: there is no such session");
		return -ENOENT;
	}
	if (s && s->client) {
		NL_SET_ERR_MSG(extack, "ConnectionId: a client's session has no routed ids");
		return -EINVAL;
	}
	/* A repeat is harmless; naming no session finds the one that has it already. */
	if (entry && entry->qdev == qdev && (!s || entry->session == s))
		return 0;
	if (entry && (entry->qdev != qdev || entry->session)) {
		NL_SET_ERR_MSG(extack, "ConnectionId is in use by another session or device");
		return -EEXIST;
	}
	if (s && cid->length != s->rx_cid_size) {
		NL_SET_ERR_MSG(extack, "ConnectionId has another length than the session's");
		return -EINVAL;
	}
	if (s ? s->cid_count >= QRE_SESSION_CIDS_MAX : qdev->cid_count >= 256) {
		NL_SET_ERR_MSG(extack, "ConnectionId: too many connection ids");
		return -ENOSPC;
	}
	if (entry) { /* the device's own is given to a session */
		qre_cid_move(entry, s, sequence);
		return 0;
	}
	error = qre_cid_room(qn, extack);
	if (error)
		return error;
	entry = qre_cid_new(cid, sequence);
	if (!entry)
		return -ENOMEM;
	qre_cid_link(entry, qdev, s);
	return 0;
}

int qre_cid_release(struct qre_device *qdev, const u8 *id, const struct qre_cid *cid,
		    struct netlink_ext_ack *extack)
{
	struct qre_net *qn = qre_net_of(dev_net(qdev->dev));
	struct qre_cid_entry *entry = qre_cid_find(qn, cid);

	if (!entry || entry->qdev != qdev ||
	    (id && (!entry->session || memcmp(entry->session->id, id, QRE_SESSION_ID_SIZE)))) {
		NL_SET_ERR_MSG(extack, "ConnectionId is not adopted here");
		return -ENOENT;
	}
	if (entry->session && entry->session->cid_count == 1) {
		NL_SET_ERR_MSG(extack, "ConnectionId is the session's last one");
		return -EBUSY;
	}
	qre_cid_unlink(entry);
	return 0;
}

/* --- the end --- */

static void qre_session_free(struct work_struct *work)
{
	struct qre_session *s = container_of(to_rcu_work(work), struct qre_session, free);
	unsigned int i;

	qre_key_put(s->tx);
	qre_key_put(s->tx_next);
	qre_key_put(s->rx_after);
	qre_key_put(rcu_access_pointer(s->rx));
	qre_key_put(rcu_access_pointer(s->rx_next));
	qre_key_put(rcu_access_pointer(s->rx_previous));
	qre_hp_free(s->tx_hp);
	qre_hp_free(s->rx_hp);
	for (i = 0; i < QRE_CONTROLS_MAX; i++)
		kfree(s->controls[i].frames);
	kfree(s->close_packet);
	qre_joiner_free(s->joiner);
	kfree(s->allowed);
	kvfree(s->allowed_entries);
	dst_cache_destroy(&s->dst[0]);
	dst_cache_destroy(&s->dst[1]);
	free_percpu(s->counters);
	qre_socket_put(s->socket);
	netdev_put(s->qdev->dev, &s->tracker);
	kfree_sensitive(s);
}

void qre_session_put(struct qre_session *s)
{
	if (refcount_dec_and_test(&s->refs)) {
		INIT_RCU_WORK(&s->free, qre_session_free);
		queue_rcu_work(qre_wq, &s->free);
	}
}

/* Everything fails before, nothing from here on. qre_net.lock is held. */
static void qre_session_publish(struct qre_session *s, struct qre_cid_entry *cid)
{
	struct qre_device *qdev = s->qdev;
	struct qre_net *qn = qre_net_of(dev_net(qdev->dev));

	s->published = true;
	s->number = ++qn->session_number;
	list_add_tail_rcu(&s->entry, &qdev->sessions);
	qdev->session_count++;
	if (cid && cid->qdev)
		qre_cid_move(cid, s, 0);
	else if (cid)
		qre_cid_link(cid, qdev, s);
	qre_socket_publish(s);
	qre_allowed_ips_add(qdev->allowed_ips, s->allowed_entries, s->allowed_entry_count);
}

/* The exact reverse; then its life ends, and what it holds goes. */
void qre_session_unpublish(struct qre_session *s)
{
	struct qre_device *qdev = s->qdev;
	struct qre_cid_entry *entry, *next;

	if (!s->published)
		return;
	s->published = false;
	qre_allowed_ips_remove(qdev->allowed_ips, s->allowed_entries, s->allowed_entry_count);
	qre_socket_unpublish(s);
	qre_ports_end(s);
	list_for_each_entry_safe(entry, next, &s->cids, device_entry)
		qre_cid_unlink(entry);
	list_del_rcu(&s->entry);
	qdev->session_count--;

	spin_lock_bh(&s->lock);
	WRITE_ONCE(s->life, QRE_LIFE_ENDED); /* the timer is not armed again */
	spin_unlock_bh(&s->lock);
	timer_delete_sync(&s->timer);
	qre_socket_leave(s);
	qre_session_put(s);
}

void qre_session_report_end(struct qre_session *s)
{
	struct qre_net *qn = qre_net_of(dev_net(s->qdev->dev));

	if (test_and_set_bit(0, &s->reported) || !qre_session_get(s))
		return;
	llist_add(&s->ended, &qn->ended);
	queue_work(qn->wq, &qn->reap);
}

void qre_session_report_ports(struct qre_session *s)
{
	struct qre_net *qn = qre_net_of(dev_net(s->qdev->dev));

	if (test_and_set_bit(1, &s->reported) || !qre_session_get(s))
		return;
	llist_add(&s->tidied, &qn->tidied);
	queue_work(qn->wq, &qn->reap);
}

void qre_sessions_reap(struct work_struct *work)
{
	struct qre_net *qn = container_of(work, struct qre_net, reap);
	struct qre_session *s, *next;

	mutex_lock(&qn->lock);
	llist_for_each_entry_safe(s, next, llist_del_all(&qn->tidied), tidied)
	{
		clear_bit(1, &s->reported); /* what comes from here on is for another time */
		qre_ports_tidy(s);
		qre_session_put(s);
	}
	llist_for_each_entry_safe(s, next, llist_del_all(&qn->ended), ended)
	{
		qre_session_unpublish(s);
		qre_session_put(s);
	}
	mutex_unlock(&qn->lock);
}

void qre_device_end_sessions(struct qre_device *qdev)
{
	struct qre_session *s, *next;
	struct qre_cid_entry *entry, *following;

	list_for_each_entry_safe(s, next, &qdev->sessions, entry)
		qre_session_unpublish(s);
	list_for_each_entry_safe(entry, following, &qdev->cids, device_entry)
		qre_cid_unlink(entry);
}

int qre_session_delete(struct qre_device *qdev, const u8 *id, bool close,
		       struct netlink_ext_ack *extack)
{
	struct qre_session *s = qre_session_find(qdev, id);
	struct qre_outbox out;

	if (!s || qre_session_ends(s)) {
		NL_SET_ERR_MSG(extack, "SessionId: there is no such session");
		return -ENOENT;
	}
	if (!close) {
		qre_session_unpublish(s);
		return 0;
	}
	qre_outbox_init(&out);
	local_bh_disable();
	rcu_read_lock();
	spin_lock(&s->lock);
	qre_control_close(s, &out); /* or it closes by itself already */
	spin_unlock(&s->lock);
	qre_outbox_flush(s, &out);
	rcu_read_unlock();
	local_bh_enable();
	return 0;
}

int qre_frame_send(struct qre_device *qdev, const u8 *id, u64 frame_id, const u8 *frames,
		   size_t size, struct netlink_ext_ack *extack)
{
	struct qre_session *s = qre_session_find(qdev, id);
	struct qre_outbox out;
	int error;

	if (!s || READ_ONCE(s->life) != QRE_LIFE_ESTABLISHED) {
		NL_SET_ERR_MSG(extack, "SessionId: there is no such established session");
		return -ENOENT;
	}
	qre_outbox_init(&out);
	local_bh_disable();
	rcu_read_lock();
	spin_lock(&s->lock);
	error = qre_control_frames(s, frame_id, frames, size, &out);
	spin_unlock(&s->lock);
	qre_outbox_flush(s, &out);
	rcu_read_unlock();
	local_bh_enable();
	if (error == -ENOBUFS)
		NL_SET_ERR_MSG(extack, "Frames: too many are in flight");
	else if (error == -EMSGSIZE)
		NL_SET_ERR_MSG(extack, "Frames do not fit a datagram of 1200 bytes");
	return error;
}

int qre_path_proven(struct qre_device *qdev, const u8 *id, u16 payload, u64 ago_ms,
		    struct netlink_ext_ack *extack)
{
	struct qre_session *s = qre_session_find(qdev, id);

	if (!s || READ_ONCE(s->life) != QRE_LIFE_ESTABLISHED) {
		NL_SET_ERR_MSG(extack, "SessionId: there is no such established session");
		return -ENOENT;
	}
	spin_lock_bh(&s->lock);
	qre_mtu_proven(s, payload, ago_ms);
	spin_unlock_bh(&s->lock);
	return 0;
}

/* --- install --- */

static int qre_session_keys(struct qre_session *s, const struct qre_session_params *p)
{
	struct qre_key_book *book = qre_net_of(dev_net(s->qdev->dev))->used_keys;
	struct qre_key *key;

	key = qre_tx_key_new(book, p->keys.tx_key, p->keys.tx_iv, p->key_epoch);
	if (IS_ERR(key))
		return PTR_ERR(key);
	s->tx = key;
	key = qre_key_new(p->keys.rx_key, p->keys.rx_iv, p->key_epoch);
	if (IS_ERR(key))
		return PTR_ERR(key);
	RCU_INIT_POINTER(s->rx, key);
	if (p->has_next_rx) {
		key = qre_key_new(p->next.rx_key, p->next.rx_iv, p->key_epoch + 1);
		if (IS_ERR(key))
			return PTR_ERR(key);
		RCU_INIT_POINTER(s->rx_next, key);
	}
	if (p->has_next_tx) {
		key = qre_tx_key_new(book, p->next.tx_key, p->next.tx_iv, p->key_epoch + 1);
		if (IS_ERR(key))
			return PTR_ERR(key);
		s->tx_next = key;
	}
	s->tx_hp = qre_hp_new(p->tx_hp);
	if (IS_ERR(s->tx_hp))
		return PTR_ERR(s->tx_hp);
	s->rx_hp = qre_hp_new(p->rx_hp);
	if (IS_ERR(s->rx_hp))
		return PTR_ERR(s->rx_hp);
	s->keys = p->keys;
	s->next = p->next;
	s->has_next = p->has_next_rx;
	s->has_next_tx = p->has_next_tx;
	memcpy(s->tx_hp_key, p->tx_hp, QRE_KEY_SIZE);
	memcpy(s->rx_hp_key, p->rx_hp, QRE_KEY_SIZE);
	return 0;
}

static void qre_session_values(struct qre_session *s, const struct qre_session_params *p)
{
	const struct qre_cid *tx = s->client ? &p->cid : &p->client_cid;

	memcpy(s->id, p->id, QRE_SESSION_ID_SIZE);
	s->cid = p->cid;
	s->client_cid = p->client_cid;
	memcpy(s->short_id, p->short_id, QRE_SHORT_ID_SIZE);
	qre_migrate_init(s, tx, s->client ? p->sequence : 0,
			 p->has_reset_token ? p->reset_token : NULL);
	s->issued =
		s->client ? 0 : max_t(u64, p->sequence, 1); /* whoever installs it may not say */
	s->rx_cid_size = s->client ? p->client_cid.length : p->cid.length;
	s->max_payload = min_t(u16, p->max_udp_payload, QRE_UDP_PAYLOAD_MAX);
	s->usual_payload = p->usual_payload;
	s->splits = s->client && p->splits;
	s->endpoint = p->endpoint;
	s->has_endpoint = p->has_endpoint;
	s->peer = p->endpoint.peer;
	s->local[p->endpoint.local.family == AF_INET6] = p->endpoint.local;
	s->next_number = max_t(u64, p->packet_number, QRE_PACKET_NUMBER_BASE);
	s->first_sent = s->next_number;
	s->rekey_after = p->rekey_after;
	s->rekey_asked = QRE_NO_NUMBER;
	s->epoch = p->key_epoch;
	s->announced = QRE_NO_NUMBER;
	s->first_received = QRE_NO_NUMBER;
	s->largest_acked = s->largest_heard = QRE_NO_NUMBER;
	s->life = p->hold ? QRE_LIFE_HELD : QRE_LIFE_ESTABLISHED;
	s->confirmed = !s->client && !p->hold;
	s->idle_ms = p->idle_ms;
	s->keepalive_ms = p->keepalive_ms;
	s->keepalive = s->client || p->keepalive_ms;
	s->ack_delay_exponent = p->ack_delay_exponent;
	s->max_ack_delay_ms = p->max_ack_delay_ms;
	s->created = s->idle_base = s->last_sent = s->strays_since = jiffies;
	s->srtt = QRE_INITIAL_RTT;
	s->rttvar = QRE_INITIAL_RTT / 2;
	qre_ackwin_init(&s->window, QRE_PACKET_NUMBER_BASE);
	qre_mtu_init(s);
	s->ecn_test = 3 * qre_control_pto(s);
}

static int qre_session_same(struct qre_session *s, const struct qre_session_params *p,
			    struct netlink_ext_ack *extack)
{
	bool same, closing;
	u64 epoch;

	spin_lock_bh(&s->lock);
	epoch = s->epoch;
	closing = s->life >= QRE_LIFE_CLOSING;
	same = !crypto_memneq(&s->keys, &p->keys, sizeof(s->keys));
	spin_unlock_bh(&s->lock);
	if (epoch > p->key_epoch) {
		NL_SET_ERR_MSG(extack, "KeyEpoch is behind the session's: update-session");
		return -ESTALE;
	}
	if (closing) {
		NL_SET_ERR_MSG(extack, "SessionId: the session is closing");
		return -ESHUTDOWN;
	}
	if (epoch == p->key_epoch && same)
		return 0; /* a repeat is harmless */
	if (epoch == p->key_epoch) {
		NL_SET_ERR_MSG(extack, "SessionId: it is installed already, with other keys");
		return -EKEYREJECTED;
	}
	NL_SET_ERR_MSG(extack, "SessionId: it is installed already: update-session");
	return -EEXIST;
}

static bool qre_wants_ipv6(const struct qre_session_params *p)
{
	unsigned int i;

	for (i = 0; i < p->allowed_ip_count; i++)
		if (p->allowed_ips[i].family == 6)
			return true;
	return false;
}

/* Whether the smallest packet that every IPv6 link must take fits, whole or in two halves. */
static bool qre_holds_ipv6(const struct qre_device *qdev, const struct qre_session_params *p)
{
	bool client = qdev->config.role == QRE_ROLE_CLIENT;
	unsigned int around = 1 + (client ? p->cid.length : p->client_cid.length) +
			      QRE_NUMBER_SIZE + QRE_DATAGRAM_HEAD + QRE_TAG_SIZE;

	if (client && p->splits)
		return min(p->max_udp_payload, p->usual_payload) >=
		       around + QRE_PART_HEAD + IPV6_MIN_MTU / 2;
	return p->max_udp_payload >= around + IPV6_MIN_MTU;
}

static int qre_session_checks(struct qre_device *qdev, const struct qre_session_params *p,
			      struct netlink_ext_ack *extack)
{
	struct qre_net *qn = qre_net_of(dev_net(qdev->dev));
	struct qre_cid_entry *taken;

	if (qdev->config.role == QRE_ROLE_UNSET) {
		NL_SET_ERR_MSG(extack, "Device has no Role yet");
		return -EINVAL;
	}
	if (qdev->session_count >= qdev->config.max_sessions) {
		NL_SET_ERR_MSG(extack, "SessionId: no room for another session");
		return -ENOSPC;
	}
	if (p->max_udp_payload < QRE_MTU_MIN) {
		NL_SET_ERR_MSG(extack, "MaxUdpPayload is too small for a tunnel");
		return -EINVAL;
	}
	if (qre_wants_ipv6(p) && !qre_holds_ipv6(qdev, p)) {
		NL_SET_ERR_MSG(extack,
			       "AllowedIPs: MaxUdpPayload leaves less than the 1280 bytes of IPv6");
		return -EINVAL;
	}
	if (qdev->config.role == QRE_ROLE_CLIENT) {
		if (!p->has_endpoint) {
			NL_SET_ERR_MSG(extack,
				       "UnderlayPeerIPv4 is missing: a client needs its server");
			return -EINVAL;
		}
		return 0;
	}
	taken = qre_cid_find(qn, &p->cid);
	if (taken && (taken->session || taken->qdev != qdev)) {
		NL_SET_ERR_MSG(extack, "ConnectionId is in use by another session or device");
		return -EEXIST;
	}
	return taken ? 0 : qre_cid_room(qn, extack);
}

/* Complete except for its socket, and not published. ERR_PTR(-ENOMEM, ...) */
static struct qre_session *qre_session_new(struct qre_device *qdev,
					   const struct qre_session_params *p,
					   struct netlink_ext_ack *extack)
{
	struct qre_session *s = kzalloc(sizeof(*s), GFP_KERNEL_ACCOUNT);
	int error = -ENOMEM;

	if (!s)
		return ERR_PTR(-ENOMEM);
	s->qdev = qdev;
	s->client = qdev->config.role == QRE_ROLE_CLIENT;
	refcount_set(&s->refs, 1);
	spin_lock_init(&s->lock);
	spin_lock_init(&s->tx_lock);
	seqcount_spinlock_init(&s->addresses, &s->tx_lock);
	INIT_LIST_HEAD(&s->cids);
	timer_setup(&s->timer, qre_session_timer, 0);
	netdev_hold(qdev->dev, &s->tracker, GFP_KERNEL);
	qre_session_values(s, p);
	s->counters = __netdev_alloc_pcpu_stats(struct qre_session_counters, GFP_KERNEL_ACCOUNT);
	if (!s->counters || dst_cache_init(&s->dst[0], GFP_KERNEL_ACCOUNT) ||
	    dst_cache_init(&s->dst[1], GFP_KERNEL_ACCOUNT))
		goto free;
	if (p->splits && !s->client) {
		s->joiner = qre_joiner_new();
		if (!s->joiner)
			goto free;
	}
	if (p->allowed_ip_count) {
		s->allowed = kmemdup(p->allowed_ips, p->allowed_ip_count * sizeof(*s->allowed),
				     GFP_KERNEL_ACCOUNT);
		if (!s->allowed)
			goto free;
	}
	s->allowed_count = s->allowed_entry_count = p->allowed_ip_count;
	s->allowed_entries = qre_allowed_ips_new_entries(s, s->allowed, &s->allowed_entry_count);
	if (!s->allowed_entries)
		goto free;
	error = qre_session_keys(s, p);
	if (!error)
		return s;
	NL_SET_ERR_MSG(extack, "TxKey: the kernel has no AES-128-GCM or no memory");
free:
	qre_session_put(s);
	return ERR_PTR(error);
}

/* The CID entry that the session will be found by: its own, or the device's, which it takes over;
 * a client has none. ERR_PTR(-ENOMEM) */
static struct qre_cid_entry *qre_session_cid(struct qre_net *qn, const struct qre_session *s)
{
	struct qre_cid_entry *entry;

	if (s->client)
		return NULL;
	entry = qre_cid_find(qn, &s->cid);
	if (!entry)
		entry = qre_cid_new(&s->cid, 0);
	return entry ?: ERR_PTR(-ENOMEM);
}

static void qre_session_begin(struct qre_session *s)
{
	struct qre_outbox out;

	qre_outbox_init(&out);
	local_bh_disable();
	rcu_read_lock();
	spin_lock(&s->lock);
	qre_control_begin(s, &out);
	spin_unlock(&s->lock);
	qre_outbox_flush(s, &out);
	rcu_read_unlock();
	local_bh_enable();
	qre_tell_session(s->qdev, s->id, QRE_EVENT_SESSION_INSTALLED);
}

int qre_session_install(struct qre_device *qdev, const struct qre_session_params *p,
			struct netlink_ext_ack *extack)
{
	struct qre_net *qn = qre_net_of(dev_net(qdev->dev));
	struct qre_session *s = qre_session_any(qdev, p->id);
	struct qre_cid_entry *cid;
	int error;

	if (s && READ_ONCE(s->life) == QRE_LIFE_ENDED)
		qre_session_unpublish(s);
	else if (s)
		return qre_session_same(s, p, extack);
	error = qre_session_checks(qdev, p, extack);
	if (error)
		return error;
	s = qre_session_new(qdev, p, extack);
	if (IS_ERR(s))
		return PTR_ERR(s);
	error = qre_socket_join(s, p->fd, extack);
	if (error)
		goto put;
	cid = qre_session_cid(qn, s);
	if (IS_ERR(cid)) {
		error = PTR_ERR(cid);
		goto leave;
	}
	error = qre_used_key_claim(s->tx->used);
	if (error) {
		NL_SET_ERR_MSG(extack, "TxKey was used before: a packet number might repeat");
		goto free_cid;
	}
	qre_session_publish(s, cid);
	qre_session_begin(s);
	return 0;

free_cid:
	if (cid && !cid->qdev) /* not the device's */
		kfree(cid);
leave:
	qre_socket_leave(s);
put:
	qre_session_put(s);
	return error;
}

/* --- update --- */

/* The next keys become known, or are repeated. */
static int qre_session_learn_next(struct qre_session *s, const struct qre_session_params *p,
				  struct qre_key *tx, struct qre_key *rx)
{
	if (p->has_next_rx && !s->has_next) {
		memcpy(s->next.rx_key, p->next.rx_key, QRE_KEY_SIZE);
		memcpy(s->next.rx_iv, p->next.rx_iv, QRE_IV_SIZE);
		s->has_next = true;
		/* One behind while the peer has not followed our update: then it comes with the
		 * flip. */
		if (rcu_dereference_protected(s->rx, 1)->epoch == s->epoch)
			rcu_assign_pointer(s->rx_next, qre_key_get(rx));
		else
			s->rx_after = qre_key_get(rx);
	}
	if (p->has_next_tx && !s->has_next_tx) {
		memcpy(s->next.tx_key, p->next.tx_key, QRE_KEY_SIZE);
		memcpy(s->next.tx_iv, p->next.tx_iv, QRE_IV_SIZE);
		s->has_next_tx = true;
		s->tx_next = qre_key_get(tx);
	}
	return 0;
}

static bool qre_next_differs(const struct qre_session *s, const struct qre_session_params *p)
{
	return (p->has_next_rx && s->has_next &&
		(crypto_memneq(s->next.rx_key, p->next.rx_key, QRE_KEY_SIZE) ||
		 crypto_memneq(s->next.rx_iv, p->next.rx_iv, QRE_IV_SIZE))) ||
	       (p->has_next_tx && s->has_next_tx &&
		(crypto_memneq(s->next.tx_key, p->next.tx_key, QRE_KEY_SIZE) ||
		 crypto_memneq(s->next.tx_iv, p->next.tx_iv, QRE_IV_SIZE)));
}

static bool qre_keys_are_next(const struct qre_session *s, const struct qre_session_params *p)
{
	return (!s->has_next || (!crypto_memneq(s->next.rx_key, p->keys.rx_key, QRE_KEY_SIZE) &&
				 !crypto_memneq(s->next.rx_iv, p->keys.rx_iv, QRE_IV_SIZE))) &&
	       (!s->has_next_tx || (!crypto_memneq(s->next.tx_key, p->keys.tx_key, QRE_KEY_SIZE) &&
				    !crypto_memneq(s->next.tx_iv, p->keys.tx_iv, QRE_IV_SIZE)));
}

struct qre_fresh_keys { /* made before the lock is taken */
	struct qre_key *tx, *rx, *next_tx, *next_rx;
};

static int qre_fresh(struct qre_key **out, struct qre_key *made)
{
	if (IS_ERR(made))
		return PTR_ERR(made);
	*out = made;
	return 0;
}

static int qre_fresh_keys(struct qre_fresh_keys *fresh, struct qre_key_book *book,
			  const struct qre_session_params *p)
{
	const struct qre_epoch_keys *keys = &p->keys, *next = &p->next;
	u64 epoch = p->key_epoch;
	int error;

	error = qre_fresh(&fresh->tx, qre_tx_key_new(book, keys->tx_key, keys->tx_iv, epoch));
	if (!error)
		error = qre_fresh(&fresh->rx, qre_key_new(keys->rx_key, keys->rx_iv, epoch));
	if (!error && p->has_next_tx)
		error = qre_fresh(&fresh->next_tx,
				  qre_tx_key_new(book, next->tx_key, next->tx_iv, epoch + 1));
	if (!error && p->has_next_rx)
		error = qre_fresh(&fresh->next_rx,
				  qre_key_new(next->rx_key, next->rx_iv, epoch + 1));
	return error;
}

/* The peer began a phase that we had no transmit keys for: ours are late, not early. */
static bool qre_session_follows(const struct qre_session *s)
{
	return rcu_dereference_protected(s->rx, lockdep_is_held(&s->lock))->epoch > s->epoch;
}

/* We begin the next key phase (RFC 9001 section 6.1): our receive keys follow when the peer does.
 */
static void qre_session_initiate(struct qre_session *s, const struct qre_session_params *p,
				 struct qre_fresh_keys *fresh)
{
	struct qre_key *after = fresh->next_rx ? qre_key_get(fresh->next_rx) : NULL;
	bool follows = qre_session_follows(s);

	qre_control_new_tx(s, qre_key_get(fresh->tx), p->packet_number);
	s->keys = p->keys;
	s->next = p->next;
	s->has_next = p->has_next_rx;
	s->has_next_tx = p->has_next_tx;
	if (follows) {
		rcu_assign_pointer(s->rx_next, after);
	} else {
		if (!rcu_access_pointer(s->rx_next))
			rcu_assign_pointer(s->rx_next, qre_key_get(fresh->rx));
		qre_key_put(s->rx_after);
		s->rx_after = after;
	}
	qre_key_put(s->tx_next);
	s->tx_next = fresh->next_tx ? qre_key_get(fresh->next_tx) : NULL;
}

static int qre_session_apply(struct qre_session *s, const struct qre_session_params *p,
			     struct qre_fresh_keys *fresh, struct qre_outbox *out,
			     struct netlink_ext_ack *extack)
{
	if (s->life > QRE_LIFE_ESTABLISHED) {
		NL_SET_ERR_MSG(extack, "SessionId: the session is closing");
		return -ESHUTDOWN;
	}
	if (p->key_epoch == s->epoch) {
		if (crypto_memneq(&s->keys, &p->keys, sizeof(s->keys))) {
			NL_SET_ERR_MSG(extack, "TxKey: other keys than those of this KeyEpoch");
			return -EKEYREJECTED;
		}
		if (qre_next_differs(s, p)) {
			NL_SET_ERR_MSG(extack, "NextRxKey: other next keys than those installed");
			return -EKEYREJECTED;
		}
		qre_session_learn_next(s, p, fresh->next_tx, fresh->next_rx);
		spin_lock(&s->tx_lock);
		s->next_number = max(s->next_number, p->packet_number);
		spin_unlock(&s->tx_lock);
		return 0;
	}
	if (p->key_epoch != s->epoch + 1) {
		NL_SET_ERR_MSG(extack, "KeyEpoch must be the current one or the one after it");
		return p->key_epoch < s->epoch ? -ESTALE : -EINVAL;
	}
	if (!qre_keys_are_next(s, p)) {
		NL_SET_ERR_MSG(extack, "TxKey: other keys than the next ones installed");
		return -EKEYREJECTED;
	}
	if (!qre_session_follows(s) && !qre_control_may_update(s)) {
		if (!s->phase_acked && s->life == QRE_LIFE_ESTABLISHED)
			qre_control_ping(s, out); /* something that the peer must acknowledge */
		NL_SET_ERR_MSG(extack, "KeyEpoch: not confirmed yet by the peer");
		return -EAGAIN;
	}
	if (qre_used_key_claim(fresh->tx->used)) {
		NL_SET_ERR_MSG(extack, "TxKey was used before: a packet number might repeat");
		return -EEXIST;
	}
	qre_session_initiate(s, p, fresh);
	qre_control_ping(s, out); /* so that the new phase is seen and confirmed without traffic */
	return 0;
}

/* The peer may be anywhere that the session's socket speaks to. */
static int qre_endpoint_checks(struct qre_session *s, const struct qre_session_params *p,
			       struct netlink_ext_ack *extack)
{
	const struct qre_address *local = &p->endpoint.local;
	struct qre_endpoint now;

	if (!p->has_endpoint)
		return 0;
	spin_lock_bh(&s->lock);
	now = qre_addresses(s);
	spin_unlock_bh(&s->lock);
	if (!qre_address_equal(local, &s->endpoint.local) &&
	    !qre_address_equal(local, &now.local)) {
		if (local->family == AF_INET6)
			NL_SET_ERR_MSG(
				extack,
				"UnderlayLocalIPv6: a session's own address does not change");
		else
			NL_SET_ERR_MSG(
				extack,
				"UnderlayLocalIPv4: a session's own address does not change");
		return -EINVAL;
	}
	if (s->socket && !qre_socket_speaks(s->socket, p->endpoint.peer.family)) {
		NL_SET_ERR_MSG(extack, QRE_OTHER_FAMILY);
		return -EAFNOSUPPORT;
	}
	return 0;
}

int qre_session_update(struct qre_device *qdev, const struct qre_session_params *p,
		       struct netlink_ext_ack *extack)
{
	struct qre_session *s = qre_session_find(qdev, p->id);
	struct qre_fresh_keys fresh = {};
	struct qre_outbox out;
	int error;

	if (!s || qre_session_ends(s)) {
		NL_SET_ERR_MSG(extack, "SessionId: there is no such session");
		return -ENOENT;
	}
	if (p->has_hp && (crypto_memneq(s->tx_hp_key, p->tx_hp, QRE_KEY_SIZE) ||
			  crypto_memneq(s->rx_hp_key, p->rx_hp, QRE_KEY_SIZE))) {
		NL_SET_ERR_MSG(extack, "TxHpKey: header protection keys do not change");
		return -EINVAL;
	}
	error = qre_endpoint_checks(s, p, extack);
	if (error)
		return error;
	error = qre_fresh_keys(&fresh, qre_net_of(dev_net(qdev->dev))->used_keys, p);
	if (!error) {
		qre_outbox_init(&out);
		local_bh_disable();
		rcu_read_lock();
		spin_lock(&s->lock);
		error = qre_session_apply(s, p, &fresh, &out, extack);
		if (!error && p->has_endpoint)
			qre_peer_is(s, &p->endpoint.peer, &out);
		spin_unlock(&s->lock);
		qre_outbox_flush(s, &out);
		rcu_read_unlock();
		local_bh_enable();
	}
	qre_key_put(fresh.tx);
	qre_key_put(fresh.rx);
	qre_key_put(fresh.next_tx);
	qre_key_put(fresh.next_rx);
	return error;
}

/* --- telling --- */

void qre_session_tell(struct qre_session *s, struct qre_session_info *info)
{
	static const enum qre_session_state states[] = {
		[QRE_LIFE_HELD] = QRE_SESSION_HELD,
		[QRE_LIFE_ESTABLISHED] = QRE_SESSION_ESTABLISHED,
		[QRE_LIFE_CLOSING] = QRE_SESSION_CLOSING,
		[QRE_LIFE_ENDED] = QRE_SESSION_CLOSING,
	};
	struct qre_cid_entry *entry;
	int cpu;

	memset(info, 0, sizeof(*info));
	memcpy(info->id, s->id, QRE_SESSION_ID_SIZE);
	info->cid = s->cid;
	info->client_cid = s->client_cid;
	memcpy(info->short_id, s->short_id, QRE_SHORT_ID_SIZE);
	info->has_endpoint = s->has_endpoint;
	info->allowed_ips = s->allowed;
	info->allowed_ip_count = s->allowed_count;
	list_for_each_entry(entry, &s->cids, device_entry)
		if (info->cid_count < QRE_SESSION_CIDS_MAX)
			info->cids[info->cid_count++] = entry->cid;
	spin_lock_bh(&s->lock);
	info->state = states[s->life];
	info->confirmed = s->confirmed;
	info->begun = s->begun;
	if (s->client && s->tx_cid.length) {
		info->cid = s->tx_cid;
		info->sequence = s->peer_cids.held[s->cid_used].sequence;
	}
	info->udp_payload = s->path_mtu.size;
	info->inner_mtu = s->mtu.inner;
	info->inner_mtu_ipv6 = qre_mtu_carries_ipv6(s);
	info->inner_mtu_in_two = qre_mtu_in_two(s, s->mtu.inner);
	info->key_epoch = s->epoch;
	info->rx_number = s->window.any ? s->window.highest : 0;
	info->endpoint = qre_addresses(s);
	info->age_ms = jiffies_to_msecs(jiffies - s->created);
	info->received = s->received;
	info->last_receive_ms = jiffies_to_msecs(jiffies - s->last_receive);
	info->client = s->client;
	info->unanswered_ms =
		s->silence.unanswered ? jiffies_to_msecs(jiffies - s->silence.since) : 0;
	info->silent = s->silence.told;
	info->tries = s->trial.on;
	spin_lock(&s->tx_lock);
	info->packet_number = s->next_number;
	info->aead_driver = qre_key_driver(s->tx);
	spin_unlock(&s->tx_lock);
	spin_unlock_bh(&s->lock);
	for_each_possible_cpu(cpu) {
		struct qre_session_counters *counters = per_cpu_ptr(s->counters, cpu);
		u64 rx_packets, rx_bytes, tx_packets, tx_bytes;
		unsigned int start;

		do {
			start = u64_stats_fetch_begin(&counters->syncp);
			rx_packets = u64_stats_read(&counters->rx_packets);
			rx_bytes = u64_stats_read(&counters->rx_bytes);
			tx_packets = u64_stats_read(&counters->tx_packets);
			tx_bytes = u64_stats_read(&counters->tx_bytes);
		} while (u64_stats_fetch_retry(&counters->syncp, start));
		info->rx_packets += rx_packets;
		info->rx_bytes += rx_bytes;
		info->tx_packets += tx_packets;
		info->tx_bytes += tx_bytes;
	}
}
