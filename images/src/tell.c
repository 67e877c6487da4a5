// SPDX-License-Identifier: GPL-2.0-only
/*
 * Say something to the host, on the console, so that it arrives whole:
 *
 *	tell mark NAME [KEY=VALUE...]	#tb:NAME ns=NOW KEY=VALUE...
 *	tell frame NAME			standard input, with its length and CRC-32
 *
 * With $NONCE, `#tb-$NONCE:` stands for `#tb:`. A program that does not know the
 * nonce can say nothing that is taken for a mark.
 *
 * A line of a frame that begins with `#` gets another one in front, so that
 * nothing in a frame can be taken for a mark; length and CRC are of that form.
 *
 * Kernel messages go to the same console and could land in the middle of a
 * line. They are held back (all but a panic's) until our bytes have left.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include <fcntl.h>

#define PRINTK "/proc/sys/kernel/printk"

static const char *mark_prefix(void)
{
	static char prefix[64] = "#tb:";
	const char *nonce = getenv("NONCE");

	if (nonce)
		snprintf(prefix, sizeof(prefix), "#tb-%s:", nonce);
	return prefix;
}

static uint32_t crc32(const unsigned char *data, size_t length)
{
	uint32_t crc = ~0u;

	while (length--) {
		crc ^= *data++;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
	}
	return ~crc;
}

static void set_console_level(const char *level)
{
	int fd = open(PRINTK, O_WRONLY);

	if (fd < 0)
		return;
	if (write(fd, level, strlen(level)) < 0)
		perror(PRINTK);
	close(fd);
}

static char *read_all(size_t *length)
{
	size_t size = 1 << 16;
	char *data = malloc(size);
	ssize_t got;

	*length = 0;
	while (data && (got = read(0, data + *length, size - *length)) > 0) {
		*length += got;
		if (*length == size)
			data = realloc(data, size *= 2);
	}
	return data;
}

/* Double every # at the beginning of a line. */
static char *stuff(const char *body, size_t *length)
{
	char *out = malloc(2 * *length + 1), *end = out;

	for (size_t i = 0; out && i < *length; i++) {
		if (body[i] == '#' && (i == 0 || body[i - 1] == '\n'))
			*end++ = '#';
		*end++ = body[i];
	}
	*length = end - out;
	return out;
}

int main(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr, "usage: tell mark|frame NAME [KEY=VALUE...]\n");
		return 2;
	}
	const char *prefix = mark_prefix();
	char *body = NULL;
	size_t length = 0;
	int frame = !strcmp(argv[1], "frame");

	if (frame && (!(body = read_all(&length)) || !(body = stuff(body, &length)))) {
		perror("tell");
		return 1;
	}
	set_console_level("1");
	if (frame) {
		printf("\n%sframe %s %zu %08x\n", prefix, argv[2], length,
		       crc32((unsigned char *)body, length));
		fwrite(body, 1, length, stdout);
		printf("\n%sclose %s\n", prefix, argv[2]);
	} else {
		struct timespec t;

		clock_gettime(CLOCK_MONOTONIC, &t);
		printf("\n%s%s ns=%lld", prefix, argv[2],
		       t.tv_sec * 1000000000ll + t.tv_nsec);
		for (int i = 3; i < argc; i++)
			printf(" %s", argv[i]);
		printf("\n");
	}
	fflush(stdout);
	tcdrain(1);
	set_console_level("7");
	return 0;
}
