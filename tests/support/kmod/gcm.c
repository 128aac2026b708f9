// SPDX-License-Identifier: GPL-2.0-only
/*
 * kmod/gcm.c behind a pipe: a request a line on standard input, its answer a line on standard
 * output. "seal KEY IV HEADER PLAIN" is answered with ciphertext and tag, "open KEY IV HEADER
 * SEALED" and "in-place" of the same with plaintext, or "!" when it is not authentic; "block KEY
 * BLOCK" with its encryption. Bytes are hexadecimal, "-" is none. Every input and output lies in an
 * allocation of just its size, so that the address sanitizer sees a single byte too many.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gcm.h"

#define TAG 16

static u8 *room(size_t size)
{
	u8 *allocated = malloc(size);

	if (!allocated && size)
		exit(4);
	return allocated;
}

static u8 *bytes(size_t *size)
{
	const char *text = strtok(NULL, " \n");
	unsigned int byte;
	u8 *read;
	size_t i;

	if (!text)
		exit(3);
	*size = *text == '-' ? 0 : strlen(text) / 2;
	read = room(*size);
	for (i = 0; i < *size; i++) {
		if (sscanf(text + 2 * i, "%2x", &byte) != 1)
			exit(3);
		read[i] = byte;
	}
	return read;
}

static void say(const u8 *at, size_t size)
{
	size_t i;

	for (i = 0; i < size; i++)
		printf("%02x", at[i]);
	puts(size ? "" : "-");
}

static void seal(const struct qre_gcm *gcm, const u8 *iv, const u8 *header, size_t header_size,
		 const u8 *plain, size_t size)
{
	u8 *packet = room(header_size + size + TAG);

	memcpy(packet, header, header_size);
	memcpy(packet + header_size, plain, size);
	qre_gcm_seal(gcm, iv, packet, header_size, size);
	if (memcmp(packet, header, header_size))
		exit(5);
	say(packet + header_size, size + TAG);
	free(packet);
}

static void open_sealed(const struct qre_gcm *gcm, const u8 *iv, const u8 *header,
			size_t header_size, u8 *sealed, size_t size, bool in_place)
{
	u8 *to = in_place ? sealed : room(size - TAG);

	if (qre_gcm_open(gcm, iv, header, header_size, sealed, size - TAG, to))
		say(to, size - TAG);
	else
		puts("!");
	if (!in_place)
		free(to);
}

static void answer(const char *what)
{
	size_t key_size, iv_size, header_size, size;
	u8 *key = bytes(&key_size), *iv = bytes(&iv_size), *header, *content;
	struct qre_gcm gcm;

	if (key_size != 16)
		exit(3);
	qre_gcm_init(&gcm, key);
	if (!strcmp(what, "block")) {
		if (iv_size != 16)
			exit(3);
		qre_aes_block(&gcm.aes, iv, iv);
		say(iv, iv_size);
	} else {
		header = bytes(&header_size);
		content = bytes(&size);
		if (iv_size != 12)
			exit(3);
		if (!strcmp(what, "seal"))
			seal(&gcm, iv, header, header_size, content, size);
		else if (size >= TAG)
			open_sealed(&gcm, iv, header, header_size, content, size,
				    !strcmp(what, "in-place"));
		else
			exit(3);
		free(header);
		free(content);
	}
	free(key);
	free(iv);
}

int main(void)
{
	static char line[1 << 16];
	char *what;

	while (fgets(line, sizeof(line), stdin)) {
		what = strtok(line, " \n");
		if (!what)
			exit(3);
		answer(what);
		fflush(stdout);
	}
	return 0;
}
