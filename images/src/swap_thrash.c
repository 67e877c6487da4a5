// SPDX-License-Identifier: GPL-2.0-only
/*
 * swap_thrash - tasks that write random pages of a working set which does not quite fit
 *
 *	swap_thrash tasks=N pages=N ms=N seed=N
 *
 * Each task, spread evenly over the CPUs, has PAGES pages of anonymous memory
 * and never lets go of one. An operation is one write to a random page of them.
 * Before the clock starts, every page has been written once, so that what does
 * not fit into memory is in swap.
 *
 * An operation takes nanoseconds where the page is there; where it is not, it
 * waits for it to come back from swap, and for the memory that this takes. So the
 * share of slow ones, and the number of operations, say how much of the working
 * set is in memory; the slow ones' latency what a swapped page costs.
 *
 * Signature: pswpin and pswpout go together, as do major faults, when the
 * working set is larger than memory; next to none of them when it fits. The
 * seed decides which pages are written, when a task starts, and what pages hold.
 */
#include "load.h"

#define PHASE_NS 20000000	/* tasks start within 20 ms of each other */

static uint64_t tasks = 1, ms = 1000, pages = CHUNK, seed = 1;

static void be_task(struct task *task)
{
	uint64_t random = task_seed(seed, task), phase = next(&random) % PHASE_NS, began;
	char *set = anonymous(pages);

	for (size_t i = 0; i < pages; i++)
		fill(set + i * PAGE, &random);
	wait_for_go(task, phase);
	do {
		volatile char *page = set + next(&random) % pages * PAGE;

		began = now();
		*page = 1;
	} while (note(task, began, now()) < ms * 1000000);
}

int main(int argc, char **argv)
{
	const struct word words[] = {
		{ "tasks", &tasks, NULL }, { "pages", &pages, NULL }, { "ms", &ms, NULL },
		{ "seed", &seed, NULL }, {}
	};

	read_words(argc, argv, words);
	require(tasks && ms, "tasks and ms");
	require(pages, "pages");
	recruit(tasks);
	for (uint64_t i = 0; i < tasks; i++)
		start("main", i, be_task, i);
	fact("pages_per_task", pages);
	run_tasks();
	return finish("swap_thrash", seed);
}
