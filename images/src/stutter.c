// SPDX-License-Identifier: GPL-2.0-only
/*
 * stutter - what a little memory costs now and then, while others take all of it
 *
 *	stutter hogs=N pages=N period_us=N ms=N seed=N
 *
 * After the test of the same name in Mel Gorman's mmtests: does a desktop
 * stutter while something big runs? Hogs, spread evenly over the CPUs, touch
 * windows of PAGES pages of anonymous memory round and round, as those of
 * mmap_test do: an operation is one touch, a page fault. The probe sleeps most
 * of the time; every PERIOD_US microseconds it maps 64 KiB, touches its 16
 * pages and lets go of them. An operation of the probe is mapping and touching,
 * so its latencies are what an application that needs a little memory waits
 * for it. Rounds that it misses while it waits are not made up for.
 *
 * Signature: pswpout, allocstall_*; the probe makes one operation per period,
 * unless it waited for longer than that. The seed decides where in its window
 * a hog starts and when, when the probe's periods begin, and what pages hold.
 */
#include <sys/mman.h>
#include <time.h>

#include "load.h"

#define PHASE_NS 20000000	/* tasks start within 20 ms of each other */
#define PROBE 16		/* pages */

static uint64_t hogs = 1, period_us = 5000, ms = 1000, pages = CHUNK, seed = 1;
static size_t filled;

static void be_hog(struct task *task)
{
	uint64_t random = task_seed(seed, task), phase = next(&random) % PHASE_NS, began;
	char *window = anonymous(pages);
	/* At the last page of a chunk, so that the first touch lets one go. */
	size_t at = next(&random) % (pages / CHUNK) * CHUNK + CHUNK - 1;

	for (size_t i = 0; i < filled; i++) {
		at = at + 1 == pages ? 0 : at + 1;
		fill(window + at * PAGE, &random);
	}
	wait_for_go(task, phase);
	do {
		at = next_page(window, pages, at);
		began = now();
		*(volatile char *)(window + at * PAGE) = 1;
		uint64_t ended = now();

		fill(window + at * PAGE, &random);
		began = note(task, began, ended);
	} while (began < ms * 1000000);
}

static void sleep_until(uint64_t ns)
{
	struct timespec due = { ns / 1000000000, ns % 1000000000 };

	if (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL))
		die("clock_nanosleep");
}

static void be_probe(struct task *task)
{
	uint64_t random = task_seed(seed, task), due, began, ended;

	wait_for_go(task, next(&random) % PHASE_NS);
	due = ended = now();
	do {
		while (due <= ended)
			due += period_us * 1000;
		sleep_until(due);
		began = now();
		char *memory = anonymous(PROBE);

		for (int i = 0; i < PROBE; i++)
			*(volatile char *)(memory + i * PAGE) = 1;
		ended = now();
		munmap(memory, PROBE * PAGE);
	} while (note(task, began, ended) < ms * 1000000);
}

int main(int argc, char **argv)
{
	const struct word words[] = {
		{ "hogs", &hogs, NULL }, { "pages", &pages, NULL }, { "period_us", &period_us, NULL },
		{ "ms", &ms, NULL }, { "seed", &seed, NULL }, {}
	};

	read_words(argc, argv, words);
	require(hogs && ms && period_us, "hogs, ms and period_us");
	require(pages && pages % CHUNK == 0, "pages that are a multiple of 64");
	recruit(hogs + 1);
	filled = free_share(hogs);
	if (filled > pages)
		filled = pages;
	for (uint64_t i = 0; i < hogs; i++)
		start("hog", i, be_hog, i);
	start("probe", hogs, be_probe, 0);
	fact("pages_per_task", pages);
	run_tasks();
	return finish("stutter", seed);
}
