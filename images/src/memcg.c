// SPDX-License-Identifier: GPL-2.0-only
/*
 * memcg - a group of tasks over its own limit beside one without a limit
 *
 *	memcg tasks=N pages=N limit=BYTES ms=N seed=N
 *
 * Two groups (cgroup v2) of TASKS tasks each, spread evenly over the CPUs. All
 * touch anonymous memory round and round, as in mmap_test: an operation is one
 * touch, a page fault. The windows of group `limited`, PAGES pages a task, are
 * together larger than its memory.max, LIMIT; those of group `unlimited` have
 * 64 pages, and it has no limit. Before the clock starts, the first group is
 * filled up to its limit. The machine has memory left: nobody but the limited
 * group has to reclaim, and from nobody but itself. Its latencies say what the
 * limit costs, the other group's what that costs its neighbours.
 *
 * Signature: pswpout, pgscan_anon and pgsteal_anon, but nothing in allocstall_*,
 * pgscan_direct and pgscan_kswapd, which count reclaim for the machine as a
 * whole (of 6.1). The fact `limit_hits` is memory.events' `max`, how often the
 * limit was met, filling included. The seed decides where in its window a
 * task starts and when, and what pages hold.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "load.h"

#define PHASE_NS 20000000	/* tasks start within 20 ms of each other */
#define CGROUP "/run/cgroup/"

static uint64_t tasks = 1, ms = 1000, pages = CHUNK, limit = 1 << 20, seed = 1;

static void write_to(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

static void make_groups(void)
{
	char bytes[24];

	mkdir(CGROUP, 0755);
	if (mount("cgroup2", CGROUP, "cgroup2", 0, NULL))
		die("cgroup2");
	write_to(CGROUP "cgroup.subtree_control", "+memory");
	if (mkdir(CGROUP "limited", 0755) || mkdir(CGROUP "unlimited", 0755))
		die(CGROUP);
	snprintf(bytes, sizeof(bytes), "%" PRIu64, limit);
	write_to(CGROUP "limited/memory.max", bytes);
}

/* memory.events has lines `NAME NUMBER`. */
static uint64_t limit_hits(void)
{
	FILE *file = fopen(CGROUP "limited/memory.events", "r");
	uint64_t number = 0, hits = 0;
	char name[32];

	if (!file)
		die("memory.events");
	while (fscanf(file, "%31s %" SCNu64, name, &number) == 2)
		if (!strcmp(name, "max"))
			hits = number;
	fclose(file);
	return hits;
}

static void touch_round(struct task *task, size_t window_pages, size_t filled)
{
	uint64_t random = task_seed(seed, task), phase = next(&random) % PHASE_NS, began;
	char *window = anonymous(window_pages);
	/* At the last page of a chunk, so that the first touch lets one go. */
	size_t at = next(&random) % (window_pages / CHUNK) * CHUNK + CHUNK - 1;

	for (size_t i = 0; i < filled; i++) {
		at = at + 1 == window_pages ? 0 : at + 1;
		fill(window + at * PAGE, &random);
	}
	wait_for_go(task, phase);
	do {
		at = next_page(window, window_pages, at);
		began = now();
		*(volatile char *)(window + at * PAGE) = 1;
		uint64_t ended = now();

		fill(window + at * PAGE, &random);
		began = note(task, began, ended);
	} while (began < ms * 1000000);
}

static void be_limited(struct task *task)
{
	size_t share = limit / PAGE / tasks;

	write_to(CGROUP "limited/cgroup.procs", "0");
	touch_round(task, pages, share < pages ? share : pages);
}

static void be_unlimited(struct task *task)
{
	write_to(CGROUP "unlimited/cgroup.procs", "0");
	touch_round(task, CHUNK, CHUNK);
}

int main(int argc, char **argv)
{
	const struct word words[] = {
		{ "tasks", &tasks, NULL }, { "pages", &pages, NULL }, { "limit", &limit, NULL },
		{ "ms", &ms, NULL }, { "seed", &seed, NULL }, {}
	};

	read_words(argc, argv, words);
	require(tasks && ms && limit, "tasks, ms and limit");
	require(pages && pages % CHUNK == 0, "pages that are a multiple of 64");
	make_groups();
	recruit(2 * tasks);
	for (uint64_t i = 0; i < tasks; i++)
		start("limited", i, be_limited, i);
	for (uint64_t i = 0; i < tasks; i++)
		start("unlimited", tasks + i, be_unlimited, i);
	fact("pages_per_task", pages);
	fact("limit", limit);
	run_tasks();
	fact("limit_hits", limit_hits());
	return finish("memcg", seed);
}
