// SPDX-License-Identifier: GPL-2.0-only
/*
 * Notifications. Frames of peers have a multicast group of their own: however many they are, they
 * displace nothing in the group "events". A notification is lost when there is no memory, or when
 * a listener's buffer is full.
 */
#include <net/genetlink.h>
#include "device.h"
#include "events.h"
#include "family.h"
#include "frames.h"
#include "peercids.h"
#include "silence.h"

static struct sk_buff *qre_begin(enum qre_group group, struct qre_device *qdev, const u8 *id,
				 enum qre_event event, size_t more, void **header)
{
	struct net *net = dev_net(qdev->dev);
	struct sk_buff *skb;

	if (!genl_has_listeners(&qre_family, net, group))
		return NULL;
	skb = genlmsg_new(NLMSG_DEFAULT_SIZE / 4 + more, GFP_ATOMIC);
	if (!skb)
		return NULL;
	*header = genlmsg_put(skb, 0, 0, &qre_family, 0, QRE_CMD_EVENT);
	if (!*header || nla_put_u8(skb, QRE_A_EVENT, event) ||
	    nla_put_string(skb, QRE_A_IFNAME, qdev->dev->name) ||
	    nla_put_u32(skb, QRE_A_IFINDEX, qdev->dev->ifindex) ||
	    (id && nla_put(skb, QRE_A_SESSION_ID, QRE_SESSION_ID_SIZE, id))) {
		nlmsg_free(skb);
		return NULL;
	}
	return skb;
}

static void qre_end(enum qre_group group, struct qre_device *qdev, struct sk_buff *skb,
		    void *header, int error)
{
	if (error) {
		nlmsg_free(skb);
		return;
	}
	genlmsg_end(skb, header);
	genlmsg_multicast_netns(&qre_family, dev_net(qdev->dev), skb, 0, group, GFP_ATOMIC);
}

static struct sk_buff *qre_event_begin(struct qre_device *qdev, const u8 *id, enum qre_event event,
				       size_t more, void **header)
{
	return qre_begin(QRE_GROUP_EVENTS, qdev, id, event, more, header);
}

static void qre_event_end(struct qre_device *qdev, struct sk_buff *skb, void *header, int error)
{
	qre_end(QRE_GROUP_EVENTS, qdev, skb, header, error);
}

void qre_tell_session(struct qre_device *qdev, const u8 *id, enum qre_event event)
{
	void *header;
	struct sk_buff *skb = qre_event_begin(qdev, id, event, 0, &header);

	if (skb)
		qre_event_end(qdev, skb, header, 0);
}

void qre_tell_lost(struct qre_device *qdev, const u8 *id, enum qre_loss why, u64 error_code)
{
	void *header;
	struct sk_buff *skb = qre_event_begin(qdev, id, QRE_EVENT_SESSION_LOST, 0, &header);

	if (skb)
		qre_event_end(
			qdev, skb, header,
			nla_put_u8(skb, QRE_A_LOSS, why)
				?: nla_put_u64_64bit(skb, QRE_A_ERROR_CODE, error_code, QRE_A_PAD));
}

void qre_tell_epoch(struct qre_device *qdev, const u8 *id, enum qre_event event, u64 key_epoch)
{
	void *header;
	struct sk_buff *skb = qre_event_begin(qdev, id, event, 0, &header);

	if (skb)
		qre_event_end(qdev, skb, header,
			      nla_put_u64_64bit(skb, QRE_A_KEY_EPOCH, key_epoch, QRE_A_PAD));
}

void qre_tell_moved(struct qre_device *qdev, const u8 *id, const struct qre_endpoint *endpoint)
{
	void *header;
	struct sk_buff *skb = qre_event_begin(qdev, id, QRE_EVENT_PEER_MOVED, 0, &header);

	if (skb)
		qre_event_end(qdev, skb, header, qre_put_endpoint(skb, endpoint));
}

/* Those of @payload that are user space's, @passed bytes of them, in one message. */
void qre_tell_frames(struct qre_device *qdev, const u8 *id, const u8 *payload, size_t size,
		     size_t passed)
{
	void *header;
	struct sk_buff *skb = qre_begin(QRE_GROUP_FRAMES, qdev, id, QRE_EVENT_FRAME_RECEIVED,
					nla_total_size(passed), &header);
	struct nlattr *frames;

	if (!skb)
		return;
	frames = nla_reserve(skb, QRE_A_FRAMES, passed);
	if (frames)
		qre_content_passed(nla_data(frames), payload, size);
	qre_end(QRE_GROUP_FRAMES, qdev, skb, header, frames ? 0 : -EMSGSIZE);
}

void qre_tell_fate(struct qre_device *qdev, const u8 *id, u64 frame_id, bool acked)
{
	void *header;
	struct sk_buff *skb = qre_event_begin(qdev, id, QRE_EVENT_FRAME_FATE, 0, &header);

	if (skb)
		qre_event_end(qdev, skb, header,
			      nla_put_u64_64bit(skb, QRE_A_FRAME_ID, frame_id, QRE_A_PAD)
				      ?: nla_put_u8(skb, QRE_A_FRAME_ACKED, acked));
}

void qre_tell_degraded(struct qre_device *qdev, const u8 *id, const struct qre_degraded *path)
{
	void *header;
	struct sk_buff *skb = qre_event_begin(qdev, id, QRE_EVENT_PATH_DEGRADED, 0, &header);

	if (skb)
		qre_event_end(qdev, skb, header,
			      nla_put_u32(skb, QRE_A_SMOOTHED_RTT_US, path->smoothed)
				      ?: nla_put_u32(skb, QRE_A_RTT_VARIATION_US, path->variation)
				      ?: nla_put_u32(skb, QRE_A_PTO_US, path->pto)
				      ?: nla_put_u8(skb, QRE_A_SEVERAL, path->several)
				      ?: nla_put_u8(skb, QRE_A_SPARE, path->spare));
}

/* The port that is tried with this ID answers. */
void qre_tell_port(struct qre_device *qdev, const u8 *id, const struct qre_peer_cid *cid)
{
	void *header;
	struct sk_buff *skb = qre_event_begin(qdev, id, QRE_EVENT_PORT_ANSWERED, 0, &header);

	if (skb)
		qre_event_end(qdev, skb, header,
			      nla_put(skb, QRE_A_CID, cid->size, cid->bytes)
				      ?: nla_put_u64_64bit(skb, QRE_A_SEQUENCE, cid->sequence,
							   QRE_A_PAD));
}

void qre_tell_map_failed(struct qre_device *qdev, const struct qre_cid *cid, int error)
{
	void *header;
	struct sk_buff *skb = qre_event_begin(qdev, NULL, QRE_EVENT_MAP_SYNC_FAILED, 0, &header);

	if (skb)
		qre_event_end(qdev, skb, header,
			      nla_put(skb, QRE_A_CID, cid->length, cid->bytes)
				      ?: nla_put_u32(skb, QRE_A_ERRNO, error));
}
