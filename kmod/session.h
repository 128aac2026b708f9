/* SPDX-License-Identifier: GPL-2.0-only */
/* One established session, as the data path and the QUIC state see it, and as user space does. */
#ifndef QRE_SESSION_H
#define QRE_SESSION_H

#include <linux/list.h>
#include <linux/llist.h>
#include <linux/refcount.h>
#include <linux/seqlock.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/u64_stats_sync.h>
#include <linux/workqueue.h>
#include <net/dst_cache.h>

#include "ackpolicy.h"
#include "ackwin.h"
#include "control.h"
#include "ecn.h"
#include "joiner.h"
#include "key.h"
#include "migrate.h"
#include "mtu.h"
#include "pathmtu.h"
#include "peercids.h"
#include "porttrial.h"
#include "qre.h"
#include "silence.h"

struct qre_allowed;
struct qre_device;
struct qre_socket;

#define QRE_CONFIRM_MS 10000

enum qre_life {
	QRE_LIFE_HELD,
	QRE_LIFE_ESTABLISHED,
	QRE_LIFE_CLOSING,
	QRE_LIFE_ENDED,
};

struct qre_session_counters {
	u64_stats_t rx_packets, rx_bytes, tx_packets, tx_bytes;
	struct u64_stats_sync syncp;
};

struct qre_session {
	/* read-mostly: what each packet needs */
	struct qre_device *qdev;
	/* NULL: no underlay yet. A client's changes with @port, under lock, tx_lock and
	 * qre_net.lock; how often it did */
	struct qre_socket *socket;
	unsigned int port;
	enum qre_life life; /* written under lock, read anywhere */
	bool client;
	u8 rx_cid_size;
	struct qre_cid tx_cid; /* written under lock and tx_lock */
	bool has_reset_token;  /* of tx_cid; written under lock */
	struct qre_mtu mtu;
	u16 max_payload;	   /* largest UDP payload that the peer takes */
	u16 usual_payload;	   /* what inner packets travel in, but IPv6 that needs more */
	bool splits;		   /* of a client: sends in two what is larger */
	struct qre_joiner *joiner; /* of a server whose client may do so; NULL: may not */
	/* Written under lock and tx_lock, read without them by qre_session_at and the like. Local
	 * ones: what packets leave with to a peer of IPv4 and of IPv6; one that is not set, or any:
	 * as the route says. The source: what the last packet left with, to the peer's family. */
	seqcount_spinlock_t addresses;
	struct qre_address peer, local[2], source;
	struct qre_hp *tx_hp, *rx_hp;
	struct qre_key __rcu *rx, *rx_next, *rx_previous;
	u64 first_received; /* lowest number under rx; QRE_NO_NUMBER: none */
	struct qre_session_counters __percpu *counters;
	struct dst_cache dst[2]; /* of IPv4 and of IPv6 */
	u32 dst_mark;		 /* which they were made for */
	int dst_bound;

	/* the packet number, and what it is used with: nothing else is under this lock */
	spinlock_t tx_lock ____cacheline_aligned_in_smp;
	u64 next_number;
	u64 first_sent; /* first number under tx */
	struct qre_key *tx;
	struct qre_ecn ecn_tx;
	unsigned long ecn_test; /* how long a test of the path lasts */
	u64 rekey_after;
	u64 rekey_asked;     /* epoch */
	bool eliciting_sent; /* since a packet came */
	unsigned long last_sent;
	atomic_t split; /* identifier of the last packet in two; not under the lock */

	/* the QUIC state */
	spinlock_t lock ____cacheline_aligned_in_smp;
	struct qre_ackwin window;
	unsigned long last_receive, idle_base, largest_at;
	bool received;
	bool confirmed; /* the peer was heard */
	bool begun;	/* a client's first packet has left */
	bool asked;	/* a client has asked a server that says nothing */
	bool ack_wanted;
	unsigned long ack_since, ack_sent;
	struct qre_ack_policy ack_policy; /* of a client */
	u64 ecn[3];			  /* ECT(0), ECT(1), CE */
	struct qre_silence silence;	  /* of a client */
	u64 failed_opens;
	struct qre_epoch_keys keys, next; /* of the transmit epoch and the one after */
	bool has_next;
	bool has_next_tx;
	u64 epoch;     /* of transmission */
	u64 announced; /* the epoch of the last KEY_PHASE_CONFIRMED */
	bool phase_acked;
	unsigned long phase_acked_at, previous_until;
	struct qre_key *tx_next; /* made ahead, for following a flip in softirq */
	struct qre_key
		*rx_after; /* of the epoch after rx_next, while the peer follows our update */
	u64 largest_acked; /* QRE_NO_NUMBER: none */
	u64 largest_heard; /* likewise, of the path in use: not of a port that is tried */
	u64 probe_number;  /* round-trip time is measured with this packet */
	u64 probe_at;	   /* ns */
	bool probe_pending, rtt_sampled;
	u64 srtt, rttvar, rtt_least; /* us; the last is valid when rtt_sampled */
	struct qre_control controls[QRE_CONTROLS_MAX];
	/* by number: the last QRE_CONTROL_TRIES packets of each */
	struct qre_control_packet control_packets[QRE_CONTROL_PACKETS];
	unsigned int control_packet_count;
	u64 issued;		   /* highest sequence number of our CIDs */
	unsigned int frame_tokens; /* packets with frames for user space that may come */
	unsigned long frame_tokens_at;
	bool frames_limited; /* it was reported that there were too many */
	unsigned int strays; /* passed on since strays_since */
	unsigned long strays_since;
	struct qre_path path;
	unsigned long challenged_at; /* the path in use, the last time */
	struct qre_peer_cids peer_cids;
	int cid_used;		     /* which of them tx_cid is */
	struct qre_port_trial trial; /* of a client */
	struct qre_pathmtu path_mtu;
	u8 *close_packet;
	size_t close_size;
	unsigned long closing_until;
	u64 closing_received;
	struct timer_list timer;

	/* fixed, or under qre_net.lock */
	struct list_head entry; /* qre_device.sessions; RCU */
	u64 number;
	u8 id[QRE_SESSION_ID_SIZE];
	struct qre_cid cid, client_cid;
	u8 short_id[QRE_SHORT_ID_SIZE];
	struct qre_endpoint endpoint;
	bool has_endpoint;
	u8 rx_hp_key[QRE_KEY_SIZE], tx_hp_key[QRE_KEY_SIZE];
	u32 idle_ms, keepalive_ms;
	bool keepalive;
	u8 ack_delay_exponent;
	u16 max_ack_delay_ms;
	struct qre_allowed_ip *allowed; /* as they were given; NULL: all */
	unsigned int allowed_count;
	struct qre_allowed *allowed_entries;
	unsigned int allowed_entry_count;
	struct list_head cids; /* struct qre_cid_entry.device_entry */
	unsigned int cid_count;
	unsigned long created;
	bool published;		  /* qre_net.lock */
	struct llist_node ended;  /* qre_net.ended */
	struct llist_node tidied; /* qre_net.tidied */
	unsigned long reported; /* bit 0: it is in the first, or was; bit 1: it is in the second */
	refcount_t refs;
	struct rcu_work free;
	netdevice_tracker tracker;
};

static inline bool qre_session_get(struct qre_session *s)
{
	return refcount_inc_not_zero(&s->refs);
}
void qre_session_put(struct qre_session *s); /* any context */
/* Whether the peer is at this address. Without a lock */
static inline bool qre_session_at(struct qre_session *s, const struct qre_address *address)
{
	unsigned int begun;
	bool at;

	do {
		begun = read_seqcount_begin(&s->addresses);
		at = qre_address_equal(&s->peer, address);
	} while (read_seqcount_retry(&s->addresses, begun));
	return at;
}
static inline bool qre_session_leaves_from(struct qre_session *s, const struct qre_address *source)
{
	unsigned int begun;
	bool same;

	do {
		begun = read_seqcount_begin(&s->addresses);
		same = qre_address_equal(&s->source, source);
	} while (read_seqcount_retry(&s->addresses, begun));
	return same;
}
/* What the session's packets to a peer of this family leave with. Without a lock */
static inline struct qre_address qre_session_local(struct qre_session *s, u16 family)
{
	struct qre_address local;
	unsigned int begun;

	do {
		begun = read_seqcount_begin(&s->addresses);
		local = s->local[family == AF_INET6];
	} while (read_seqcount_retry(&s->addresses, begun));
	return local;
}
/* It has ended by itself: its namespace will unpublish it. Any context; harmless when done twice.
 */
void qre_session_report_end(struct qre_session *s);
/* It has sockets that it needs no more: its namespace tidies it (porttrial.c). Any context;
 * harmless when done twice. */
void qre_session_report_ports(struct qre_session *s);
/* Whether that was reported, and its namespace has not come to it yet. */
static inline bool qre_session_reports_ports(const struct qre_session *s)
{
	return test_bit(1, &s->reported);
}
void qre_sessions_reap(struct work_struct *work); /* qre_net.reap */
/* qre_net.lock is held: out of every table, silently. Harmless when it is already. */
void qre_session_unpublish(struct qre_session *s);
/* qre_net.lock is held: all sessions and CIDs of a device. */
void qre_device_end_sessions(struct qre_device *qdev);

/* SESSION_INSTALL, and SESSION_UPDATE (which reads id, keys, next, key_epoch, packet_number, and
 * what has_hp and has_endpoint tell). netlink.c fills it from validated attributes, with the
 * defaults stated here, and wipes it. */
struct qre_session_params {
	u8 id[QRE_SESSION_ID_SIZE];
	struct qre_cid cid;
	struct qre_cid client_cid; /* absent: as cid */
	struct qre_epoch_keys keys;
	struct qre_epoch_keys next; /* valid as has_next_tx, has_next_rx say */
	u8 tx_hp[QRE_KEY_SIZE], rx_hp[QRE_KEY_SIZE];
	bool has_hp; /* install: always; update: given, and must equal the session's */
	bool has_next_tx, has_next_rx;
	u64 key_epoch;
	u64 packet_number; /* default 0; never below QRE_PACKET_NUMBER_BASE in use */
	struct qre_endpoint endpoint;
	bool has_endpoint; /* install: without one the session can only receive through the shared
			      socket */
	const struct qre_allowed_ip *allowed_ips;
	unsigned int allowed_ip_count; /* 0: all */
	u8 short_id[QRE_SHORT_ID_SIZE];
	bool hold;
	u64 idle_ms;	       /* default 30000 */
	u64 keepalive_ms;      /* default: the device's */
	u8 ack_delay_exponent; /* default 3 */
	u16 max_ack_delay_ms;  /* default 25 */
	u16 max_udp_payload;   /* default QRE_UDP_PAYLOAD_MAX */
	u16 usual_payload;     /* default QRE_UDP_PAYLOAD_MAX: no limit of its own */
	bool splits;	       /* default false */
	bool has_reset_token;
	u8 reset_token[QRE_RESET_TOKEN_SIZE];
	u64 rekey_after; /* default QRE_REKEY_AFTER_PACKETS */
	u64 sequence;	 /* of cid; default 0 */
	int fd;		 /* of the session's own socket; -1: none */
};

/* All: process context, qre_net.lock held; 0 or a negative errno with extack set; whole or not at
 * all. */
int qre_session_install(struct qre_device *qdev, const struct qre_session_params *params,
			struct netlink_ext_ack *extack);
int qre_session_update(struct qre_device *qdev, const struct qre_session_params *params,
		       struct netlink_ext_ack *extack);
int qre_session_delete(struct qre_device *qdev, const u8 *id, bool close,
		       struct netlink_ext_ack *extack);
int qre_frame_send(struct qre_device *qdev, const u8 *id, u64 frame_id, const u8 *frames,
		   size_t size, struct netlink_ext_ack *extack);
/* A UDP payload of this size, sent on the session's path @ago_ms ago, has arrived. */
int qre_path_proven(struct qre_device *qdev, const u8 *id, u16 payload, u64 ago_ms,
		    struct netlink_ext_ack *extack);

/* What SESSION_GET tells, taken in one moment. */
struct qre_session_info {
	u8 id[QRE_SESSION_ID_SIZE];
	struct qre_cid cid, client_cid;
	u8 short_id[QRE_SHORT_ID_SIZE];
	enum qre_session_state state;
	bool confirmed;
	bool begun;   /* a client's */
	u64 sequence; /* of cid, a client's: the one in use */
	u64 key_epoch, packet_number, rx_number;
	u16 udp_payload, inner_mtu; /* the largest that the path takes, as far as it is known */
	u16 inner_mtu_ipv6, inner_mtu_in_two; /* 0: none */
	struct qre_endpoint endpoint;
	bool has_endpoint;
	u64 age_ms, last_receive_ms;
	bool received; /* last_receive_ms is valid */
	bool client;   /* unanswered_ms and silent are */
	u64 unanswered_ms;
	bool silent, tries;
	u64 rx_packets, rx_bytes, tx_packets, tx_bytes;
	struct qre_cid cids[QRE_SESSION_CIDS_MAX];
	unsigned int cid_count;
	const char
		*aead_driver; /* valid while the module is loaded: a copy is not needed under RCU */
	const struct qre_allowed_ip *allowed_ips; /* valid under the lock that was held */
	unsigned int allowed_ip_count;
};
/* qre_net.lock is held; NULL and -ENOENT as they are. Sessions in a stable order: by
 * qre_session_number, which grows. */
struct qre_session *qre_session_find(struct qre_device *qdev, const u8 *id);
/* The first session of the device whose number is at least @number; NULL: none. For resumable
 * dumps. */
struct qre_session *qre_session_from(struct qre_device *qdev, u64 number);
u64 qre_session_number(const struct qre_session *session);
void qre_session_tell(struct qre_session *session, struct qre_session_info *info);

#endif
