// SPDX-License-Identifier: GPL-2.0-only
/*
 * failing - run a program whose allocations may be made to fail
 *
 *	failing PROGRAM [ARG...]
 *
 * For fault injection with a task-filter: everybody else is spared.
 */
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int fd = open("/proc/self/make-it-fail", O_WRONLY);

	if (argc < 2 || fd < 0 || write(fd, "1", 1) != 1) {
		perror("failing");
		return 1;
	}
	close(fd);
	execvp(argv[1], argv + 1);
	perror(argv[1]);
	return 127;
}
