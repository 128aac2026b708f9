// SPDX-License-Identifier: GPL-2.0-only
/* Keys: AES-128-GCM contexts, header protection (RFC 9001 section 5.3, 5.4), and which keys were
 * used. */
#include <crypto/aead.h>
#include <crypto/internal/cipher.h>
#include <linux/hash.h>
#include <linux/random.h>
#include <linux/siphash.h>
#include <linux/slab.h>
#include "compat.h"
#include "crypto.h"
#include "session.h"

QRE_IMPORT_NS(CRYPTO_INTERNAL);

struct qre_key *qre_key_new(const u8 key[QRE_KEY_SIZE], const u8 iv[QRE_IV_SIZE], u64 epoch)
{
	struct qre_key *made = kzalloc(sizeof(*made), GFP_KERNEL);
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
	memcpy(made->iv, iv, QRE_IV_SIZE);
	made->epoch = epoch;
	refcount_set(&made->refs, 1);
	return made;
free:
	kfree(made);
	return ERR_PTR(error);
}

struct qre_key *qre_key_get(struct qre_key *key)
{
	return refcount_inc_not_zero(&key->refs) ? key : NULL;
}

static void qre_key_free(struct work_struct *work)
{
	struct qre_key *key = container_of(to_rcu_work(work), struct qre_key, free);

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

struct crypto_cipher *qre_hp_new(const u8 key[QRE_KEY_SIZE])
{
	struct crypto_cipher *hp = crypto_alloc_cipher("aes", 0, 0);
	int error;

	if (IS_ERR(hp))
		return hp;
	error = crypto_cipher_setkey(hp, key, QRE_KEY_SIZE);
	if (error) {
		crypto_free_cipher(hp);
		return ERR_PTR(error);
	}
	return hp;
}

void qre_hp_free(struct crypto_cipher *hp)
{
	if (!IS_ERR_OR_NULL(hp))
		crypto_free_cipher(hp);
}

void qre_hp_mask(struct crypto_cipher *hp, u8 mask[QRE_SAMPLE_SIZE],
		 const u8 sample[QRE_SAMPLE_SIZE])
{
	crypto_cipher_encrypt_one(hp, mask, sample);
}

/*
 * Keyed hashes of transmit keys, in sets of eight: the oldest of a set makes room. A key that was
 * used by another session is refused, so that a repeated install can not begin a number space
 * again.
 */
#define QRE_KEY_SETS 4096
#define QRE_KEY_WAYS 8

static DEFINE_SPINLOCK(qre_keys_lock);
static siphash_key_t qre_keys_secret;
static struct qre_key_set {
	u64 hash[QRE_KEY_WAYS];
	u8 next;
} * qre_key_sets;

int qre_tx_key_remember(const u8 key[QRE_KEY_SIZE])
{
	u64 hash = siphash(key, QRE_KEY_SIZE, &qre_keys_secret) | 1;
	struct qre_key_set *set = &qre_key_sets[hash_64(hash, ilog2(QRE_KEY_SETS))];
	int error = 0;
	unsigned int i;

	spin_lock_bh(&qre_keys_lock);
	for (i = 0; i < QRE_KEY_WAYS; i++)
		if (set->hash[i] == hash)
			error = -EEXIST;
	if (!error) {
		set->hash[set->next] = hash;
		set->next = (set->next + 1) % QRE_KEY_WAYS;
	}
	spin_unlock_bh(&qre_keys_lock);
	return error;
}

int qre_crypto_init(void)
{
	get_random_bytes(&qre_keys_secret, sizeof(qre_keys_secret));
	qre_key_sets = kvcalloc(QRE_KEY_SETS, sizeof(*qre_key_sets), GFP_KERNEL);
	return qre_key_sets ? 0 : -ENOMEM;
}

void qre_crypto_exit(void)
{
	memzero_explicit(&qre_keys_secret, sizeof(qre_keys_secret));
	kvfree_sensitive(qre_key_sets, QRE_KEY_SETS * sizeof(*qre_key_sets));
}
