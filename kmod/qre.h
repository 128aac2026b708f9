/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of qre.ko share.
 *
 * Locks, outermost first: RTNL > qre_net.lock (mutex: every change asked for by user space, and
 * every table's writers) > qre_session.lock (bottom halves off: the QUIC state of one session) >
 * qre_session.tx_lock (its packet number and transmit key, nothing else). Readers of tables use
 * RCU. Nothing is transmitted while a lock is held: packets are collected in a list and sent
 * afterwards.
 *
 * Life (docs/kernel.md has the table): an object is made whole, then published, and unpublished
 * before anything of it ends; what was refused was never found. A session is found by RCU through
 * its socket's table, its device's AllowedIPs or its device's list. Unpublishing it ends its life,
 * stops its timer, and drops the reference that the tables held; packets under way hold their own.
 * A session holds its socket; a device holds nothing of a session.
 *
 * No lock is held across what a user controls: a user's socket is never locked while a process can
 * use it. A namespace's works run in a queue of its own.
 */
#ifndef QRE_H
#define QRE_H

#include <linux/in.h>
#include <linux/list.h>
#include <linux/llist.h>
#include <linux/mutex.h>
#include <linux/netdevice.h>
#include <linux/refcount.h>
#include <linux/scatterlist.h>
#include <linux/skbuff.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/types.h>
#include <linux/workqueue.h>
#include <net/dst_cache.h>
#include <net/gro_cells.h>
#include <net/netlink.h>

#include "ackwin.h"
#include "frames.h"
#include "uapi/qre.h"

struct crypto_aead;
struct crypto_cipher;
struct bpf_map;
struct qre_key_book;
struct qre_used_key;
struct qre_socket;
struct qre_session;

/* First byte of a short header, CID, number in four bytes; then the DATAGRAM head and the tag. */
#define QRE_NUMBER_SIZE	    4
#define QRE_HEADER_MAX	    (1 + QRE_CID_MAX + QRE_NUMBER_SIZE)
#define QRE_DATAGRAM_HEAD   3
#define QRE_TAG_SIZE	    16
#define QRE_SAMPLE_SIZE	    16
#define QRE_UDP_PAYLOAD_MAX 1472

/* --- devices (device.c) --- */

struct qre_counters { /* per CPU; index of drops: enum qre_drop */
	u64_stats_t rx_packets, rx_bytes, tx_packets, tx_bytes;
	u64_stats_t drops[QRE_DROP_MAX + 1];
	struct u64_stats_sync syncp;
};

/* What DEVICE_SET stores: told by DEVICE_GET, most of it used by user space only. */
struct qre_device_config {
	enum qre_role role;
	char dest[QRE_NAME_MAX + 1];
	char server_name[QRE_NAME_MAX + 1];
	char endpoint[QRE_NAME_MAX + 1];
	__be32 listen_ip;
	__be16 listen_port;
	u16 keepalive; /* seconds */
	u32 max_sessions;
	u32 fwmark;
};

struct qre_allowed_ips; /* allowedips.c */

struct qre_device {
	struct net_device *dev;
	struct list_head entry; /* qre_net.devices */
	struct qre_counters __percpu *counters;
	struct gro_cells gro;
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

/* --- a namespace (main.c) --- */

struct qre_loader { /* what SHARED_LOADER_SET said */
	bool set;
	char program[32];
	char pin_dir[256];
	u8 cid_length;
	u32 pid;
};

struct qre_cidmap {	     /* cidmap.c; qre_net.lock */
	struct bpf_map *map; /* NULL: none */
	u32 id;
	u32 entries; /* CIDs that are in it */
	u32 missing; /* CIDs that should be and are not */
	u64 failures;
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
	struct work_struct reap;
};

struct qre_net *qre_net_of(struct net *net);
/* What a namespace with devices needs. RTNL is held. */
int qre_net_begin_devices(struct qre_net *qn);
/* Whether whoever sent @request may change anything, and see more than counters. */
#define QRE_NOT_CAPABLE                                                                            \
	"CAP_NET_ADMIN is needed, in the initial user namespace unless qre is loaded with "        \
	"userns=1"
bool qre_may(struct sk_buff *request, struct net *net);
bool qre_may_make_links(struct net *net); /* the calling process */

/* --- keys (crypto.c) --- */

struct qre_key { /* of one direction and epoch */
	struct crypto_aead *aead;
	struct qre_used_key *used; /* of transmission */
	u8 iv[QRE_IV_SIZE];
	u64 epoch;
	refcount_t refs;
	struct rcu_work free;
};

/* ERR_PTR(-ENOMEM, ...). Wiped when the last reference goes. */
struct qre_key *qre_key_new(const u8 key[QRE_KEY_SIZE], const u8 iv[QRE_IV_SIZE], u64 epoch);
/* For transmission: nothing is sent under it before qre_used_key_claim(key->used) took it. */
struct qre_key *qre_tx_key_new(struct qre_key_book *book, const u8 key[QRE_KEY_SIZE],
			       const u8 iv[QRE_IV_SIZE], u64 epoch);
struct qre_key *qre_key_get(struct qre_key *key);
void qre_key_put(struct qre_key *key); /* NULL is fine; any context */
const char *qre_key_driver(const struct qre_key *key);
struct crypto_cipher *qre_hp_new(const u8 key[QRE_KEY_SIZE]); /* header protection */
void qre_hp_free(struct crypto_cipher *hp);
/* mask[0..4] of RFC 9001 section 5.4.3 */
void qre_hp_mask(struct crypto_cipher *hp, u8 mask[QRE_SAMPLE_SIZE],
		 const u8 sample[QRE_SAMPLE_SIZE]);

/* --- sessions (session.c) --- */

struct qre_endpoint { /* outer addresses */
	__be32 local_ip;
	__be32 peer_ip;
	__be16 local_port;
	__be16 peer_port;
};

struct qre_epoch_keys {
	u8 tx_key[QRE_KEY_SIZE], rx_key[QRE_KEY_SIZE];
	u8 tx_iv[QRE_IV_SIZE], rx_iv[QRE_IV_SIZE];
};

/* SESSION_INSTALL, and SESSION_UPDATE (which reads id, keys, next, key_epoch, packet_number, and
 * what has_hp and has_endpoint tell). netlink.c fills it from validated attributes, with the
 * defaults of the table below, and wipes it. */
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
/* @id NULL: a CID of the device alone. */
int qre_cid_adopt(struct qre_device *qdev, const u8 *id, const struct qre_cid *cid, u64 sequence,
		  struct netlink_ext_ack *extack);
int qre_cid_release(struct qre_device *qdev, const u8 *id, const struct qre_cid *cid,
		    struct netlink_ext_ack *extack);

/* What SESSION_GET tells, taken in one moment. */
struct qre_session_info {
	u8 id[QRE_SESSION_ID_SIZE];
	struct qre_cid cid, client_cid;
	u8 short_id[QRE_SHORT_ID_SIZE];
	enum qre_session_state state;
	bool confirmed;
	u64 key_epoch, packet_number, rx_number;
	u16 udp_payload, inner_mtu; /* the largest that the path takes, as far as it is known */
	struct qre_endpoint endpoint;
	bool has_endpoint;
	u64 age_ms, last_receive_ms;
	bool received; /* last_receive_ms is valid */
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

/* An adopted CID. */
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

/* --- sockets (socket.c) --- qre_net.lock is held */

int qre_shared_register(struct qre_net *qn, u32 fd, struct netlink_ext_ack *extack);
int qre_shared_unregister(struct qre_net *qn, struct netlink_ext_ack *extack); /* -ENOENT: none */
struct qre_shared_info {
	bool set;
	__be32 ip;
	__be16 port;
	u64 rx, passed;
};
void qre_shared_tell(struct qre_net *qn, struct qre_shared_info *info);

/* --- the BPF map (cidmap.c) --- qre_net.lock is held */

int qre_cidmap_register(struct qre_net *qn, u32 fd, struct netlink_ext_ack *extack);
int qre_cidmap_unregister(struct qre_net *qn, struct netlink_ext_ack *extack); /* -ENOENT: none */

/* --- netlink.c --- */

int qre_netlink_init(void);
void qre_netlink_exit(void);

/* Any context. Events are lost when memory is: user space finds out by SESSION_GET. */
void qre_tell_session(struct qre_device *qdev, const u8 *id, enum qre_event event);
void qre_tell_lost(struct qre_device *qdev, const u8 *id, enum qre_loss why, u64 error_code);
void qre_tell_epoch(struct qre_device *qdev, const u8 *id, enum qre_event event, u64 key_epoch);
void qre_tell_moved(struct qre_device *qdev, const u8 *id, const struct qre_endpoint *endpoint);
void qre_tell_frames(struct qre_device *qdev, const u8 *id, const u8 *payload, size_t size,
		     size_t passed);
void qre_tell_fate(struct qre_device *qdev, const u8 *id, u64 frame_id, bool acked);
void qre_tell_map_failed(struct qre_device *qdev, const struct qre_cid *cid, int error);

#endif
