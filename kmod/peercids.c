// SPDX-License-Identifier: GPL-2.0-only
/* The connection IDs that the peer gave us. */
#include "peercids.h"

void qre_peer_cids_init(struct qre_peer_cids *c, const u8 *bytes, u8 size, u64 sequence,
			const u8 *token)
{
	struct qre_peer_cid *first = &c->held[0];

	memset(c, 0, sizeof(*c));
	first->state = QRE_PEER_CID_USED;
	first->sequence = sequence;
	first->size = size;
	memcpy(first->bytes, bytes, size);
	first->has_token = token;
	if (token)
		memcpy(first->token, token, QRE_PEER_TOKEN);
}

static bool same_bytes(const struct qre_peer_cid *one, const struct qre_frame *f)
{
	return one->size == f->cid.size && !memcmp(one->bytes, f->cid.bytes, one->size);
}

/* A sequence number is owed once; false: too many are. */
static bool owe(struct qre_peer_cids *c, u64 sequence)
{
	unsigned int i;

	for (i = 0; i < c->owed_count; i++)
		if (c->owed[i] == sequence)
			return true;
	if (c->owed_count == QRE_PEER_CIDS_OWED)
		return false;
	c->owed[c->owed_count++] = sequence;
	return true;
}

/* Spare ones that the peer wants back; false: too many are owed. */
static bool give_back(struct qre_peer_cids *c)
{
	unsigned int i;

	for (i = 0; i < QRE_PEER_CIDS; i++)
		if (c->held[i].state == QRE_PEER_CID_SPARE &&
		    c->held[i].sequence < c->retire_prior_to && !qre_peer_cids_retire(c, (int)i))
			return false;
	return true;
}

u64 qre_peer_cids_issued(struct qre_peer_cids *c, const struct qre_frame *f)
{
	struct qre_peer_cid *place = NULL;
	unsigned int i;

	for (i = 0; i < QRE_PEER_CIDS; i++) {
		struct qre_peer_cid *one = &c->held[i];

		if (one->state == QRE_PEER_CID_FREE)
			continue;
		/* Known already: a repeat, or the first one, whose token, too, may be news. */
		if (one->sequence == f->cid.sequence || same_bytes(one, f)) {
			if (one->sequence != f->cid.sequence || !same_bytes(one, f) ||
			    (one->has_token &&
			     memcmp(one->token, f->cid.bytes + f->cid.size, QRE_PEER_TOKEN)))
				return QRE_PROTOCOL_VIOLATION;
			place = one;
		}
	}
	if (f->cid.retire_prior_to > c->retire_prior_to) {
		c->retire_prior_to = f->cid.retire_prior_to;
		if (!give_back(c))
			return QRE_CID_LIMIT_ERROR;
	}
	for (i = 0; i < c->owed_count; i++)
		if (c->owed[i] == f->cid.sequence)
			return 0;
	if (place) {
		place->has_token = true;
		memcpy(place->token, f->cid.bytes + f->cid.size, QRE_PEER_TOKEN);
		return 0;
	}
	if (f->cid.sequence < c->retire_prior_to)
		return owe(c, f->cid.sequence) ? 0 : QRE_CID_LIMIT_ERROR;
	for (i = 0; i < QRE_PEER_CIDS && !place; i++)
		if (c->held[i].state == QRE_PEER_CID_FREE)
			place = &c->held[i];
	if (!place)
		return QRE_CID_LIMIT_ERROR;
	place->state = QRE_PEER_CID_SPARE;
	place->sequence = f->cid.sequence;
	place->size = f->cid.size;
	memcpy(place->bytes, f->cid.bytes, f->cid.size);
	place->has_token = true;
	memcpy(place->token, f->cid.bytes + f->cid.size, QRE_PEER_TOKEN);
	return 0;
}

int qre_peer_cids_take(struct qre_peer_cids *c, u8 size)
{
	int found = QRE_PEER_CID_NONE, i;

	for (i = 0; i < QRE_PEER_CIDS; i++) {
		struct qre_peer_cid *one = &c->held[i], *best = &c->held[found < 0 ? 0 : found];

		if (one->state != QRE_PEER_CID_SPARE)
			continue;
		if (found < 0 || (one->size == size) > (best->size == size) ||
		    ((one->size == size) == (best->size == size) && one->sequence < best->sequence))
			found = i;
	}
	if (found >= 0)
		c->held[found].state = QRE_PEER_CID_USED;
	return found;
}

bool qre_peer_cids_any_spare(const struct qre_peer_cids *c)
{
	unsigned int i;

	for (i = 0; i < QRE_PEER_CIDS; i++)
		if (c->held[i].state == QRE_PEER_CID_SPARE)
			return true;
	return false;
}

bool qre_peer_cids_wanted_back(const struct qre_peer_cids *c, int which)
{
	return c->held[which].sequence < c->retire_prior_to;
}

bool qre_peer_cids_retire(struct qre_peer_cids *c, int which)
{
	struct qre_peer_cid *one = &c->held[which];
	u64 sequence = one->sequence;

	memset(one, 0, sizeof(*one));
	return owe(c, sequence);
}

size_t qre_peer_cids_pay(struct qre_peer_cids *c, u8 *out, size_t room)
{
	unsigned int paid = 0, i;
	size_t size = 0;

	while (paid < c->owed_count && size + 1 + qre_varint_size(c->owed[paid]) <= room) {
		out[size++] = 0x19;
		size += qre_varint_put(out + size, c->owed[paid++]);
	}
	c->owed_count -= paid;
	for (i = 0; i < c->owed_count; i++)
		c->owed[i] = c->owed[i + paid];
	return size;
}
