// SPDX-License-Identifier: GPL-2.0-only
/*
 * The path's MTU in a session: pathmtu.c's search with real packets, numbers and time, and what
 * comes of it for the data path. Under qre_session.lock unless said otherwise.
 */
#include <linux/jiffies.h>
#include <net/dst.h>
#include <net/ip.h>
#include "compat.h"
#include "control.h"
#include "device.h"
#include "joiner.h"
#include "mtu.h"
#include "session.h"

/* The smallest payload that is reckoned with, whatever a device's MTU is: what does not leave is
 * counted. */
#define QRE_PAYLOAD_MIN (QRE_MTU_MIN - sizeof(struct iphdr) - sizeof(struct udphdr))
#define QRE_FAR_MS	(3600 * MSEC_PER_SEC) /* as good as never */

static u64 qre_mtu_now(void)
{
	return jiffies64_to_msecs(get_jiffies_64());
}

static u64 qre_mtu_pto(const struct qre_session *s)
{
	return max(jiffies_to_msecs(qre_control_pto(s)), 1U);
}

static u16 qre_mtu_bound(const struct qre_session *s)
{
	u16 bound = s->max_payload;

	if (s->mtu.first_hop)
		bound = min(bound, s->mtu.first_hop);
	return max_t(u16, bound, QRE_PAYLOAD_MIN);
}

/* What the data path goes by. */
static void qre_mtu_publish(struct qre_session *s)
{
	unsigned int around =
		1 + s->tx_cid.length + QRE_NUMBER_SIZE + QRE_TAG_SIZE + QRE_DATAGRAM_HEAD;
	const struct qre_pathmtu *p = &s->path_mtu;
	u16 most = s->usual_payload, usual = min(p->size, most);

	WRITE_ONCE(s->mtu.inner, usual - around);
	WRITE_ONCE(s->mtu.inner_ipv6, (s->splits ? usual : p->size) - around);
	/* A segment size is for a stream's life: it is chosen for what the search may yet find.
	 * What is too large for now is cut. */
	WRITE_ONCE(s->mtu.clamp, min(p->quiet ? qre_pathmtu_hope(p) : p->size, most) - around);
	WRITE_ONCE(s->mtu.quiet, p->quiet);
	WRITE_ONCE(s->mtu.watches, qre_pathmtu_watches(p));
}

unsigned int qre_mtu_in_two(const struct qre_session *s, unsigned int inner)
{
	return s->splits ? min_t(unsigned int, 2 * (inner - QRE_PART_HEAD), QRE_SPLIT_MAX) : 0;
}

unsigned int qre_mtu_carries_ipv6(const struct qre_session *s)
{
	unsigned int inner = READ_ONCE(s->mtu.inner_ipv6);

	return max(inner, qre_mtu_in_two(s, inner)) < IPV6_MIN_MTU ? 0 : inner;
}

void qre_mtu_resize(struct qre_session *s)
{
	qre_mtu_publish(s);
}

void qre_mtu_init(struct qre_session *s)
{
	qre_pathmtu_init(&s->path_mtu, s->client ? &qre_pathmtu_client : &qre_pathmtu_server,
			 qre_mtu_bound(s));
	qre_mtu_publish(s);
}

static bool qre_mtu_may_send(const struct qre_session *s)
{
	return s->life == QRE_LIFE_ESTABLISHED && s->socket;
}

static void qre_mtu_run(struct qre_session *s, struct qre_outbox *out)
{
	struct qre_pathmtu *p = &s->path_mtu;
	u64 now = qre_mtu_now(), pto = qre_mtu_pto(s), number;
	enum qre_pathmtu_action action;

	while (qre_mtu_may_send(s) &&
	       (action = qre_pathmtu_next(p, now, pto)) != QRE_PATHMTU_NOTHING) {
		if (action == QRE_PATHMTU_PING) {
			qre_control_probe(s, 0, out);
			continue;
		}
		number = qre_control_probe(s, p->probed, out);
		qre_pathmtu_sent(p, number, now, pto);
	}
	qre_mtu_publish(s);
	qre_control_arm(s, qre_mtu_at(s));
}

unsigned long qre_mtu_at(const struct qre_session *s)
{
	u64 due = qre_pathmtu_due(&s->path_mtu), now = qre_mtu_now(), wait = QRE_FAR_MS;

	if (qre_mtu_may_send(s))
		wait = due > now ? min_t(u64, due - now, QRE_FAR_MS) : 0;
	return jiffies + msecs_to_jiffies(wait) + 1;
}

static u32 qre_mtu_srtt(const struct qre_session *s)
{
	return min_t(u64, s->srtt, U32_MAX);
}

void qre_mtu_begin(struct qre_session *s)
{
	bool first = s->path_mtu.state == QRE_PATHMTU_IDLE;

	qre_pathmtu_begin(&s->path_mtu, qre_mtu_now(), qre_mtu_srtt(s));
	if (s->client && first) /* on the path of its hello */
		qre_pathmtu_proven(&s->path_mtu, QRE_BROWSER_PAYLOAD, 0, qre_mtu_now());
	qre_mtu_publish(s);
	qre_control_arm(s, qre_mtu_at(s));
}

void qre_mtu_rtt(struct qre_session *s)
{
	qre_pathmtu_rtt(&s->path_mtu, qre_mtu_srtt(s));
	qre_control_arm(s, qre_mtu_at(s));
}

void qre_mtu_proven(struct qre_session *s, u16 payload, u64 ago_ms)
{
	qre_pathmtu_proven(&s->path_mtu, payload, ago_ms, qre_mtu_now());
	qre_mtu_publish(s);
	qre_control_arm(s, qre_mtu_at(s));
}

void qre_mtu_acked(struct qre_session *s, const struct qre_frame *f, struct qre_outbox *out)
{
	struct qre_pathmtu *p = &s->path_mtu;
	struct qre_ack_iter it;
	struct qre_range range;
	u64 now;

	if (likely(!qre_pathmtu_listens(p)))
		return;
	now = qre_mtu_now();
	qre_ack_begin(&it, f);
	while (qre_ack_next(&it, &range))
		qre_pathmtu_acked(p, range.first, range.last, now);
	qre_pathmtu_heard(p, f->ack.largest, now);
	qre_mtu_run(s, out);
}

void qre_mtu_timers(struct qre_session *s, struct qre_outbox *out)
{
	if (qre_pathmtu_due(&s->path_mtu) <= qre_mtu_now())
		qre_mtu_run(s, out);
}

/* --- from the data path: without the lock, bottom halves off --- */

void qre_mtu_watch(struct qre_session *s, u64 number)
{
	spin_lock(&s->lock);
	qre_pathmtu_watch(&s->path_mtu, number, qre_mtu_now(), qre_mtu_pto(s));
	WRITE_ONCE(s->mtu.watches, qre_pathmtu_watches(&s->path_mtu));
	qre_control_arm(s, qre_mtu_at(s));
	spin_unlock(&s->lock);
}

/* The device that packets leave by, or its MTU, is another one. */
static noinline void qre_mtu_first_hop_is(struct qre_session *s, u16 payload)
{
	spin_lock(&s->lock);
	WRITE_ONCE(s->mtu.first_hop, payload);
	qre_pathmtu_bound(&s->path_mtu, qre_mtu_bound(s), qre_mtu_now());
	qre_mtu_publish(s);
	qre_control_arm(s, qre_mtu_at(s)); /* a larger size may be probed now */
	spin_unlock(&s->lock);
}

/* An administrator's word about the route counts, what ICMP said does not. */
static unsigned int qre_mtu_of_v4(const struct dst_entry *dst)
{
	unsigned int mtu = min_t(unsigned int, READ_ONCE(dst->dev->mtu), IP_MAX_MTU);
	unsigned int route = dst_metric_raw(dst, RTAX_MTU);

	mtu -= lwtunnel_headroom(dst->lwtstate, mtu);
	return route ? min(route, mtu) : mtu;
}

bool qre_mtu_leaves(struct qre_session *s, const struct dst_entry *dst, u16 family,
		    unsigned int payload)
{
	/* IPv6 drops what is larger than the route takes, whoever said so. */
	unsigned int mtu = family == AF_INET6 ? dst_mtu(dst) : qre_mtu_of_v4(dst);
	unsigned int most;

	most = max_t(int, mtu - qre_ip_header_size(family) - sizeof(struct udphdr), 1);
	if (unlikely(most != READ_ONCE(s->mtu.first_hop)))
		qre_mtu_first_hop_is(s, most);
	return likely(payload <= most);
}
