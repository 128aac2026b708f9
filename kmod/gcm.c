// SPDX-License-Identifier: GPL-2.0-only
/*
 * AES-128-GCM by the processor's instructions. Its hash is computed as POLYVAL of reversed blocks
 * (RFC 8452 appendix A), whose products need no shift, eight of them to a reduction. The powers of
 * the key are made once a key: the driver of kernels before 6.11 makes them for each packet. No
 * branch and no address depends on a secret.
 */
#include "gcm.h"

#ifndef __CHECKER__ /* sparse does not know vectors */

#define BLOCK 16
#define MANY                                                                                       \
	8 /* blocks at once: more than the processor is busy with, no more than it has room        \
	   */

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

/* Two halves of a block, the lower one first */
typedef long long block __attribute__((vector_size(BLOCK)));
typedef block block_anywhere __attribute__((aligned(1), may_alias));
typedef int words __attribute__((vector_size(BLOCK)));
typedef char bytes __attribute__((vector_size(BLOCK)));

static __always_inline block load(const u8 *at)
{
	return *(const block_anywhere *)at;
}

static __always_inline void store(u8 *at, block value)
{
	*(block_anywhere *)at = value;
}

/* The first @size bytes of a block, the others 0. */
static __always_inline block load_part(const u8 *at, size_t size)
{
	u8 padded[BLOCK] = {0};

	memcpy(padded, at, size);
	return load(padded);
}

/* --- AES: FIPS 197 --- */

static void next_round(struct qre_aes *aes, unsigned int round, block assisted)
{
	u32 word[4], mixed = (u32)((words)assisted)[3];
	unsigned int i;

	memcpy(word, aes->rounds[round - 1], sizeof(word));
	for (i = 0; i < 4; i++)
		word[i] ^= i ? word[i - 1] : mixed;
	memcpy(aes->rounds[round], word, sizeof(word));
}

#define NEXT_ROUND(aes, round, constant)                                                           \
	next_round(aes, round,                                                                     \
		   (block)__builtin_ia32_aeskeygenassist128(load((aes)->rounds[(round)-1]),        \
							    constant))

void qre_aes_init(struct qre_aes *aes, const u8 key[16])
{
	memcpy(aes->rounds[0], key, BLOCK);
	NEXT_ROUND(aes, 1, 0x01);
	NEXT_ROUND(aes, 2, 0x02);
	NEXT_ROUND(aes, 3, 0x04);
	NEXT_ROUND(aes, 4, 0x08);
	NEXT_ROUND(aes, 5, 0x10);
	NEXT_ROUND(aes, 6, 0x20);
	NEXT_ROUND(aes, 7, 0x40);
	NEXT_ROUND(aes, 8, 0x80);
	NEXT_ROUND(aes, 9, 0x1b);
	NEXT_ROUND(aes, 10, 0x36);
}

static __always_inline block encrypted(const struct qre_aes *aes, block value)
{
	unsigned int round;

	value ^= load(aes->rounds[0]);
#pragma GCC unroll 9
	for (round = 1; round < 10; round++)
		value = __builtin_ia32_aesenc128(value, load(aes->rounds[round]));
	return __builtin_ia32_aesenclast128(value, load(aes->rounds[10]));
}

void qre_aes_block(const struct qre_aes *aes, u8 to[16], const u8 from[16])
{
	store(to, encrypted(aes, load(from)));
}

/* --- the key stream --- */

/* The counter of a block, whose last word is a number here. */
static __always_inline words counter_of(const u8 iv[12], int number)
{
	words counter = (words)load_part(iv, 12);

	counter[3] = number;
	return counter;
}

static __always_inline block counter_block(words counter)
{
	const bytes order = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 14, 13, 12};

	return (block)__builtin_ia32_pshufb128((bytes)counter, order);
}

static __always_inline words counted(words counter)
{
	return counter + (words){0, 0, 0, 1};
}

static __always_inline block key_stream(const struct qre_aes *aes, words *counter)
{
	block value = counter_block(*counter);

	*counter = counted(*counter);
	return encrypted(aes, value);
}

/* MANY blocks of @from, encrypted or decrypted, to @to. */
static __always_inline void crypt_many(const struct qre_aes *aes, words *counter, const u8 *from,
				       u8 *to)
{
	block value[MANY], key = load(aes->rounds[0]);
	unsigned int i, round;

#pragma GCC unroll 8
	for (i = 0; i < MANY; i++) {
		value[i] = counter_block(*counter) ^ key;
		*counter = counted(*counter);
	}
#pragma GCC unroll 9
	for (round = 1; round < 10; round++) {
		key = load(aes->rounds[round]);
#pragma GCC unroll 8
		for (i = 0; i < MANY; i++)
			value[i] = __builtin_ia32_aesenc128(value[i], key);
	}
	key = load(aes->rounds[10]);
#pragma GCC unroll 8
	for (i = 0; i < MANY; i++)
		store(to + i * BLOCK,
		      __builtin_ia32_aesenclast128(value[i], key) ^ load(from + i * BLOCK));
}

/* --- the hash --- */

static __always_inline block reversed(block value)
{
	const bytes order = {15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0};

	return (block)__builtin_ia32_pshufb128((bytes)value, order);
}

struct product { /* a sum of them, before its reduction */
	block low, middle, high;
};

static __always_inline void add_product(struct product *sum, block a, block b)
{
	sum->low ^= __builtin_ia32_pclmulqdq128(a, b, 0x00);
	sum->middle ^= __builtin_ia32_pclmulqdq128(a, b, 0x01);
	sum->middle ^= __builtin_ia32_pclmulqdq128(a, b, 0x10);
	sum->high ^= __builtin_ia32_pclmulqdq128(a, b, 0x11);
}

/* Montgomery's way, by x^128 + x^127 + x^126 + x^121 + 1. */
static __always_inline block reduced(const struct product *sum)
{
	const long long upper = (long long)0xc200000000000000ULL;
	const block modulus = {upper, upper};
	block low = sum->low ^ (block) { 0, sum->middle[0] };
	block high = sum->high ^ (block) { sum->middle[1], 0 };
	block folded = __builtin_ia32_pclmulqdq128(low, modulus, 0x00);

	folded = (block){folded[1], folded[0]} ^ low;
	return high ^ folded ^ __builtin_ia32_pclmulqdq128(folded, modulus, 0x11);
}

void qre_gcm_init(struct qre_gcm *gcm, const u8 key[16])
{
	block hash_key, power;
	unsigned int i;
	u64 low, high, carry;

	qre_aes_init(&gcm->aes, key);
	hash_key = reversed(encrypted(&gcm->aes, (block){0, 0}));
	/* Times x: what GHASH's order of bits needs. */
	low = (u64)hash_key[0];
	high = (u64)hash_key[1];
	carry = high >> 63;
	high = (high << 1 | low >> 63) ^ (0xc200000000000000ULL & -carry);
	low = low << 1 ^ carry;
	power = hash_key = (block){(long long)low, (long long)high};
	for (i = 0; i < QRE_GCM_POWERS; i++) {
		struct product next = {{0, 0}, {0, 0}, {0, 0}};

		store(gcm->powers[i], power);
		add_product(&next, power, hash_key);
		power = reduced(&next);
	}
}

/* Blocks whose number is known, one after the other into one product. */
struct group {
	struct product sum;
	block before;	   /* what is hashed already; goes into the first one */
	unsigned int left; /* blocks */
};

static __always_inline void group_begin(struct group *group, block before, unsigned int left)
{
	*group = (struct group){{{0, 0}, {0, 0}, {0, 0}}, before, left};
}

static __always_inline void group_add(const struct qre_gcm *gcm, struct group *group, block value)
{
	add_product(&group->sum, reversed(value) ^ group->before, load(gcm->powers[--group->left]));
	group->before = (block){0, 0};
}

/* MANY blocks of @at; with @copies, they go to @copy besides. */
static __always_inline block hash_many(const struct qre_gcm *gcm, block before, const u8 *at,
				       u8 *copy, const bool copies)
{
	struct group group;
	unsigned int i;

	group_begin(&group, before, MANY);
#pragma GCC unroll 8
	for (i = 0; i < MANY; i++) {
		block value = load(at + i * BLOCK);

		if (copies)
			store(copy + i * BLOCK, value);
		group_add(gcm, &group, value);
	}
	return reduced(&group.sum);
}

static __always_inline block hash_header(const struct qre_gcm *gcm, const u8 *at, size_t size)
{
	block hash = {0, 0};
	struct group group;

	while (size) {
		size_t part = size < MANY * BLOCK ? size : MANY * BLOCK;

		size -= part;
		group_begin(&group, hash, (part + BLOCK - 1) / BLOCK);
		for (; part >= BLOCK; at += BLOCK, part -= BLOCK)
			group_add(gcm, &group, load(at));
		if (part)
			group_add(gcm, &group, load_part(at, part));
		hash = reduced(&group.sum);
	}
	return hash;
}

/* --- both --- */

/* @size bytes of @from to @to; what the tag is: not of a secret, when it is compared with one. */
static __always_inline block crypt(const struct qre_gcm *gcm, const u8 iv[12], const u8 *header,
				   size_t header_size, const u8 *from, size_t size, u8 *to,
				   const bool opens)
{
	block hash = hash_header(gcm, header, header_size);
	block lengths = {(long long)size * 8, (long long)header_size * 8};
	words counter = counter_of(iv, 1);
	block pad = key_stream(&gcm->aes, &counter), sealed, stream;
	u8 part[BLOCK] = {0};
	struct group group;

	for (; size >= MANY * BLOCK; size -= MANY * BLOCK) {
		if (opens) { /* read once: @from may be anybody's memory, who may change it */
			hash = hash_many(gcm, hash, from, to, true);
			crypt_many(&gcm->aes, &counter, to, to);
		} else {
			crypt_many(&gcm->aes, &counter, from, to);
			hash = hash_many(gcm, hash, to, to, false);
		}
		from += MANY * BLOCK;
		to += MANY * BLOCK;
	}
	group_begin(&group, hash, (size + BLOCK - 1) / BLOCK + 1);
	for (; size >= BLOCK; from += BLOCK, to += BLOCK, size -= BLOCK) {
		sealed = load(from);
		stream = sealed ^ key_stream(&gcm->aes, &counter);
		store(to, stream);
		group_add(gcm, &group, opens ? sealed : stream);
	}
	if (size) {
		sealed = load_part(from, size);
		store(part, sealed ^ key_stream(&gcm->aes, &counter));
		memcpy(to, part, size);
		group_add(gcm, &group, opens ? sealed : load_part(part, size));
	}
	group_add(gcm, &group, reversed(lengths));
	return reversed(reduced(&group.sum)) ^ pad;
}

void qre_gcm_seal(const struct qre_gcm *gcm, const u8 iv[12], u8 *packet, size_t header,
		  size_t plain)
{
	u8 *at = packet + header;

	store(at + plain, crypt(gcm, iv, packet, header, at, plain, at, false));
}

bool qre_gcm_open(const struct qre_gcm *gcm, const u8 iv[12], const u8 *header, size_t header_size,
		  const u8 *from, size_t plain, u8 *to)
{
	/* Before anything is written: @to may be @from. */
	block given = load(from + plain);
	block wrong = given ^ crypt(gcm, iv, header, header_size, from, plain, to, true);

	return !(wrong[0] | wrong[1]);
}

#endif
