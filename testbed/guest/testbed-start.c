// SPDX-License-Identifier: GPL-2.0-only
/*
 * testbed-start [-r] PROGRAM [ARG...]
 *
 * Become a program that knows nothing of this guest, in a place such as programs expect: with /tmp, /dev/shm
 * and /dev/fd, and room for files in / and /run. It is a user's, unless -r says root's: so it cannot write
 * to the console, nor to what was measured, and the host believes both.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define USER 1000

static int failed(const char *what)
{
	fprintf(stderr, "testbed-start: %s: %s\n", what, strerror(errno));
	return 127;
}

/* Nobody can remove what is somebody else's there. What is there already, or is not, is right as it is. */
static void make_room(void)
{
	static const char *const places[] = {
		"/", "/run", "/mnt", "/tmp", "/var", "/var/tmp", "/dev/shm",
	};

	for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
		mkdir(places[i], 0);
		chmod(places[i], 01777);
	}
	if (symlink("/proc/self/fd", "/dev/fd") || symlink("/proc/self/fd/0", "/dev/stdin") ||
	    symlink("/proc/self/fd/1", "/dev/stdout") || symlink("/proc/self/fd/2", "/dev/stderr"))
		return;
	mkdir("/dev/pts", 0755);
	mount("devpts", "/dev/pts", "devpts", 0, "mode=0620,ptmxmode=0666");
}

/* Limits are root's, and others have them of a machine this small. */
static int lift_limits(void)
{
	static const struct rlimit none = { RLIM_INFINITY, RLIM_INFINITY };

	return setrlimit(RLIMIT_NPROC, &none) || setrlimit(RLIMIT_MEMLOCK, &none);
}

/* A file, which programs may want to open again, as /dev/stdout. */
static int give_output(int fd)
{
	struct stat status;

	return fstat(fd, &status) || (S_ISREG(status.st_mode) && fchown(fd, USER, USER));
}

static int become_user(void)
{
	return give_output(1) || give_output(2) || lift_limits() ||
	       prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || setgroups(0, NULL) ||
	       setresgid(USER, USER, USER) || setresuid(USER, USER, USER);
}

int main(int argc, char **argv)
{
	int root = argc > 1 && !strcmp(argv[1], "-r"), null;

	argv += 1 + root;
	if (!*argv) {
		fprintf(stderr, "usage: testbed-start [-r] PROGRAM [ARG...]\n");
		return 2;
	}
	make_room();
	/* What was standard input is the console, and can be written to. */
	null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (null < 0 || dup2(null, 0) < 0)
		return failed("/dev/null");
	if (!root && become_user())
		return failed("no user's program can be started");
	execvp(*argv, argv);
	return failed(*argv);
}
