// SPDX-License-Identifier: GPL-2.0-only
/* Keys: AES-128-GCM contexts and header protection (RFC 9001 section 5.3, 5.4). */
#include <crypto/aead.h>
#include <crypto/internal/cipher.h>
#include <linux/slab.h>
#include "compat.h"
#include "key.h"
#include "usedkeys.h"

QRE_IMPORT_NS(CRYPTO_INTERNAL);

/* What the crypto layer picks where it knows no better than AES-NI, and begins anew for each
 * packet. Whatever else it picks is used. */
#define QRE_SLOW_DRIVER "generic-gcm-aesni"

struct qre_key *qre_key_new(const u8 key[QRE_KEY_SIZE], const u8 iv[QRE_IV_SIZE], u64 epoch)
{
	struct qre_key *made = kzalloc(sizeof(*made), GFP_KERNEL_ACCOUNT);
	int error;

	if (!made)
		return ERR_PTR(-ENOMEM);
	/* Mask 0: with CRYPTO_ALG_ASYNC masked, 6.1 picks a driver several times slower than
	 * AES-NI's own. */
	made->aead = crypto_alloc_aead("gcm(aes)", 0, 0);
	if (IS_ERR(made->aead)) {
		error = PTR_ERR(made->aead);
		goto free;
	}
	error = crypto_aead_setkey(made->aead, key, QRE_KEY_SIZE);
	if (!error)
		error = crypto_aead_setauthsize(made->aead, QRE_TAG_SIZE);
	if (error) {
		crypto_free_aead(made->aead);
		goto free;
	}
	made->direct = !strcmp(qre_key_driver(made), QRE_SLOW_DRIVER) && qre_direct_begin();
	if (made->direct) {
		qre_gcm_init(&made->gcm, key);
		qre_direct_end();
	}
	memcpy(made->iv, iv, QRE_IV_SIZE);
	made->epoch = epoch;
	refcount_set(&made->refs, 1);
	return made;
free:
	kfree(made);
	return ERR_PTR(error);
}

struct qre_key *qre_tx_key_new(struct qre_key_book *book, const u8 key[QRE_KEY_SIZE],
			       const u8 iv[QRE_IV_SIZE], u64 epoch)
{
	struct qre_key *made = qre_key_new(key, iv, epoch);

	if (IS_ERR(made))
		return made;
	made->used = qre_used_key_new(book, key);
	if (made->used)
		return made;
	qre_key_put(made);
	return ERR_PTR(-ENOMEM);
}

struct qre_key *qre_key_get(struct qre_key *key)
{
	return refcount_inc_not_zero(&key->refs) ? key : NULL;
}

static void qre_key_free(struct work_struct *work)
{
	struct qre_key *key = container_of(to_rcu_work(work), struct qre_key, free);

	qre_used_key_retire(key->used);
	crypto_free_aead(key->aead); /* wipes its context */
	kfree_sensitive(key);
}

void qre_key_put(struct qre_key *key)
{
	if (key && refcount_dec_and_test(&key->refs)) {
		INIT_RCU_WORK(&key->free, qre_key_free);
		queue_rcu_work(qre_wq, &key->free);
	}
}

const char *qre_key_driver(const struct qre_key *key)
{
	return crypto_tfm_alg_driver_name(crypto_aead_tfm(key->aead));
}

void qre_make_nonce(u8 nonce[QRE_IV_SIZE], const struct qre_key *key, u64 number)
{
	__be64 big = cpu_to_be64(number);

	memcpy(nonce, key->iv, QRE_IV_SIZE);
	crypto_xor(nonce + QRE_IV_SIZE - sizeof(big), (const u8 *)&big, sizeof(big));
}

struct qre_hp *qre_hp_new(const u8 key[QRE_KEY_SIZE])
{
	struct qre_hp *hp = kzalloc(sizeof(*hp), GFP_KERNEL_ACCOUNT);
	int error;

	if (!hp)
		return ERR_PTR(-ENOMEM);
	hp->cipher = crypto_alloc_cipher("aes", 0, 0);
	error = PTR_ERR_OR_ZERO(hp->cipher);
	if (error)
		goto free;
	error = crypto_cipher_setkey(hp->cipher, key, QRE_KEY_SIZE);
	if (error)
		goto free_cipher;
	hp->direct = qre_direct_begin();
	if (hp->direct) {
		qre_aes_init(&hp->aes, key);
		qre_direct_end();
	}
	return hp;
free_cipher:
	crypto_free_cipher(hp->cipher);
free:
	kfree(hp);
	return ERR_PTR(error);
}

void qre_hp_free(struct qre_hp *hp)
{
	if (IS_ERR_OR_NULL(hp))
		return;
	crypto_free_cipher(hp->cipher);
	kfree_sensitive(hp);
}

void qre_hp_mask(struct qre_hp *hp, u8 mask[QRE_SAMPLE_SIZE], const u8 sample[QRE_SAMPLE_SIZE])
{
	if (hp->direct && qre_direct_begin()) {
		qre_aes_block(&hp->aes, mask, sample);
		qre_direct_end();
	} else {
		crypto_cipher_encrypt_one(hp->cipher, mask, sample);
	}
}
