/* SPDX-License-Identifier: GPL-2.0-only */
/* One established session, as the data path and the QUIC state see it. User space's view is in
 * qre.h. */
#ifndef QRE_SESSION_H
#define QRE_SESSION_H

#include <linux/llist.h>
#include <linux/rhashtable.h>
#include <linux/tcp.h>
#include <net/route.h>

#include "ecn.h"
#include "pathmtu.h"
#include "peercids.h"
#include "qre.h"

#define QRE_CONTROLS_MAX    16 /* packets with control frames in flight */
#define QRE_CONTROL_TRIES   12
#define QRE_CONTROL_PACKETS (QRE_CONTROLS_MAX * QRE_CONTROL_TRIES)
#define QRE_CHALLENGES_MAX  4
#define QRE_CONFIRM_MS	    10000
#define QRE_NO_NUMBER	    (~0ULL)
#define QRE_INITIAL_RTT	    (100 * USEC_PER_MSEC)
#define QRE_GSO_MAX_SEGS    44 /* of one outer super-packet: 44 of the largest size fit in one */

/* Outer address of the peer as one word, so that it is read whole without a lock. */
union qre_peer {
	struct {
		__be32 ip;
		__be16 port;
		u16 zero;
	};
	u64 word;
};

/* --- the socket that a session sends through (socket.c) --- */

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
	__be32 ip;
	__be16 port;
	u32 users;		       /* sessions; qre_net.lock */
	struct hlist_head by_cid[256]; /* struct qre_cid_entry.node; RCU */
	unsigned long cid_lengths;     /* bit n: a CID of n bytes is in by_cid */
	u16 length_users[QRE_CID_MAX + 1];
	struct qre_session __rcu *client; /* whoever speaks from here as a client */
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
void qre_socket_put(struct qre_socket *qs); /* any context */
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

/* --- QUIC state (control.c), all under qre_session.lock --- */

struct qre_control { /* frames that are sent until they are acknowledged or given up */
	u64 request; /* of FRAME_SEND; QRE_NO_NUMBER: of our own */
	u64 last;    /* the packet that they were sent in last; QRE_NO_NUMBER: it was not sent */
	unsigned int tries;
	unsigned long sent_at;
	u8 *frames; /* NULL: a PING */
	size_t size;
	bool used;
};

struct qre_control_packet { /* one that control frames were sent in */
	u64 number;
	u8 control; /* which of them */
};

struct qre_challenges { /* PATH_CHALLENGEs that were sent on one path */
	u8 data[QRE_CHALLENGES_MAX][8];
	unsigned int count;
};

struct qre_path {	     /* an address that is being validated: RFC 9000 section 8.2, 9.3 */
	union qre_peer peer; /* word 0: none */
	int cid;	     /* which of the peer's is used there */
	struct qre_challenges challenges;
	struct qre_challenges before; /* on the path in use, which may still be the peer's */
	bool before_answered;
	unsigned long next_at, expires;
	u64 received, sent;
};

enum qre_life {
	QRE_LIFE_HELD,
	QRE_LIFE_ESTABLISHED,
	QRE_LIFE_CLOSING,
	QRE_LIFE_ENDED,
};

/* What the path's MTU means to the data path: written under qre_session.lock, read anywhere. */
struct qre_mtu {
	u16 inner;     /* the largest inner packet that fits */
	u16 clamp;     /* the one that TCP's segments may be made for */
	u16 first_hop; /* the largest UDP payload that leaves this machine; 0: none has left yet */
	bool quiet;    /* a search goes on: @inner may soon be more, and nobody is told of it */
	bool watches;  /* a packet above QRE_PATHMTU_BASE should be watched */
};

struct qre_session_counters {
	u64_stats_t rx_packets, rx_bytes, tx_packets, tx_bytes;
	struct u64_stats_sync syncp;
};

struct qre_session {
	/* read-mostly: what each packet needs */
	struct qre_device *qdev;
	struct qre_socket *socket; /* NULL: no underlay yet */
	enum qre_life life;	   /* written under lock, read anywhere */
	bool client;
	u8 rx_cid_size;
	struct qre_cid tx_cid; /* written under lock and tx_lock */
	bool has_reset_token;  /* of tx_cid; written under lock */
	struct qre_mtu mtu;
	u16 max_payload;     /* largest UDP payload that the peer takes */
	union qre_peer peer; /* written under lock and tx_lock */
	__be32 local_ip;
	__be32 source; /* that the last packet left with; written under lock */
	struct crypto_cipher *tx_hp, *rx_hp;
	struct qre_key __rcu *rx, *rx_next, *rx_previous;
	u64 first_received; /* lowest number under rx; QRE_NO_NUMBER: none */
	struct qre_session_counters __percpu *counters;
	struct dst_cache dst;
	u32 dst_mark; /* which dst was made for */
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

	/* the QUIC state */
	spinlock_t lock ____cacheline_aligned_in_smp;
	struct qre_ackwin window;
	unsigned long last_receive, idle_base, largest_at;
	bool received;
	bool confirmed;
	bool ack_wanted;
	unsigned long ack_since, ack_sent;
	u64 ecn[3]; /* ECT(0), ECT(1), CE */
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
	u64 probe_number;  /* round-trip time is measured with this packet */
	u64 probe_at;	   /* ns */
	bool probe_pending, rtt_sampled;
	u64 srtt, rttvar; /* us */
	struct qre_control controls[QRE_CONTROLS_MAX];
	/* by number: the last QRE_CONTROL_TRIES packets of each */
	struct qre_control_packet control_packets[QRE_CONTROL_PACKETS];
	unsigned int control_packet_count;
	u64 issued;		   /* no CID of ours has a higher sequence number */
	unsigned int frame_tokens; /* packets with frames for user space that may come */
	unsigned long frame_tokens_at;
	bool frames_limited; /* it was told that there were too many */
	struct qre_path path;
	unsigned long challenged_at; /* the path in use, the last time */
	struct qre_peer_cids peer_cids;
	int cid_used; /* which of them tx_cid is */
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
	bool published;		 /* qre_net.lock */
	struct llist_node ended; /* qre_net.ended */
	unsigned long reported;	 /* bit 0: it is in that list, or was */
	refcount_t refs;
	struct rcu_work free;
	netdevice_tracker tracker;
};

/* For what waits for a grace period and then frees: none of it takes a namespace's lock. */
extern struct workqueue_struct *qre_wq;

static inline bool qre_session_get(struct qre_session *s)
{
	return refcount_inc_not_zero(&s->refs);
}
void qre_session_put(struct qre_session *s); /* any context */
/* It has ended by itself: its namespace will unpublish it. Any context; harmless when done twice.
 */
void qre_session_report_end(struct qre_session *s);
void qre_sessions_reap(struct work_struct *work); /* qre_net.reap */
/* qre_net.lock is held: out of every table, silently. Harmless when it is already. */
void qre_session_unpublish(struct qre_session *s);
/* qre_net.lock is held: all sessions and CIDs of a device. */
void qre_device_end_sessions(struct qre_device *qdev);

/*
 * What leaves when the lock is dropped. Control packets are numbered under the lock and sealed
 * behind it; events are collected, too, so that they keep their order.
 */
struct qre_outbox {
	struct sk_buff_head packets;
	bool unlink; /* the session has ended */
};

static inline void qre_outbox_init(struct qre_outbox *out)
{
	__skb_queue_head_init(&out->packets);
	out->unlink = false;
}
/* Without the lock, under RCU with bottom halves off. */
void qre_outbox_flush(struct qre_session *s, struct qre_outbox *out);

/* What came in one authentic, new packet. */
struct qre_arrived {
	u64 number;
	u64 epoch;
	enum qre_arrival arrival;
	u8 first; /* unmasked */
	u8 ecn;	  /* of the outer packet */
	union qre_peer source;
	u32 datagram_size; /* UDP payload */
};
void qre_control_begin(struct qre_session *s, struct qre_outbox *out); /* after install */
/* A packet that is a DATAGRAM and nothing else, of the current path and key: the fast path. */
void qre_control_datagram(struct qre_session *s, const struct qre_arrived *a,
			  struct qre_outbox *out);
/*
 * Everything else. First what is in it, of a packet that did not arrive before; QRE_DROP_UNSPEC, or
 * why it is not taken: neither accepted nor acknowledged. Then what it does; true: there are
 * DATAGRAMs to be delivered.
 */
enum qre_drop qre_control_look(struct qre_session *s, const u8 *payload, size_t size,
			       struct qre_content *content);
bool qre_control_payload(struct qre_session *s, const struct qre_arrived *a,
			 const struct qre_content *content, const u8 *payload, size_t size,
			 struct qre_outbox *out);
void qre_control_closing(struct qre_session *s,
			 struct qre_outbox *out); /* a packet while closing */
void qre_control_end(struct qre_session *s, enum qre_loss why, u64 error, struct qre_outbox *out);
void qre_control_close(struct qre_session *s, struct qre_outbox *out);
int qre_control_frames(struct qre_session *s, u64 request, const u8 *frames, size_t size,
		       struct qre_outbox *out);
void qre_control_ping(struct qre_session *s, struct qre_outbox *out);
/* A PING, with PADDING up to @payload bytes, that is not sent again when it is lost: its number, or
 * QRE_NO_NUMBER. */
u64 qre_control_probe(struct qre_session *s, size_t payload, struct qre_outbox *out);
/* One packet of these frames to @peer, whose ID @cid is (NULL: the one in use), padded to a
 * datagram of @padded, or of what the peer takes. Its number, or QRE_NO_NUMBER. */
u64 qre_put_frames(struct qre_session *s, struct qre_outbox *out, const u8 *frames, size_t size,
		   union qre_peer peer, const struct qre_peer_cid *cid, size_t padded);
/* The peer broke QUIC inside an authenticated packet: it is told, and the session closes. */
void qre_violated(struct qre_session *s, u64 error, struct qre_outbox *out);
/* Whether more frames can be in flight; frames of our own, sent until they are acknowledged. */
bool qre_control_room(const struct qre_session *s);
void qre_control_own(struct qre_session *s, u8 *frames, size_t size, struct qre_outbox *out);
bool qre_control_may_update(const struct qre_session *s);
/* The transmit key changes; the number it begins with is at least @number. @key is consumed. */
void qre_control_new_tx(struct qre_session *s, struct qre_key *key, u64 number);
unsigned long qre_control_pto(const struct qre_session *s); /* jiffies */
/* An ACK frame of everything, for a packet with @room; 0: none is wanted, or it does not fit. */
size_t qre_control_take_ack(struct qre_session *s, u8 *out, size_t room);
void qre_session_timer(struct timer_list *timer);
void qre_control_arm(struct qre_session *s, unsigned long at);

/* --- addresses and the peer's connection IDs (migrate.c), all under qre_session.lock but the last
 * --- */

void qre_migrate_init(struct qre_session *s, const struct qre_cid *cid, u64 sequence,
		      const u8 *token);
/* An authentic packet came from another address than the peer's; @newest: it is the newest, and
 * more than a probe. @challenge: a PATH_CHALLENGE's data in it, or NULL. */
void qre_from_elsewhere(struct qre_session *s, const struct qre_arrived *a, bool newest,
			const u8 *challenge, struct qre_outbox *out);
/* A PATH_CHALLENGE from the peer's address. */
void qre_answer_challenge(struct qre_session *s, const u8 *data, struct qre_outbox *out);
void qre_path_answered(struct qre_session *s, const u8 *data, struct qre_outbox *out);
/* NEW_CONNECTION_ID. False: the session is over. */
bool qre_cid_issued(struct qre_session *s, const struct qre_frame *f, struct qre_outbox *out);
/* User space says where the peer is. */
void qre_peer_is(struct qre_session *s, union qre_peer peer, struct qre_outbox *out);
void qre_path_timers(struct qre_session *s, struct qre_outbox *out);
unsigned long qre_path_at(const struct qre_session *s); /* when the timer should run */
/* Whether these are the last bytes of a stateless reset. */
bool qre_is_reset_token(const struct qre_session *s, const u8 token[QRE_RESET_TOKEN_SIZE]);
/* Without the lock, bottom halves off: packets leave from another address of ours. Whether the one
 * in hand may, too: not if its connection ID was seen at the other one, and there is a fresh one.
 */
bool qre_source_is(struct qre_session *s, __be32 source);

/* --- the path's MTU (mtu.c), under qre_session.lock unless said otherwise --- */

void qre_mtu_init(struct qre_session *s);
/* The session is confirmed, or its path is another one: the timer begins the search. */
void qre_mtu_begin(struct qre_session *s);
/* The connection ID has another length. */
void qre_mtu_resize(struct qre_session *s);
void qre_mtu_acked(struct qre_session *s, const struct qre_frame *f, struct qre_outbox *out);
void qre_mtu_timers(struct qre_session *s, struct qre_outbox *out);
unsigned long qre_mtu_at(const struct qre_session *s); /* when the timer should run */
/* Without the lock, bottom halves off: a packet above QRE_PATHMTU_BASE has this number. */
void qre_mtu_watch(struct qre_session *s, u64 number);
/* Without the lock, bottom halves off: whether a payload can leave by this route, as far as this
 * machine knows. */
bool qre_mtu_leaves(struct qre_session *s, const struct rtable *rt, unsigned int payload);

/* --- inner packets (inner.c); bottom halves are off, under RCU --- */

#define QRE_PULL 128 /* inner headers that are encrypted from a copy beside ours */

enum qre_way {
	QRE_WAY_NONE,
	QRE_WAY_WHOLE,	  /* as it is, or as whoever made a super-packet of it wanted */
	QRE_WAY_CUT,	  /* TCP: by qre_cut_headers() */
	QRE_WAY_FRAGMENT, /* IPv4 */
};

struct qre_fit {
	unsigned int limit; /* of an inner packet */
	enum qre_way way;
};

/* Why a packet of the stack's does not leave, whose sender was told then; QRE_DROP_UNSPEC: it
 * does, as @fit says. */
enum qre_drop qre_check_outgoing(struct qre_session *s, struct sk_buff *skb, bool ipv6,
				 struct qre_fit *fit);
/* The packets that it is sent as, a list of @count with finished checksums; NULL: no memory, and
 * @skb is the caller's still. Not of what is cut. */
struct sk_buff *qre_segments(struct sk_buff *skb, const struct qre_fit *fit, unsigned int *count);
/* The headers of the segment of @size bytes @from the beginning of the stream's; @number: which. */
void qre_cut_headers(struct sk_buff *skb, bool ipv6, u8 *headers, unsigned int from,
		     unsigned int size, unsigned int number);
static inline unsigned int qre_inner_headers(const struct sk_buff *skb)
{
	return skb_transport_offset(skb) + tcp_hdrlen(skb);
}
/* A packet that came out of the tunnel: the segments that a SYN asks for are made to fit the way
 * back. */
void qre_clamp_mss(const struct qre_session *s, struct sk_buff *skb, bool ipv6);

/* --- sealing and opening (send.c, receive.c) --- */

/* What packets are sealed with. */
struct qre_numbers {
	struct qre_key *key; /* a reference */
	u64 first;
	union qre_peer peer; /* where they go, and what they bear there */
	struct qre_cid cid;
	u8 ecn;
};

/* Take @count numbers; false: none are left. @elsewhere: not for the path in use. */
bool qre_take_numbers(struct qre_session *s, unsigned int count, bool elsewhere,
		      struct qre_numbers *numbers);
/* Its marks are to be tested: the path is another one. Under qre_session.lock. */
void qre_ecn_restart(struct qre_session *s);
netdev_tx_t qre_xmit(struct sk_buff *skb, struct net_device *dev);
/* Seal @plain (frames), numbered already, and send it; consumes the reference on the key. */
void qre_send_plain(struct qre_session *s, const struct qre_numbers *numbers, const u8 *plain,
		    size_t size);
void qre_send_exit(void);
int qre_encap_rcv(struct sock *sk, struct sk_buff *skb);
int qre_work_init(void);
void qre_work_exit(void);

/* --- memory for what is sealed and opened (pages.c); bottom halves are off --- */

enum qre_pool { QRE_CIPHERTEXT, QRE_PLAINTEXT, QRE_POOLS };

/* @size contiguous bytes that are not zeroed, with a reference on their page; NULL: no memory. */
u8 *qre_piece_take(enum qre_pool pool, unsigned int size, struct page **page);
/* Not used after all. */
void qre_piece_give(enum qre_pool pool, u8 *at, unsigned int size, struct page *page);
void qre_pages_exit(void);

/* A crypto request and what belongs to it; one a CPU is kept for the synchronous case. */
struct qre_work {
	void *context;
	struct qre_session *session;
	struct qre_key *key;
	u64 number;
	u8 first, ecn;
	union qre_peer source;
	u32 size;
	struct sk_buff *source_skb;
	struct page *page; /* of the piece that is decrypted into */
	u8 *piece;
	u32 piece_size, plain_size;
	u8 iv[QRE_IV_SIZE];
	u8 head[256]; /* header, DATAGRAM head, the inner packet's headers */
	struct scatterlist src[MAX_SKB_FRAGS + 3];
	unsigned int src_end; /* which entry of src is marked as the last */
	struct scatterlist opened[2], sealed[1];
	struct aead_request *request; /* behind this struct */
};
struct qre_work *qre_work_take(struct qre_key *key); /* bottom halves off */
void qre_work_give(struct qre_work *work);
/*
 * w->src: @size bytes of w->head, then what lies in @skb from @at on. How many entries the latter
 * took, or an error.
 */
int qre_work_source(struct qre_work *w, unsigned int size, struct sk_buff *skb, unsigned int at,
		    unsigned int rest);
/* The same of @rest, which is no packet's. */
void qre_work_source_flat(struct qre_work *w, unsigned int size, const u8 *rest,
			  unsigned int rest_size);
void qre_make_nonce(u8 nonce[QRE_IV_SIZE], const struct qre_key *key, u64 number);

/* --- AllowedIPs (allowedips.c) --- */

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

/* --- the BPF map (cidmap.c); qre_net.lock is held --- */

void qre_cidmap_add(struct qre_net *qn, struct qre_cid_entry *entry);
void qre_cidmap_del(struct qre_net *qn, struct qre_cid_entry *entry);
void qre_cidmap_release(struct qre_net *qn);

void qre_count_session(struct qre_session *s, bool receive, unsigned int packets, u64 bytes);

#endif
