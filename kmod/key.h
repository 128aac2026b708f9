/* SPDX-License-Identifier: GPL-2.0-only */
/* Keys of packet and header protection (crypto.c): RFC 9001 section 5. */
#ifndef QRE_KEY_H
#define QRE_KEY_H

#include <linux/refcount.h>
#include <linux/workqueue.h>

#include "direct.h"
#include "gcm.h"
#include "qre.h"

struct crypto_aead;
struct crypto_cipher;
struct qre_key_book;
struct qre_used_key;

struct qre_epoch_keys {
	u8 tx_key[QRE_KEY_SIZE], rx_key[QRE_KEY_SIZE];
	u8 tx_iv[QRE_IV_SIZE], rx_iv[QRE_IV_SIZE];
};

struct qre_key { /* of one direction and epoch */
	struct crypto_aead *aead;
	struct qre_used_key *used; /* of transmission */
	u8 iv[QRE_IV_SIZE];
	u64 epoch;
	refcount_t refs;
	bool direct; /* the next is valid */
	struct qre_gcm gcm;
	struct rcu_work free;
};

struct qre_hp { /* header protection of one direction */
	struct crypto_cipher *cipher;
	bool direct; /* the next is valid */
	struct qre_aes aes;
};

/* ERR_PTR(-ENOMEM, ...). Wiped when the last reference goes. */
struct qre_key *qre_key_new(const u8 key[QRE_KEY_SIZE], const u8 iv[QRE_IV_SIZE], u64 epoch);
/* For transmission: nothing is sent under it before qre_used_key_claim(key->used) took it. */
struct qre_key *qre_tx_key_new(struct qre_key_book *book, const u8 key[QRE_KEY_SIZE],
			       const u8 iv[QRE_IV_SIZE], u64 epoch);
struct qre_key *qre_key_get(struct qre_key *key);
void qre_key_put(struct qre_key *key); /* NULL is fine; any context */
/* As qre_direct_begin; true: key->gcm is valid. */
static inline bool qre_key_begin(const struct qre_key *key)
{
	return key->direct && qre_direct_begin();
}
const char *qre_key_driver(const struct qre_key *key);
struct qre_hp *qre_hp_new(const u8 key[QRE_KEY_SIZE]); /* ERR_PTR */
void qre_hp_free(struct qre_hp *hp);		       /* wipes it; NULL and ERR_PTR are fine */
/* mask[0..4] of RFC 9001 section 5.4.3. Not between qre_direct_begin and qre_direct_end: there it
 * is qre_aes_block(&hp->aes, ...) */
void qre_hp_mask(struct qre_hp *hp, u8 mask[QRE_SAMPLE_SIZE], const u8 sample[QRE_SAMPLE_SIZE]);

void qre_make_nonce(u8 nonce[QRE_IV_SIZE], const struct qre_key *key, u64 number);

#endif
