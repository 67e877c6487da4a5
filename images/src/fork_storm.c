// SPDX-License-Identifier: GPL-2.0-only
/*
 * fork_storm - tasks that fork children, one after the other, while memory is short
 *
 *	fork_storm tasks=N pages=N held=N ms=N seed=N
 *
 * Each task, spread evenly over the CPUs, has PAGES pages of anonymous memory
 * and forks a child that writes PAGES pages: half of them its parent's, which
 * costs a copy each (copy on write), the other half fresh. Then it exits. An
 * operation is all that, from fork() to the end of waitpid().
 *
 * Children give back what they took. So that memory stays short, a task also
 * touches, after each child, as many pages of a window of HELD pages as the
 * child wrote, round and round as in mmap_test; children do not inherit the
 * window. Before the clock starts, the windows take the memory that is free.
 *
 * What fork needs and cannot do without are page tables, kernel stacks and other
 * slab objects: allocations that are not movable, and some of a higher order.
 *
 * Signature: for each operation PAGES page faults of the child and PAGES of
 * its parent (pgfault), allocstall_*, pswpout. The seed decides where in its
 * window a task starts and when, and what pages hold.
 */
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "load.h"

#define PHASE_NS 20000000	/* tasks start within 20 ms of each other */

static uint64_t tasks = 1, ms = 1000, pages = CHUNK, held = CHUNK, seed = 1;
static size_t filled;

static void touch(char *memory, size_t number)
{
	for (size_t i = 0; i < number; i++)
		*(volatile char *)(memory + i * PAGE) = 1;
}

static void be_child(char *inherited)
{
	size_t copied = pages / 2;

	touch(inherited, copied);
	touch(anonymous(pages - copied), pages - copied);
	_exit(0);
}

static void be_parent(struct task *task)
{
	uint64_t random = task_seed(seed, task), phase = next(&random) % PHASE_NS, began;
	char *own = anonymous(pages), *window = anonymous(held);
	/* At the last page of a chunk, so that the first touch lets one go. */
	size_t at = next(&random) % (held / CHUNK) * CHUNK + CHUNK - 1;
	int status;

	madvise(window, held * PAGE, MADV_DONTFORK);
	for (size_t i = 0; i < filled; i++) {
		at = at + 1 == held ? 0 : at + 1;
		fill(window + at * PAGE, &random);
	}
	for (size_t i = 0; i < pages; i++)
		fill(own + i * PAGE, &random);
	wait_for_go(task, phase);
	do {
		for (size_t i = 0; i < pages; i++) {
			at = next_page(window, held, at);
			fill(window + at * PAGE, &random);
		}
		began = now();
		pid_t child = fork();

		if (!child)
			be_child(own);
		if (child < 0 || waitpid(child, &status, 0) != child)
			die("fork");
		/* It may have been killed for memory: the kernel has said so. */
		if (status)
			die("child");
	} while (note(task, began, now()) < ms * 1000000);
}

int main(int argc, char **argv)
{
	const struct word words[] = {
		{ "tasks", &tasks, NULL }, { "pages", &pages, NULL }, { "held", &held, NULL },
		{ "ms", &ms, NULL }, { "seed", &seed, NULL }, {}
	};

	read_words(argc, argv, words);
	require(tasks && ms && pages, "tasks, ms and pages");
	require(held && held % CHUNK == 0, "held pages that are a multiple of 64");
	recruit(tasks);
	filled = free_share(tasks);
	if (filled > held)
		filled = held;
	for (uint64_t i = 0; i < tasks; i++)
		start("main", i, be_parent, i);
	fact("pages_per_child", pages);
	fact("held_per_task", held);
	run_tasks();
	return finish("fork_storm", seed);
}
