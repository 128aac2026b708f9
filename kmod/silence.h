/* SPDX-License-Identifier: GPL-2.0-only */
/* What a client does that hears nothing (silence.c). Under qre_session.lock, but the last. */
#ifndef QRE_SILENCE_H
#define QRE_SILENCE_H

#include "qre.h"

struct netlink_ext_ack;
struct qre_device;
struct qre_outbox;
struct qre_session;

#define QRE_FAREWELL_MAX 64 /* bytes of frames, behind an ACK */

/* The packets of a client that ask for an ACK and have none. */
struct qre_silence {
	bool unanswered; /* there are some; written under the lock, read anywhere */
	bool several;	 /* there were when it began */
	bool degraded, told;
	unsigned long since;
	unsigned int repeats; /* at probe timeouts, in a row */
	u64 newest;
	/* of those with user data: inner bytes, when it went out last, or what stands for it */
	bool data;
	u16 data_size;
	unsigned long data_at;
	u64 newest_data; /* these two not under the lock */
	u16 newest_size;
	/* SESSION_GIVE_UP, for this silence alone */
	bool ordered, repeats_last;
	unsigned long last_repeat_at, gives_up_at;
	u8 farewell[QRE_FAREWELL_MAX];
	size_t farewell_size;
};

struct qre_degraded { /* what the order to give up is made of, in microseconds */
	u32 smoothed, variation, pto;
	bool several;
	bool spare; /* another port can be tried */
};

/* Something ack-eliciting has left; it held an inner packet of @size bytes. */
void qre_silence_sent(struct qre_session *s);
void qre_silence_sent_data(struct qre_session *s, unsigned int size);
/* More is acknowledged than was before. */
void qre_silence_answered(struct qre_session *s);
/* What is under way is heard on a new path: it begins anew. */
void qre_silence_begin_path(struct qre_session *s);
/* When the timer should run, and what it does; the latter may be told to be there in time. */
unsigned long qre_silence_at(const struct qre_session *s, unsigned long otherwise);
void qre_silence_timers(struct qre_session *s, struct qre_outbox *out);
unsigned long qre_silence_in_time(const struct qre_session *s, unsigned long at);
/* qre_net.lock is held: SESSION_GIVE_UP. */
int qre_session_give_up(struct qre_device *qdev, const u8 *id, u64 last_repeat_ms, u64 gives_up_ms,
			const u8 *farewell, size_t size, struct netlink_ext_ack *extack);

#endif
