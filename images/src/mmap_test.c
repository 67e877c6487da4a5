// SPDX-License-Identifier: GPL-2.0-only
/*
 * mmap_test - tasks that together map more than memory and touch it, page by page
 *
 *	mmap_test MODE TASKS MILLISECONDS PAGES SEED
 *
 * After the program of the same name in Shaohua Li's mail of September 2010.
 * Each of TASKS processes, spread evenly over the CPUs, has a window of PAGES
 * pages. In mode `anon` a touch writes to a page of anonymous memory that is
 * not there yet; in mode `file` it reads a page of a mapped sparse file (in
 * /mnt). A page is let go just before its turn comes again, so that every touch
 * is one page fault and the footprint stays at TASKS x PAGES once all windows
 * are full. Before the clock starts, the tasks take the memory that is free: it
 * is short from the first measured touch on.
 *
 * The seed decides where in its window a task starts and when, and what the
 * pages hold.
 *
 * With MEETS=MS,MS,... in the environment, it meets the host that many
 * milliseconds after the clock has started: mark `#tb:meet`, then a stop.
 *
 * Leaves in /run/result: mmap_test (per task: pages, time, faults, a histogram
 * of the touches' latencies), vmstat.before, vmstat.after, and the same of
 * meminfo and the memory pressure.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "meet.h"

#define PAGE 4096
#define CHUNK 64		/* pages let go at a time */
#define FILLED (PAGE / 4)	/* bytes of a page that do not compress */
#define PHASE_NS 20000000	/* tasks start within 20 ms of each other */

/*
 * Log-linear, as in HdrHistogram: values up to 255 ns have a bucket each, and
 * from there every octave has 128, so that a bucket is at most 0.8 % wide.
 */
#define SUB 128
#define BUCKETS (34 * SUB + SUB)

struct task {
	pid_t pid;
	int status;
	uint64_t pages, start_ns, ns, max_ns, minor, major;
	uint32_t histogram[BUCKETS];
};

struct options {
	int file;
	int tasks;
	uint64_t ns;
	size_t pages, filled;
	uint64_t seed;
};

static void die(const char *what)
{
	fprintf(stderr, "mmap_test: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* splitmix64 (Steele, Lea, Flood 2014): any seed is a good one. */
static uint64_t next(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

static unsigned int bucket(uint64_t ns)
{
	int shift = ns < SUB ? 0 : 63 - __builtin_clzll(ns) - 7;
	uint64_t index = (uint64_t)shift * SUB + (ns >> shift);

	return index < BUCKETS ? index : BUCKETS - 1;
}

/* A quarter of the page is noise, so that it compresses about as data does. */
static void fill(char *page, uint64_t *random)
{
	for (size_t i = 0; i < FILLED; i += 8)
		*(uint64_t *)(page + i) = next(random);
}

static char *map_window(const struct options *o, int index)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS, prot = PROT_READ | PROT_WRITE;
	int fd = -1;

	if (o->file) {
		char path[32];

		snprintf(path, sizeof(path), "/mnt/%d", index);
		fd = open(path, O_RDWR | O_CREAT, 0600);
		if (fd < 0 || ftruncate(fd, o->pages * PAGE))
			die(path);
		flags = MAP_SHARED;
		prot = PROT_READ;
	}
	char *window = mmap(NULL, o->pages * PAGE, prot, flags, fd, 0);

	if (window == MAP_FAILED)
		die("mmap");
	return window;
}

static void touch(const struct options *o, char *page)
{
	if (o->file)
		(void)*(volatile char *)page;
	else
		*(volatile char *)page = 1;
}

/* The page after @at, round and round; its chunk is let go when entered. */
static size_t advance(const struct options *o, char *window, size_t at)
{
	at = at + 1 == o->pages ? 0 : at + 1;
	if (at % CHUNK == 0)
		madvise(window + at * PAGE, CHUNK * PAGE, MADV_DONTNEED);
	return at;
}

static void measure(const struct options *o, struct task *task, char *window,
		    size_t at, uint64_t *random)
{
	struct rusage before, after;
	uint64_t end, began, ended;

	getrusage(RUSAGE_SELF, &before);
	task->start_ns = now();
	end = task->start_ns + o->ns;
	do {
		at = advance(o, window, at);
		char *page = window + at * PAGE;

		began = now();
		touch(o, page);
		ended = now();
		if (!o->file)
			fill(page, random);

		uint64_t took = ended - began;

		task->histogram[bucket(took)]++;
		if (took > task->max_ns)
			task->max_ns = took;
		task->pages++;
	} while (ended < end);
	task->ns = ended - task->start_ns;
	getrusage(RUSAGE_SELF, &after);
	task->minor = after.ru_minflt - before.ru_minflt;
	task->major = after.ru_majflt - before.ru_majflt;
}

static void set_oom_score(const char *score)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY);

	if (fd < 0 || write(fd, score, strlen(score)) < 0)
		die("oom_score_adj");
	close(fd);
}

/* Spread over the CPUs evenly and for good, as will-it-scale does. */
static void pin(int index)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(index % sysconf(_SC_NPROCESSORS_ONLN), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		die("sched_setaffinity");
}

static void be_task(const struct options *o, struct task *task, int index,
		    int ready, int go)
{
	uint64_t random = o->seed * 0x10001 + index;
	char *window = map_window(o, index);
	char byte = 0;

	pin(index);
	set_oom_score("0");
	/* At the last page of a chunk, so that the first touch lets one go. */
	size_t at = next(&random) % (o->pages / CHUNK) * CHUNK + CHUNK - 1;
	struct timespec phase = { .tv_nsec = next(&random) % PHASE_NS };

	for (size_t i = 0; i < o->filled; i++) {
		at = at + 1 == o->pages ? 0 : at + 1;
		touch(o, window + at * PAGE);
		if (!o->file)
			fill(window + at * PAGE, &random);
	}
	if (write(ready, &byte, 1) != 1)
		die("pipe");
	close(ready);
	if (read(go, &byte, 1) != 0)
		die("pipe");
	nanosleep(&phase, NULL);
	measure(o, task, window, at, &random);
	_exit(0);
}

/* What the system has counted, read in one go; written when all is over. */
static const char *const watched[] = { "vmstat", "meminfo", "pressure/memory" };
#define WATCHED (sizeof(watched) / sizeof(*watched))
#define TEXT 16384
static char (*text)[WATCHED][TEXT];

static void snapshot(int when)
{
	char path[64];

	for (size_t i = 0; i < WATCHED; i++) {
		snprintf(path, sizeof(path), "/proc/%s", watched[i]);
		int fd = open(path, O_RDONLY);
		ssize_t got, length = 0;

		while (fd >= 0 && (got = read(fd, text[when][i] + length,
					      TEXT - 1 - length)) > 0)
			length += got;
		close(fd);
	}
}

#define TALLY "instances/tally/tracing_on"

/* Only what happens between the snapshots is to be in the trace, and be tallied. */
static void write_trace(const char *file, const char *value, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/kernel/tracing/%s", file);
	int fd = open(path, O_WRONLY | flags);

	if (fd < 0)
		return;
	if (write(fd, value, strlen(value)) < 0)
		die(path);
	close(fd);
}

/* What the host has to do at these times, it does while everything stands still. */
static void keep_appointments(const char *meets)
{
	static const char mark[] = "\n#tb:meet\n";
	uint64_t start = now();
	int console = open("/dev/console", O_WRONLY | O_NOCTTY);

	while (meets && *meets) {
		char *rest;
		uint64_t at = start + strtoull(meets, &rest, 10) * 1000000;
		struct timespec t = { at / 1000000000, at % 1000000000 };

		if (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL))
			die("clock_nanosleep");
		if (write(console, mark, sizeof(mark) - 1) < 0 || tcdrain(console))
			die("/dev/console");
		meet();
		meets = *rest ? rest + 1 : rest;
	}
	close(console);
}

/* As much of a window as there is memory for. */
static size_t share(const struct options *o)
{
	struct sysinfo info;

	if (sysinfo(&info))
		die("sysinfo");
	size_t pages = info.freeram / PAGE / o->tasks;

	return pages < o->pages ? pages : o->pages;
}

static FILE *result(const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "/run/result/%s", name);
	FILE *file = fopen(path, "w");

	if (!file)
		die(path);
	return file;
}

static void write_snapshots(void)
{
	static const char *const suffix[] = { "before", "after" };
	char name[64];

	for (int when = 0; when < 2; when++)
		for (size_t i = 0; i < WATCHED; i++) {
			const char *slash = strrchr(watched[i], '/');

			snprintf(name, sizeof(name), "%s.%s",
				 slash ? "pressure" : watched[i], suffix[when]);
			FILE *file = result(name);

			fputs(text[when][i], file);
			fclose(file);
		}
}

static void write_tasks(const struct options *o, const struct task *tasks)
{
	FILE *out = result("mmap_test");

	fprintf(out, "{\"mode\": \"%s\", \"seed\": %" PRIu64 ", \"pages_per_task\": %zu, \"tasks\": [",
		o->file ? "file" : "anon", o->seed, o->pages);
	for (int i = 0; i < o->tasks; i++) {
		const struct task *t = &tasks[i];
		const char *comma = "";

		fprintf(out, "%s\n{\"pid\": %d, \"signal\": %d, \"pages\": %" PRIu64
			", \"ns\": %" PRIu64 ", \"max_ns\": %" PRIu64
			", \"minor_faults\": %" PRIu64 ", \"major_faults\": %" PRIu64
			", \"histogram\": [",
			i ? "," : "", t->pid,
			WIFSIGNALED(t->status) ? WTERMSIG(t->status) : 0,
			t->pages, t->ns, t->max_ns, t->minor, t->major);
		for (int b = 0; b < BUCKETS; b++)
			if (t->histogram[b]) {
				fprintf(out, "%s[%d,%" PRIu32 "]", comma, b,
					t->histogram[b]);
				comma = ",";
			}
		fprintf(out, "]}");
	}
	fprintf(out, "]}\n");
	fclose(out);
}

/* Memory that is shared with the tasks and stays in place under pressure. */
static void *locked(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED || mlock(memory, size))
		die("mlock");
	return memory;
}

static void parse(struct options *o, int argc, char **argv)
{
	if (argc != 6) {
		fprintf(stderr, "usage: mmap_test anon|file TASKS MILLISECONDS PAGES SEED\n");
		exit(2);
	}
	o->file = !strcmp(argv[1], "file");
	o->tasks = atoi(argv[2]);
	o->ns = strtoull(argv[3], NULL, 10) * 1000000;
	o->pages = strtoull(argv[4], NULL, 10);
	o->seed = strtoull(argv[5], NULL, 10);
	if (o->tasks < 1 || !o->ns || !o->pages || o->pages % CHUNK) {
		fprintf(stderr, "mmap_test: PAGES is a multiple of %d\n", CHUNK);
		exit(2);
	}
}

int main(int argc, char **argv)
{
	struct options o;
	int ready[2], go[2], running, failed = 0;
	char byte;

	parse(&o, argc, argv);
	struct task *tasks = locked(o.tasks * sizeof(*tasks));

	text = locked(2 * sizeof(*text));
	/* The measuring must not be swapped out with what it measures. */
	if (mlockall(MCL_CURRENT) || pipe(ready) || pipe(go))
		die("setup");
	o.filled = share(&o);
	for (int i = 0; i < o.tasks; i++) {
		pid_t pid = fork();

		if (pid < 0)
			die("fork");
		if (!pid) {
			close(ready[0]);
			close(go[1]);
			if (mlockall(MCL_CURRENT))
				die("mlockall");
			be_task(&o, &tasks[i], i, ready[1], go[0]);
		}
		tasks[i].pid = pid;
	}
	/* End of file comes when all tasks have answered or are dead. */
	close(ready[1]);
	for (running = 0; running < o.tasks && read(ready[0], &byte, 1) == 1;)
		running++;
	write_trace("trace", "", O_TRUNC);
	write_trace(TALLY, "1", 0);
	snapshot(0);
	close(go[1]);
	keep_appointments(getenv("MEETS"));
	for (int i = 0; i < o.tasks; i++)
		waitpid(tasks[i].pid, &tasks[i].status, 0);
	for (int i = 0; i < o.tasks; i++)
		failed |= tasks[i].status;
	snapshot(1);
	write_trace(TALLY, "0", 0);
	write_trace("tracing_on", "0", 0);
	write_snapshots();
	write_tasks(&o, tasks);
	return !!failed;
}
