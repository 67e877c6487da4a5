// SPDX-License-Identifier: GPL-2.0-only
/*
 * toggle - do something and undo it, for as long as a program runs
 *
 *	toggle PATH=VALUE PATH=VALUE PROGRAM [ARG...]
 *
 * Writes the first VALUE to the first PATH and, if the kernel takes it, the other
 * VALUE to the other PATH, over and over. What takes longer than PATIENCE gets a
 * signal, upon which the kernel is to give up. Prints how often it was done
 * (`done`), how often the kernel refused or gave up (`refused`), and how long one
 * of these took at most, in milliseconds (`longest`). The program's exit status is
 * its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* In seconds. */
#define PATIENCE 30

static void interrupt(int signal)
{
	(void)signal;
}

/* Returns 0, or what the kernel said. */
static int put(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY);

	alarm(PATIENCE);
	int error = fd < 0 || write(fd, value, strlen(value)) < 0 ? errno : 0;

	alarm(0);
	if (fd >= 0)
		close(fd);
	return error;
}

static long milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
	const struct timespec pause = { .tv_nsec = 500000000 };
	const struct sigaction on_alarm = { .sa_handler = interrupt };
	char *path[2], *value[2];
	unsigned long done = 0, refused = 0;
	long longest = 0;
	int status = 0;

	for (int i = 0; argc > 3 && i < 2; i++) {
		path[i] = argv[i + 1];
		value[i] = strchr(path[i], '=');
		if (!value[i])
			argc = 0;
		else
			*value[i]++ = 0;
	}
	if (argc < 4) {
		fprintf(stderr, "usage: toggle PATH=VALUE PATH=VALUE PROGRAM [ARG...]\n");
		return 2;
	}
	pid_t pid = fork();

	if (!pid) {
		execvp(argv[3], argv + 3);
		_exit(127);
	}
	sigaction(SIGALRM, &on_alarm, NULL);
	do {
		/* Let the program have what it took away. */
		nanosleep(&pause, NULL);
		long began = milliseconds();
		int error = put(path[0], value[0]);
		long took = milliseconds() - began;

		longest = took > longest ? took : longest;
		done += !error;
		refused += !!error;
		if (error)
			fprintf(stderr, "toggle: %s: %s\n", path[0], strerror(error));
		if (!error && put(path[1], value[1])) {
			perror(path[1]);
			return 1;
		}
	} while (!waitpid(pid, &status, WNOHANG));
	printf("done %lu\nrefused %lu\nlongest %ld\n", done, refused, longest);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
