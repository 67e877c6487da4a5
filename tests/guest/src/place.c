// SPDX-License-Identifier: GPL-2.0-only
/*
 * place - look where pages are that tasks were given while memory was short
 *
 *	place bind|cpuset TASKS PAGES SECONDS
 *
 * Two nodes. With `bind` every task has a window of PAGES pages that is bound to
 * one of them; with `cpuset` all are in a cpuset whose one node changes all the
 * time. A task touches a chunk of pages that are not there yet, asks where they
 * are now, and lets go of those that are next.
 *
 * It goes on for SECONDS, and until a good number of pages was looked at. The
 * cpuset changes only when some were since it did: a busy host is slow.
 *
 * Prints how many pages were looked at (`seen`), how many were out already
 * (`gone`), and how many were on a node that was forbidden (`wrong`).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define CHUNK 64
#define ENOUGH 6000

static struct shared {
	/* Odd while the cpuset changes; half of it, rounded down, picks the node. */
	atomic_ulong round;
	atomic_ulong seen, gone, wrong;
	atomic_int over;
} *shared;

static void die(const char *what)
{
	fprintf(stderr, "place: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void put(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, value, strlen(value)) < 0)
		die(path);
	close(fd);
}

static int node_of(unsigned long round)
{
	return round / 2 % 2;
}

static void look(char *chunk, int node, unsigned long round)
{
	void *pages[CHUNK];
	int status[CHUNK];
	unsigned long seen = 0, wrong = 0;

	for (int i = 0; i < CHUNK; i++) {
		pages[i] = chunk + i * PAGE;
		*(volatile unsigned long *)pages[i] = round * 0x9e3779b97f4a7c15ul + i;
	}
	if (syscall(SYS_move_pages, 0, CHUNK, pages, NULL, status, 0))
		die("move_pages");
	/* What changed in between allows both nodes. */
	if (round != atomic_load(&shared->round))
		return;
	for (int i = 0; i < CHUNK; i++) {
		seen += status[i] >= 0;
		wrong += status[i] >= 0 && status[i] != node;
	}
	atomic_fetch_add(&shared->seen, seen);
	atomic_fetch_add(&shared->gone, CHUNK - seen);
	atomic_fetch_add(&shared->wrong, wrong);
}

static void be_task(int bound, int index, size_t pages)
{
	char *window = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned long mask = 1ul << index % 2;

	if (window == MAP_FAILED)
		die("mmap");
	if (bound && syscall(SYS_mbind, window, pages * PAGE, MPOL_BIND, &mask, 8, 0))
		die("mbind");
	for (size_t at = 0; !atomic_load(&shared->over); at = (at + CHUNK) % pages) {
		unsigned long round = atomic_load(&shared->round);

		if (round % 2) {
			sched_yield();
			continue;
		}
		madvise(window + at * PAGE, CHUNK * PAGE, MADV_DONTNEED);
		look(window + at * PAGE, bound ? index % 2 : node_of(round), round);
	}
	_exit(0);
}

static void enter_cpuset(void)
{
	char pid[16], cpus[32];

	snprintf(pid, sizeof(pid), "%d", getpid());
	snprintf(cpus, sizeof(cpus), "0-%ld", sysconf(_SC_NPROCESSORS_ONLN) - 1);
	mkdir("/run/cpuset", 0700);
	/* It stays until the next time. */
	if (mount("cpuset", "/run/cpuset", "cgroup", 0, "cpuset") && errno != EBUSY)
		die("mount");
	mkdir("/run/cpuset/it", 0700);
	put("/run/cpuset/it/cpuset.cpus", cpus);
	put("/run/cpuset/it/cpuset.mems", "0");
	put("/run/cpuset/it/tasks", pid);
}

int main(int argc, char **argv)
{
	if (argc != 5) {
		fprintf(stderr, "usage: place bind|cpuset TASKS PAGES SECONDS\n");
		return 2;
	}
	int bound = !strcmp(argv[1], "bind"), tasks = atoi(argv[2]), failed = 0;
	size_t pages = strtoul(argv[3], NULL, 10) / CHUNK * CHUNK;
	time_t end = time(NULL) + atoi(argv[4]);

	shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || mlock(shared, PAGE))
		die("mmap");
	if (!bound)
		enter_cpuset();
	for (int i = 0; i < tasks; i++)
		if (!fork())
			be_task(bound, i, pages);
	for (unsigned long seen = 0; time(NULL) < end || shared->seen < ENOUGH;) {
		struct timespec pause = { .tv_nsec = 100000000 };

		nanosleep(&pause, NULL);
		if (bound || seen == shared->seen)
			continue;
		seen = shared->seen;
		unsigned long round = atomic_fetch_add(&shared->round, 1) + 2;

		put("/run/cpuset/it/cpuset.mems", node_of(round) ? "1" : "0");
		atomic_fetch_add(&shared->round, 1);
	}
	atomic_store(&shared->over, 1);
	for (int status; wait(&status) > 0;)
		failed |= status;
	printf("seen %lu\ngone %lu\nwrong %lu\n", shared->seen, shared->gone, shared->wrong);
	return !!failed;
}
