/* SPDX-License-Identifier: GPL-2.0-only */
/* Choices that are the same for the same seed, and the time. */
#ifndef CHOICE_H
#define CHOICE_H

#include <stdint.h>
#include <time.h>

static uint64_t state; /* of the generator */

static inline uint64_t mixed(uint64_t *word)
{
	uint64_t z = (*word += 0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static inline unsigned int below(unsigned int limit)
{
	return mixed(&state) % limit;
}

static inline double now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec + at.tv_nsec / 1e9;
}

#endif
