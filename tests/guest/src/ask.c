// SPDX-License-Identifier: GPL-2.0-only
/*
 * ask - make a kernel's test requests for as long as a program runs
 *
 *	ask REQUEST PROGRAM [ARG...]
 *
 * Writes REQUEST to reclaim_capture/request in debugfs over and over, and prints
 * the sums of what reclaim_capture/result said each time. The program's exit
 * status is its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define HOME "/sys/kernel/debug/reclaim_capture/"
#define RESULTS 32

static struct result {
	char name[32];
	unsigned long sum;
} results[RESULTS];

static int request(const char *words)
{
	int fd = open(HOME "request", O_WRONLY);
	int failed = fd < 0 || write(fd, words, strlen(words)) < 0;

	if (failed)
		perror("ask: " HOME "request");
	close(fd);
	return failed;
}

static int add_results(void)
{
	FILE *file = fopen(HOME "result", "r");
	char name[32];
	unsigned long value;

	if (!file)
		return 1;
	for (int i = 0; i < RESULTS && fscanf(file, "%31s %lu", name, &value) == 2; i++) {
		strcpy(results[i].name, name);
		results[i].sum += value;
	}
	fclose(file);
	return 0;
}

int main(int argc, char **argv)
{
	int status = 0;

	if (argc < 3) {
		fprintf(stderr, "usage: ask REQUEST PROGRAM [ARG...]\n");
		return 2;
	}
	pid_t pid = fork();

	if (!pid) {
		execvp(argv[2], argv + 2);
		_exit(127);
	}
	do
		if (request(argv[1]) || add_results())
			return 1;
	while (!waitpid(pid, &status, WNOHANG));
	for (int i = 0; i < RESULTS && *results[i].name; i++)
		printf("%s %lu\n", results[i].name, results[i].sum);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
