// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "load.h"

#define FILLED (PAGE / 4)	/* bytes of a page that do not compress */
#define MAX_FACTS 8

static struct {
	struct task *tasks;
	int number, started;
	int ready, go;			/* the tasks' ends of the two pipes */
	int all_ready, gate;		/* ours */
	int observer_ready, observer_go;	/* -1 without an observer */
	uint64_t *clock;		/* when the observer's clock started */
	uint64_t starts[MAX_PHASES];	/* of phases, ns after the clock's */
	int phases;
	struct rusage before;
	int phase;
	struct { const char *name; uint64_t value; } facts[MAX_FACTS];
	int known;
} crowd = { .observer_ready = -1, .observer_go = -1, .phases = 1 };

void die(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
	exit(1);
}

/* splitmix64 (Steele, Lea, Flood 2014): any seed is a good one. */
uint64_t next(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

unsigned int bucket(uint64_t ns)
{
	int shift = ns < SUB ? 0 : 63 - __builtin_clzll(ns) - 7;
	uint64_t index = (uint64_t)shift * SUB + (ns >> shift);

	return index < BUCKETS ? index : BUCKETS - 1;
}

FILE *result(const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "/run/result/%s", name);
	FILE *file = fopen(path, "w");

	if (!file)
		die(path);
	return file;
}

/* Memory that is shared with the tasks and stays in place under pressure. */
void *locked(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED || mlock(memory, size))
		die("mlock");
	return memory;
}

void print_histogram(FILE *out, const uint32_t *histogram)
{
	const char *comma = "";

	fprintf(out, "[");
	for (int b = 0; b < BUCKETS; b++)
		if (histogram[b]) {
			fprintf(out, "%s[%d,%" PRIu32 "]", comma, b, histogram[b]);
			comma = ",";
		}
	fprintf(out, "]");
}

static const struct word *find_word(const struct word *words, const char *given, size_t length)
{
	for (; words->key; words++)
		if (strlen(words->key) == length && !strncmp(words->key, given, length))
			return words;
	return NULL;
}

void read_words(int argc, char **argv, const struct word *words)
{
	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '='), *end = NULL;
		const struct word *word = value ? find_word(words, argv[i], value - argv[i]) : NULL;

		if (word && word->text)
			*word->text = value + 1;
		else if (word)
			*word->number = strtoull(value + 1, &end, 10);
		if (!word || (end && (end == value + 1 || *end))) {
			fprintf(stderr, "%s: %s?\n", program_invocation_short_name, argv[i]);
			exit(2);
		}
	}
}

void require(int so, const char *what)
{
	if (so)
		return;
	fprintf(stderr, "%s: needs %s\n", program_invocation_short_name, what);
	exit(2);
}

static int descriptor(const char *name)
{
	const char *value = getenv(name);

	return value ? atoi(value) : -1;
}

/* PHASES=NAME=MS,NAME=MS,...: only the times matter here. */
static void read_phases(const char *text)
{
	while (text && (text = strchr(text, '=')) && crowd.phases <= MAX_PHASES) {
		crowd.starts[crowd.phases - 1] = strtoull(text + 1, NULL, 10) * 1000000;
		text = strchr(text, ',');
		crowd.phases += !!text;
	}
}

void recruit(int number)
{
	int ready[2], go[2];

	read_phases(getenv("PHASES"));
	crowd.number = number;
	crowd.tasks = locked(number * sizeof(*crowd.tasks));
	uint32_t *histograms = locked((size_t)number * crowd.phases * BUCKETS * sizeof(uint32_t));

	for (int i = 0; i < number; i++)
		crowd.tasks[i].histogram = histograms + (size_t)i * crowd.phases * BUCKETS;
	crowd.observer_ready = descriptor("READY_FD");
	crowd.observer_go = descriptor("GO_FD");
	if (crowd.observer_go >= 0) {
		crowd.clock = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, descriptor("CLOCK_FD"), 0);
		if (crowd.clock == MAP_FAILED)
			die("CLOCK_FD");
	}
	/* The measuring must not be swapped out with what it measures. */
	if (mlockall(MCL_CURRENT) || pipe2(ready, O_CLOEXEC) || pipe2(go, O_CLOEXEC))
		die("setup");
	crowd.all_ready = ready[0];
	crowd.ready = ready[1];
	crowd.go = go[0];
	crowd.gate = go[1];
}

static void set_oom_score(const char *score)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY);

	if (fd < 0 || write(fd, score, strlen(score)) < 0)
		die("oom_score_adj");
	close(fd);
}

/* Spread over the CPUs evenly and for good, as will-it-scale does. */
void pin(int cpu)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu % sysconf(_SC_NPROCESSORS_ONLN), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		die("sched_setaffinity");
}

uint64_t task_seed(uint64_t seed, const struct task *task)
{
	return seed * 0x10001 + (task - crowd.tasks);
}

void start(const char *group, int cpu, void (*function)(struct task *task), int index)
{
	struct task *task = &crowd.tasks[crowd.started++];

	/* Before it runs: it looks at them. */
	task->group = group;
	task->index = index;
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (!pid) {
		close(crowd.all_ready);
		close(crowd.gate);
		if (crowd.observer_go >= 0) {
			close(crowd.observer_ready);
			close(crowd.observer_go);
		}
		if (mlockall(MCL_CURRENT))
			die("mlockall");
		pin(cpu);
		set_oom_score("0");
		function(task);
		struct rusage after;

		getrusage(RUSAGE_SELF, &after);
		task->minor = after.ru_minflt - crowd.before.ru_minflt;
		task->major = after.ru_majflt - crowd.before.ru_majflt;
		_exit(0);
	}
	task->pid = pid;
}

void wait_for_go(struct task *task, uint64_t phase)
{
	struct timespec pause = { phase / 1000000000, phase % 1000000000 };
	char byte = 0;

	if (write(crowd.ready, &byte, 1) != 1)
		die("pipe");
	close(crowd.ready);
	if (read(crowd.go, &byte, 1) != 0)
		die("pipe");
	/* From the clock's start on, so that phases are the same for all. */
	for (int i = 0; i < crowd.phases; i++)
		crowd.starts[i] += crowd.clock ? *crowd.clock : now();
	nanosleep(&pause, NULL);
	getrusage(RUSAGE_SELF, &crowd.before);
	task->start_ns = now();
}

uint64_t note(struct task *task, uint64_t began, uint64_t ended)
{
	uint64_t took = ended - began;

	while (crowd.phase + 1 < crowd.phases && began >= crowd.starts[crowd.phase + 1])
		crowd.phase++;
	task->histogram[crowd.phase * BUCKETS + bucket(took)]++;
	if (took > task->max_ns)
		task->max_ns = took;
	task->ops++;
	return task->ns = ended - task->start_ns;
}

void fact(const char *name, uint64_t value)
{
	crowd.facts[crowd.known].name = name;
	crowd.facts[crowd.known++].value = value;
}

static void print_task(FILE *out, struct task *task)
{
	fprintf(out, "{\"group\": \"%s\", \"pid\": %d, \"signal\": %d, \"status\": %d, \"ops\": %" PRIu64
		", \"ns\": %" PRIu64 ", \"max_ns\": %" PRIu64 ", \"minor_faults\": %" PRIu64
		", \"major_faults\": %" PRIu64 ", \"histogram\": ",
		task->group, task->pid, WIFSIGNALED(task->status) ? WTERMSIG(task->status) : 0,
		WIFEXITED(task->status) ? WEXITSTATUS(task->status) : 0,
		task->ops, task->ns, task->max_ns, task->minor, task->major);
	if (crowd.phases > 1) {
		static uint32_t all[BUCKETS];

		memset(all, 0, sizeof(all));
		for (int i = 0; i < crowd.phases * BUCKETS; i++)
			all[i % BUCKETS] += task->histogram[i];
		print_histogram(out, all);
		for (int phase = 0; phase < crowd.phases; phase++) {
			fprintf(out, phase ? "," : ", \"phases\": [");
			print_histogram(out, task->histogram + phase * BUCKETS);
		}
		fprintf(out, "]}");
	} else {
		print_histogram(out, task->histogram);
		fprintf(out, "}");
	}
}

static void print_results(const char *workload, uint64_t seed)
{
	FILE *out = result("tasks");

	fprintf(out, "{\"workload\": \"%s\", \"seed\": %" PRIu64 ", \"clock_ns\": %" PRIu64 ", \"facts\": {",
		workload, seed, crowd.clock ? *crowd.clock : 0);
	for (int i = 0; i < crowd.known; i++)
		fprintf(out, "%s\"%s\": %" PRIu64, i ? ", " : "", crowd.facts[i].name, crowd.facts[i].value);
	fprintf(out, "}, \"tasks\": [");
	for (int i = 0; i < crowd.number; i++) {
		fprintf(out, i ? ",\n" : "\n");
		print_task(out, &crowd.tasks[i]);
	}
	fprintf(out, "]}\n");
	fclose(out);
}

void run_tasks(void)
{
	int running = 0;
	char byte = 0;

	/* End of file comes when all tasks have answered or are dead. */
	close(crowd.ready);
	while (running < crowd.number && read(crowd.all_ready, &byte, 1) == 1)
		running++;
	if (crowd.observer_go >= 0) {
		if (write(crowd.observer_ready, &byte, 1) != 1 || read(crowd.observer_go, &byte, 1) != 0)
			die("observer");
	}
	close(crowd.gate);
	for (int i = 0; i < crowd.number; i++)
		waitpid(crowd.tasks[i].pid, &crowd.tasks[i].status, 0);
}

int finish(const char *workload, uint64_t seed)
{
	int failed = 0;

	for (int i = 0; i < crowd.number; i++)
		failed |= crowd.tasks[i].status;
	print_results(workload, seed);
	return !!failed;
}

void fill(char *page, uint64_t *random)
{
	/* A copy, since for all the compiler knows the page has the original. */
	uint64_t state = *random;

	for (size_t i = 0; i < FILLED; i += 8)
		*(uint64_t *)(page + i) = next(&state);
	*random = state;
}

char *anonymous(size_t pages)
{
	char *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		die("mmap");
	return memory;
}

size_t next_page(char *window, size_t window_pages, size_t at)
{
	at = at + 1 == window_pages ? 0 : at + 1;
	if (at % CHUNK == 0)
		madvise(window + at * PAGE, CHUNK * PAGE, MADV_DONTNEED);
	return at;
}

int sparse_file(int index, size_t pages)
{
	char path[32];

	snprintf(path, sizeof(path), "/mnt/%d", index);
	int fd = open(path, O_RDWR | O_CREAT, 0600);

	if (fd < 0 || ftruncate(fd, pages * PAGE))
		die(path);
	return fd;
}

size_t free_share(int tasks)
{
	struct sysinfo info;

	if (sysinfo(&info))
		die("sysinfo");
	return info.freeram / PAGE / tasks;
}
