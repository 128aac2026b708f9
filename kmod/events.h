/* SPDX-License-Identifier: GPL-2.0-only */
/* Events for user space (events.c). */
#ifndef QRE_EVENTS_H
#define QRE_EVENTS_H

#include "qre.h"

struct qre_degraded;
struct qre_device;
struct qre_peer_cid;

/* Any context. Events are lost when memory is: user space finds out by SESSION_GET. */
void qre_tell_session(struct qre_device *qdev, const u8 *id, enum qre_event event);
void qre_tell_lost(struct qre_device *qdev, const u8 *id, enum qre_loss why, u64 error_code);
void qre_tell_epoch(struct qre_device *qdev, const u8 *id, enum qre_event event, u64 key_epoch);
void qre_tell_moved(struct qre_device *qdev, const u8 *id, const struct qre_endpoint *endpoint);
void qre_tell_frames(struct qre_device *qdev, const u8 *id, const u8 *payload, size_t size,
		     size_t passed);
void qre_tell_fate(struct qre_device *qdev, const u8 *id, u64 frame_id, bool acked);
void qre_tell_degraded(struct qre_device *qdev, const u8 *id, const struct qre_degraded *path);
void qre_tell_port(struct qre_device *qdev, const u8 *id, const struct qre_peer_cid *cid);
void qre_tell_map_failed(struct qre_device *qdev, const struct qre_cid *cid, int error);

#endif
